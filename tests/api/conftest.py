"""The API over HTTP, on a real SQLite catalog and real repositories in a folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sendense.db import schema
from sendense.db.catalog import Catalog
from tests.api import kit


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, empty_catalog: Path) -> Iterator[kit.Served]:
    hub, _, _ = kit.make_hub(tmp_path_factory.mktemp("hub"), empty_catalog)
    with kit.serve(hub) as running:
        yield running
    hub.catalog.close()


@pytest.fixture(scope="session")
def empty_catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("catalog") / "catalog.sqlite"
    catalog = Catalog(f"sqlite:///{path}")
    schema.migrate(catalog)
    catalog.close()
    return path


@pytest.fixture
def lab(tmp_path: Path, empty_catalog: Path, served: kit.Served) -> Iterator[kit.Lab]:
    with kit.open_lab(tmp_path, empty_catalog, served) as opened:
        yield opened
