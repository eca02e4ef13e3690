"""The order in which rows may exist, and the two kinds of transaction."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import String, func, inspect, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.attributes import flag_modified

from sendense.db.base import Base
from sendense.db.catalog import Catalog
from sendense.db.failure import CatalogUnavailable
from sendense.db.tables import BackupRow, RepositoryRow, SourceRow
from tests.unit.db.rows import (
    FOREIGN_KEY,
    NOT_NULL,
    UNIQUE,
    add_surroundings,
    backup,
    broken_rule,
    chain,
    disk,
    job,
    repository,
    source,
)


def refuse(catalog: Catalog, *rows: Any) -> str:
    """Write rows that must be refused; return the rule that they break."""
    with pytest.raises(IntegrityError) as caught, catalog.write() as session:
        session.add_all(rows)
    return broken_rule(caught.value)


# The order of a backup's rows.


def test_a_backup_its_disks_and_its_chain_are_written_in_this_order(catalog: Catalog) -> None:
    add_surroundings(catalog)
    for row in (backup(), disk(), chain()):
        with catalog.write() as session:
            session.add(row)


@pytest.mark.parametrize("row", [disk, chain])
def test_nothing_refers_to_a_backup_that_does_not_exist_yet(catalog: Catalog, row: Any) -> None:
    add_surroundings(catalog)
    assert refuse(catalog, row()) == FOREIGN_KEY


def test_a_chain_before_its_backup_is_refused_in_each_database_s_own_words(
    catalog: Catalog,
) -> None:
    add_surroundings(catalog)
    with catalog.engine.connect() as connection:
        values = {
            column.name: getattr(chain(), column.name)
            for column in Base.metadata.tables["backup_chains"].c
        }
        with pytest.raises(IntegrityError) as caught:
            connection.execute(Base.metadata.tables["backup_chains"].insert().values(values))
        raw: Any = caught.value.orig
        if connection.dialect.name == "sqlite":
            assert raw.sqlite_errorname == "SQLITE_CONSTRAINT_FOREIGNKEY"
        elif connection.dialect.name == "postgresql":
            assert raw.sqlstate == "23503"
            assert raw.diag.constraint_name.startswith("fk_backup_chains_")
        else:
            assert (raw.args[0], raw.sqlstate) == (1452, "23000")


@pytest.mark.parametrize("end", ["full_backup_id", "latest_backup_id"])
def test_both_ends_of_a_chain_are_backups_and_never_empty(catalog: Catalog, end: str) -> None:
    add_surroundings(catalog)
    with catalog.write() as session:
        session.add(backup())
    assert refuse(catalog, chain("backup-1", **{end: None})) == NOT_NULL
    assert refuse(catalog, chain("backup-1", **{end: "backup-2"})) == FOREIGN_KEY


def test_a_backup_that_a_chain_names_is_not_removed(catalog: Catalog) -> None:
    add_surroundings(catalog)
    for row in (backup(), chain()):
        with catalog.write() as session:
            session.add(row)
    with pytest.raises(IntegrityError) as caught, catalog.write() as session:
        session.delete(session.get_one(BackupRow, "backup-1"))
    assert broken_rule(caught.value) == FOREIGN_KEY


def test_a_backup_needs_a_vm_and_a_repository_that_exist(catalog: Catalog) -> None:
    add_surroundings(catalog)
    for change in ({"vm_id": "vm-2"}, {"repository_id": "repo-2"}, {"job_id": "job-2"}):
        assert refuse(catalog, backup(**change)) == FOREIGN_KEY


def test_a_vm_has_one_active_job_at_a_time(catalog: Catalog) -> None:
    with catalog.write() as session:
        session.add_all([job("job-1", "vm-1"), job("job-2", "vm-2")])
        session.add_all([job("job-3", None), job("job-4", None)])
    assert refuse(catalog, job("job-5", "vm-1")) == UNIQUE


# Transactions.


def test_a_block_that_raises_leaves_nothing(catalog: Catalog) -> None:
    def write_half() -> None:
        with catalog.write() as session:
            session.add(source())
            session.flush()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_half()
    with catalog.read() as session:
        assert session.scalars(select(SourceRow)).all() == []


def test_writers_wait_for_each_other_and_none_is_lost(catalog: Catalog) -> None:
    with catalog.write() as session:
        session.add(repository(chunk_size=1))
    failed: list[BaseException] = []

    def count_up() -> None:
        try:
            for _ in range(20):
                with catalog.write() as session:
                    row = session.get_one(RepositoryRow, "repo-1")
                    row.chunk_size += 1
        except BaseException as error:  # noqa: BLE001 - told below, whatever it is
            failed.append(error)

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    with catalog.read() as session:
        assert session.get_one(RepositoryRow, "repo-1").chunk_size == 81


def test_a_writer_decides_on_what_the_one_before_it_wrote(catalog: Catalog) -> None:
    """Two that find nothing and then write would both find nothing, were they not one by one."""
    barrier = threading.Barrier(4)
    added: list[str] = []

    def add_once(name: str) -> None:
        barrier.wait()
        with catalog.write() as session:
            if session.scalar(select(func.count()).select_from(SourceRow)) == 0:
                session.add(source(name))
                added.append(name)

    threads = [threading.Thread(target=add_once, args=(f"s{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(added) == 1


def test_a_reader_does_not_wait_for_a_writer(catalog: Catalog) -> None:
    add_surroundings(catalog)
    with catalog.write() as writing:
        writing.get_one(RepositoryRow, "repo-1").name = "other"
        writing.flush()
        with catalog.read() as reading:
            assert reading.get_one(RepositoryRow, "repo-1").name == "main"


def test_a_reader_sees_one_state_however_long_it_reads(catalog: Catalog) -> None:
    add_surroundings(catalog)
    with catalog.read() as reading:
        assert reading.scalar(select(RepositoryRow.name)) == "main"
        with catalog.write() as writing:
            writing.get_one(RepositoryRow, "repo-1").name = "other"
            writing.add(source("second"))
        assert reading.scalar(select(RepositoryRow.name)) == "main"
        assert reading.scalar(select(func.count()).select_from(SourceRow)) == 1
    with catalog.read() as reading:
        assert reading.scalar(select(RepositoryRow.name)) == "other"


def test_nothing_written_by_a_reader_is_kept(catalog: Catalog) -> None:
    add_surroundings(catalog)
    with catalog.read() as reading:
        reading.get_one(RepositoryRow, "repo-1").name = "other"
    with catalog.read() as reading:
        assert reading.get_one(RepositoryRow, "repo-1").name == "main"


def test_an_update_counts_rows_that_already_are_as_wanted(catalog: Catalog) -> None:
    """A lease that is renewed within one tick of the clock is still a lease."""
    add_surroundings(catalog)
    with catalog.write() as session:
        result: Any = session.execute(
            text("UPDATE sources SET name = 'lab' WHERE id = 'source-lab'")
        )
        assert result.rowcount == 1
        row = session.get_one(SourceRow, "source-lab")
        flag_modified(row, "name")


def test_sqlite_is_set_up_to_keep_what_it_confirmed(
    open_catalog: Callable[[str], Catalog],
) -> None:
    with open_catalog("sqlite").read() as session:
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


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    nowhere = Catalog(f"sqlite:///{tmp_path}/nowhere/catalog.sqlite")
    with pytest.raises(CatalogUnavailable) as caught, nowhere.read() as session:
        session.connection()
    assert caught.value.kind == "catalog-unavailable"
    nowhere.close()


# What every table keeps to.


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
