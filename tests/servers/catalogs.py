"""Migrated catalogs on each database: made once for a run, emptied for each test."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sendense.db import schema
from sendense.db.base import Base
from sendense.db.catalog import Catalog
from tests.servers.process import Server


def empty(catalog: Catalog) -> None:
    """Delete every row of a migrated catalog."""
    with catalog.engine.begin() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())


@pytest.fixture(scope="session")
def migrated_urls(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], str]:
    """Give the URL of one migrated catalog per kind of database, made at the first call."""
    made: dict[str, str] = {}

    def give(kind: str) -> str:
        if kind not in made:
            if kind == "sqlite":
                url = f"sqlite:///{tmp_path_factory.mktemp('template')}/catalog.sqlite"
            else:
                server: Server = request.getfixturevalue(kind)
                url = server.create_database()
            catalog = Catalog(url)
            schema.migrate(catalog)
            catalog.close()
            made[kind] = url
        return made[kind]

    return give


@pytest.fixture
def open_catalog(
    migrated_urls: Callable[[str], str], tmp_path: Path
) -> Iterator[Callable[[str], Catalog]]:
    """Open an empty, migrated catalog on a kind of database, once in a test; closed after it.

    An SQLite catalog is the file `catalog.sqlite` in the test's folder.
    """
    opened: list[Catalog] = []

    def give(kind: str) -> Catalog:
        url = migrated_urls(kind)
        if kind == "sqlite":
            target = tmp_path / "catalog.sqlite"
            shutil.copyfile(url.removeprefix("sqlite:///"), target)
            url = f"sqlite:///{target}"
        catalog = Catalog(url)
        opened.append(catalog)
        if kind != "sqlite":
            empty(catalog)
        return catalog

    yield give
    for one in opened:
        one.close()
