import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import String, inspect, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.schema import CreateTable

from sendense.core.errors import Invalid, Unavailable
from sendense.db import schema
from sendense.db.base import Base
from sendense.db.catalog import Catalog
from sendense.db.tables import (
    BackupDiskRow,
    BackupRow,
    ChainRow,
    JobRow,
    RepositoryRow,
    SourceRow,
    VmRow,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    opened = Catalog(f"sqlite:///{tmp_path}/catalog.sqlite")
    schema.migrate(opened)
    yield opened
    opened.close()


def add_surroundings(catalog: Catalog) -> None:
    """Write what a backup refers to."""
    with catalog.write() as session:
        session.add(
            SourceRow(
                id="source-1",
                uuid="source-1",
                name="lab",
                type="image",
                config={},
                created_at=NOW,
                updated_at=NOW,
                trouble="",
            )
        )
        session.add(
            RepositoryRow(
                id="repo-1",
                uuid="uuid",
                name="main",
                type="local",
                config={},
                chunk_size=1,
                created_at=NOW,
                updated_at=NOW,
            )
        )
        session.flush()
        session.add(
            VmRow(
                id="vm-1",
                source_id="source-1",
                source_uuid="s",
                vm_uuid="v",
                name="web",
                power_state="on",
                created_at=NOW,
                seen_at=NOW,
            )
        )


def backup(backup_id: str = "backup-1", **changes: Any) -> BackupRow:
    fields: dict[str, Any] = {
        "vm_id": "vm-1",
        "vm_name": "web",
        "repository_id": "repo-1",
        "requested_type": "auto",
        "backup_type": "full",
        "status": "completed",
        "consistency_wish": "prefer",
        "created_at": NOW,
    }
    return BackupRow(id=backup_id, **{**fields, **changes})


def disk(backup_id: str = "backup-1") -> BackupDiskRow:
    return BackupDiskRow(
        backup_id=backup_id,
        disk_id="disk-2000",
        key=2000,
        index=0,
        label="",
        uuid="u",
        capacity_bytes=1,
        backup_type="full",
        status="completed",
    )


def chain(backup_id: str = "backup-1", **changes: Any) -> ChainRow:
    fields: dict[str, Any] = {
        "vm_id": "vm-1",
        "disk_id": "disk-2000",
        "key": 2000,
        "repository_id": "repo-1",
        "full_backup_id": backup_id,
        "latest_backup_id": backup_id,
        "total_backups": 1,
        "total_size_bytes": 1,
        "created_at": NOW,
        "updated_at": NOW,
    }
    return ChainRow(id="chain-1", **{**fields, **changes})


# The order of a backup's rows.


def test_a_backup_its_disks_and_its_chain_are_written_in_this_order(catalog: Catalog) -> None:
    add_surroundings(catalog)
    for row in (backup(), disk(), chain()):
        with catalog.write() as session:
            session.add(row)


@pytest.mark.parametrize("row", [disk, chain])
def test_nothing_refers_to_a_backup_that_does_not_exist_yet(catalog: Catalog, row: Any) -> None:
    add_surroundings(catalog)
    with pytest.raises(IntegrityError, match="FOREIGN KEY"), catalog.write() as session:
        session.add(row())


@pytest.mark.parametrize("end", ["full_backup_id", "latest_backup_id"])
def test_both_ends_of_a_chain_are_backups_and_never_empty(catalog: Catalog, end: str) -> None:
    add_surroundings(catalog)
    with catalog.write() as session:
        session.add(backup())
    with pytest.raises(IntegrityError, match="NOT NULL"), catalog.write() as session:
        session.add(chain("backup-1", **{end: None}))
    with pytest.raises(IntegrityError, match="FOREIGN KEY"), catalog.write() as session:
        session.add(chain("backup-1", **{end: "backup-2"}))


def test_a_backup_that_a_chain_names_is_not_removed(catalog: Catalog) -> None:
    add_surroundings(catalog)
    for row in (backup(), chain()):
        with catalog.write() as session:
            session.add(row)
    with pytest.raises(IntegrityError, match="FOREIGN KEY"), catalog.write() as session:
        session.delete(session.get_one(BackupRow, "backup-1"))


def test_a_backup_needs_a_vm_and_a_repository_that_exist(catalog: Catalog) -> None:
    add_surroundings(catalog)
    for change in ({"vm_id": "vm-2"}, {"repository_id": "repo-2"}, {"job_id": "job-2"}):
        with pytest.raises(IntegrityError, match="FOREIGN KEY"), catalog.write() as session:
            session.add(backup(**change))


def test_a_vm_has_one_active_job_at_a_time(catalog: Catalog) -> None:
    def job(job_id: str, slot: str | None) -> JobRow:
        return JobRow(
            id=job_id,
            kind="backup",
            status="running",
            priority=1,
            subject={},
            vm_slot=slot,
            current_phase="x",
            created_at=NOW,
            updated_at=NOW,
        )

    with catalog.write() as session:
        session.add_all([job("job-1", "vm-1"), job("job-2", "vm-2")])
        session.add_all([job("job-3", None), job("job-4", None)])
    with pytest.raises(IntegrityError, match="UNIQUE"), catalog.write() as session:
        session.add(job("job-5", "vm-1"))


# Transactions.


def test_a_block_that_raises_leaves_nothing(catalog: Catalog) -> None:
    def write_half() -> None:
        with catalog.write() as session:
            session.add(
                SourceRow(
                    id="s",
                    uuid="s",
                    name="s",
                    type="image",
                    config={},
                    created_at=NOW,
                    updated_at=NOW,
                    trouble="",
                )
            )
            session.flush()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_half()
    with catalog.read() as session:
        assert session.scalars(select(SourceRow)).all() == []


def test_writers_wait_for_each_other_and_none_is_lost(catalog: Catalog) -> None:
    add_surroundings(catalog)

    def count_up() -> None:
        for _ in range(20):
            with catalog.write() as session:
                row = session.get_one(RepositoryRow, "repo-1")
                row.chunk_size += 1

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with catalog.read() as session:
        assert session.get_one(RepositoryRow, "repo-1").chunk_size == 81


def test_a_reader_does_not_wait_for_a_writer(catalog: Catalog) -> None:
    add_surroundings(catalog)
    with catalog.write() as writing:
        writing.get_one(RepositoryRow, "repo-1").name = "other"
        writing.flush()
        with catalog.read() as reading:
            assert reading.get_one(RepositoryRow, "repo-1").name == "main"


def test_sqlite_is_set_up_to_keep_what_it_confirmed(catalog: Catalog) -> None:
    with catalog.read() as session:
        connection = session.connection()
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
        }
    assert pragmas == {
        "journal_mode": "wal",
        "foreign_keys": 1,
        "synchronous": 2,
        "busy_timeout": 30_000,
    }


def test_times_come_back_in_utc_with_microseconds(catalog: Catalog) -> None:
    add_surroundings(catalog)
    moment = datetime(2026, 7, 1, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    with catalog.write() as session:
        session.get_one(RepositoryRow, "repo-1").measured_at = moment
    with catalog.read() as session:
        found = session.get_one(RepositoryRow, "repo-1").measured_at
    assert found == moment
    assert found is not None
    assert found.tzinfo is UTC


def test_nothing_is_null_and_not_the_text_null(catalog: Catalog) -> None:
    add_surroundings(catalog)
    with catalog.write() as session:
        session.add(backup(error=None))
    with catalog.read() as session:
        found = session.scalars(select(BackupRow.id).where(BackupRow.error.is_(None))).all()
    assert found == ["backup-1"]


# Migrations.


def test_migrations_make_what_the_models_say(catalog: Catalog) -> None:
    with catalog.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_migrating_again_changes_nothing(catalog: Catalog) -> None:
    add_surroundings(catalog)
    schema.migrate(catalog)
    schema.check(catalog)
    with catalog.read() as session:
        assert session.get_one(VmRow, "vm-1").name == "web"
        assert session.connection().exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1


def test_a_newer_schema_is_refused_and_left_alone(catalog: Catalog, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "catalog.sqlite") as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    for act in (schema.migrate, schema.check):
        with pytest.raises(Invalid) as caught:
            act(catalog)
        assert caught.value.kind == "catalog-newer"
    assert schema.find_revision(catalog) == "9999"


def test_a_worker_waits_for_the_hub_to_migrate(tmp_path: Path) -> None:
    empty = Catalog(f"sqlite:///{tmp_path}/empty.sqlite")
    with pytest.raises(Unavailable) as caught:
        schema.check(empty)
    assert caught.value.kind == "catalog-older"
    empty.close()


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    nowhere = Catalog(f"sqlite:///{tmp_path}/nowhere/catalog.sqlite")
    with pytest.raises(OperationalError), nowhere.read() as session:
        session.connection()
    nowhere.close()


# Other databases only have to be switched on.


@pytest.mark.parametrize("name", ["postgresql", "mysql"])
def test_every_table_can_be_made_elsewhere(name: str) -> None:
    dialect = make_url(f"{name}://").get_dialect()()
    for table in Base.metadata.sorted_tables:
        made = str(CreateTable(table).compile(dialect=dialect))
        assert f"CREATE TABLE {table.name}" in made
    if dialect.name == "mysql":
        assert "DATETIME(6)" in made


def test_every_text_has_a_length_and_every_constraint_a_name() -> None:
    for table in Base.metadata.sorted_tables:
        for column in table.columns:
            if isinstance(column.type, String):
                assert column.type.length, f"{table.name}.{column.name}"
        for constraint in table.constraints:
            assert constraint.name, f"{table.name}: {constraint}"
        for index in table.indexes:
            assert not index.dialect_options["sqlite"].get("where"), index.name


def test_what_is_asked_for_by_its_owner_has_an_index(catalog: Catalog) -> None:
    indexed = {
        (table, index["column_names"][0])
        for table in inspect(catalog.engine).get_table_names()
        for index in inspect(catalog.engine).get_indexes(table)
    }
    for pair in (
        ("backup_jobs", "created_at"),
        ("backup_jobs", "vm_id"),
        ("backup_jobs", "repository_id"),
        ("jobs", "updated_at"),
    ):
        assert pair in indexed
