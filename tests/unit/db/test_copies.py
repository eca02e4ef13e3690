"""The copy of an SQLite catalog that is taken before a migration."""

import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic import command

from sendense.db import copies, schema
from sendense.db.catalog import Catalog
from sendense.db.failure import CatalogUnavailable
from tests.unit.db.rows import NOW, source


@pytest.fixture
def older(open_catalog: Callable[[str], Catalog]) -> Catalog:
    """An SQLite catalog at the first revision but one, with a source in it."""
    catalog = open_catalog("sqlite")
    with catalog.write() as session:
        session.add(source())
    with schema.configured(catalog) as config:
        command.downgrade(config, "0002")
    return catalog


def list_copies(folder: Path) -> list[Path]:
    return sorted((folder / copies.FOLDER).iterdir())


def test_an_older_catalog_is_copied_before_it_is_migrated(
    older: Catalog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        schema.migrate(older)
    (copy,) = list_copies(tmp_path)
    assert copy.name.startswith("catalog-0002-20")
    assert str(copy) in caplog.text
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert stat.S_IMODE(copy.parent.stat().st_mode) == 0o700
    with closing(sqlite3.connect(copy)) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchall() == [("0002",)]
        assert raw.execute("SELECT name FROM sources").fetchall() == [("lab",)]
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_copy_brings_back_what_was_before(older: Catalog, tmp_path: Path) -> None:
    schema.migrate(older)
    (copy,) = list_copies(tmp_path)
    again = Catalog(f"sqlite:///{copy}")
    assert schema.find_revision(again) == "0002"
    schema.migrate(again)
    schema.check(again)
    again.close()


def test_nothing_is_copied_that_is_not_changed(older: Catalog, tmp_path: Path) -> None:
    fresh = Catalog(f"sqlite:///{tmp_path}/new/catalog.sqlite")
    (tmp_path / "new").mkdir()
    schema.migrate(fresh)
    schema.migrate(fresh)
    assert not (tmp_path / "new" / copies.FOLDER).exists()
    fresh.close()
    schema.migrate(older)
    schema.migrate(older)
    assert len(list_copies(tmp_path)) == 1


def test_only_the_newest_copies_are_kept(older: Catalog, tmp_path: Path) -> None:
    for day in range(copies.COPIES_KEPT + 2):
        # Revisions are no order in time: somebody may have gone back.
        revision = f"{9 - day:04}"
        copies.put(older.url, revision, now=NOW + timedelta(days=day))
    left = list_copies(tmp_path)
    assert len(left) == copies.COPIES_KEPT
    assert not any("20260101T" in path.name or "20260102T" in path.name for path in left)


def test_a_new_copy_stays_where_the_clock_was_set_back(older: Catalog) -> None:
    for day in range(copies.COPIES_KEPT):
        copies.put(older.url, "0001", now=NOW + timedelta(days=day + 1))
    assert copies.put(older.url, "0002", now=NOW).exists()


def test_without_a_copy_nothing_is_migrated(older: Catalog, tmp_path: Path) -> None:
    (tmp_path / copies.FOLDER).write_text("in the way")
    with pytest.raises(CatalogUnavailable, match="exists") as caught:
        schema.migrate(older)
    assert caught.value.kind == "catalog-copy-failed"
    assert schema.find_revision(older) == "0002"


def test_a_copy_that_fails_leaves_no_half_of_it(older: Catalog, tmp_path: Path) -> None:
    Path(older.url.database or "").write_bytes(b"no database" * 100)
    with pytest.raises(CatalogUnavailable):
        copies.put(older.url, "0002", now=datetime.now(UTC))
    assert list_copies(tmp_path) == []
