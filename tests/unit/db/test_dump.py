"""A catalog's rows go out as JSON and come back, from each database into each."""

import json
from collections.abc import Callable
from datetime import timedelta

import pytest
import sqlalchemy as sa

from sendense.core.errors import Conflict, Corrupt, Invalid
from sendense.db import dump, schema
from sendense.db.catalog import Catalog
from sendense.db.tables import BackupDiskRow, BackupRow, JobRow, WorkerRow
from tests.servers.fixtures import KINDS
from tests.unit.db import rows
from tests.unit.db.rows import NOW

LATER = NOW + timedelta(microseconds=7)


def _fill(catalog: Catalog) -> None:
    """Write rows of many kinds; a backup refers to one that is written after it."""
    rows.add_surroundings(catalog)
    with catalog.write() as session:
        first = rows.job("job-1", progress={"rates": {"2000": 1.5}}, log=[{"message": "wéb\n"}])
        session.add(first)
        session.flush()
        session.add(rows.job("job-2", retry_of="job-1", finished_at=LATER))
        session.add(rows.backup("backup-b", tags={"a": "b"}))
        session.flush()
        session.add(rows.backup("backup-a", parent_backup_id="backup-b", job_id="job-1"))
        session.flush()
        for number in range(3):
            session.add(rows.disk("backup-a", key=number, disk_id=f"disk-{number}"))
        session.flush()
        session.add(rows.chain("backup-a"))
        session.add(
            WorkerRow(id="w", host="h", pid=1, labels=None, version=None, started_at=0, beat_at=0)
        )


def _read(catalog: Catalog) -> list[dump.Row]:
    with catalog.read() as session:
        return sorted(dump.read_rows(session), key=str)


def _via_json(found: list[dump.Row]) -> list[dump.Row]:
    return [(name, json.loads(json.dumps(row))) for name, row in found]


@pytest.mark.parametrize("target", KINDS)
def test_rows_come_back_on_every_database(
    catalog: Catalog, target: str, database_url: Callable[[str], str]
) -> None:
    _fill(catalog)
    with catalog.read() as session:
        there = _via_json(list(dump.read_rows(session)))
    copy = Catalog(database_url(target))
    try:
        dump.restore(copy, schema.newest_revision(), there)
        assert _read(copy) == sorted(there, key=str)
        with copy.read() as session:
            assert session.get(WorkerRow, "w") is None
            job = session.get(JobRow, "job-2")
            assert job is not None
            assert (job.retry_of, job.finished_at) == ("job-1", LATER)
            backup = session.get(BackupRow, "backup-a")
            assert backup is not None
            assert backup.parent_backup_id == "backup-b"
        with copy.write() as session:  # numbering goes on
            session.add(rows.disk("backup-b", key=9))
            session.flush()
            assert session.scalar(sa.select(sa.func.count()).select_from(BackupDiskRow)) == 4
    finally:
        copy.close()


def test_an_export_of_an_older_version_is_brought_up_to_date(
    kind: str, database_url: Callable[[str], str]
) -> None:
    """Rows of revision 0008, which know nothing of the columns that came later."""
    old, copy = Catalog(database_url(kind)), Catalog(database_url(kind))
    try:
        schema.migrate(old)
        rows.add_surroundings(old)
        schema.migrate(copy, to="0008")
        with copy.read() as session:
            look = sa.inspect(session.connection())
            columns = {
                name: {one["name"] for one in look.get_columns(name)}
                for name in look.get_table_names()
            }
        with old.read() as session:
            there = [
                (name, {key: value for key, value in row.items() if key in columns[name]})
                for name, row in dump.read_rows(session)
            ]
        dump.restore(copy, "0008", _via_json(there))
        schema.check(copy)
        assert {name for name, _ in _read(copy)} == {name for name, _ in there}
    finally:
        old.close()
        copy.close()


def _restore(catalog: Catalog, *found: dump.Row, revision: str | None = None) -> None:
    dump.restore(catalog, revision or schema.newest_revision(), found)


@pytest.mark.parametrize(
    "row",
    [
        ("nothing", {"id": 1}),
        ("workers", {"id": "w"}),
        ("sources", {"id": "source-x", "colour": "red"}),
        ("sources", {"id": "source-x", "created_at": "yesterday"}),
        ("sources", {"id": "source-x", "created_at": 5}),
    ],
)
def test_rows_that_fit_nowhere_change_nothing(catalog: Catalog, row: dump.Row) -> None:
    good = ("hub", {"id": 1, "name": "hub-1", "sealed_key": None, "key_shown_at": None})
    with pytest.raises(Corrupt) as caught:
        _restore(catalog, good, row)
    assert caught.value.kind == "hub-export-damaged"
    assert _read(catalog) == []


def test_a_catalog_with_rows_is_left_alone(catalog: Catalog) -> None:
    rows.add_surroundings(catalog)
    before = _read(catalog)
    with pytest.raises(Conflict) as caught:
        _restore(catalog)
    assert caught.value.kind == "catalog-not-empty"
    assert _read(catalog) == before


def test_a_later_versions_export_is_refused(kind: str, database_url: Callable[[str], str]) -> None:
    copy = Catalog(database_url(kind))
    try:
        with pytest.raises(Invalid) as caught:
            _restore(copy, revision="9999")
        assert caught.value.kind == "catalog-newer"
        assert schema.find_revision(copy) is None
    finally:
        copy.close()
