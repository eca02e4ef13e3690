"""Migrations: up and down, alone, interrupted, refused; on each of the three databases."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, event, func, inspect, select, text

from sendense.core.errors import Conflict, Invalid, Unavailable
from sendense.db import schema
from sendense.db.base import Base
from sendense.db.catalog import Catalog
from sendense.db.failure import CatalogUnavailable
from sendense.db.tables import BackupDiskRow, BackupRow, ChainRow, SourceRow
from tests.servers.fixtures import KINDS
from tests.servers.postgresql import PostgresqlServer
from tests.unit.db.rows import add_surroundings, backup, chain, disk

MIGRATE_SECONDS_MAX = 120
STATEMENTS_BETWEEN_STOPS = 5  # in a quick run; a long one stops at each
MIGRATOR = """
import sys
from sendense.db import schema
from sendense.db.catalog import Catalog
catalog = Catalog(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
schema.migrate(catalog)
print(schema.find_revision(catalog))
"""


@pytest.fixture
def empty(kind: str, database_url: Callable[[str], str]) -> Iterator[Catalog]:
    """A catalog without a schema."""
    opened = Catalog(database_url(kind))
    yield opened
    opened.close()


def move(catalog: Catalog, revision: str) -> None:
    """Bring a catalog down to a revision."""
    with schema.configured(catalog) as config:
        command.downgrade(config, revision)


def list_differences(catalog: Catalog) -> list[Any]:
    with catalog.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, Base.metadata))


def tables(catalog: Catalog) -> set[str]:
    with catalog.engine.connect() as connection:
        return set(inspect(connection).get_table_names())


class Stop(BaseException):
    """The process ends here."""


@contextmanager
def stopping_at(number: int) -> Iterator[list[str]]:
    """End the block at the n-th statement that changes something; give those before it."""
    done: list[str] = []

    def count(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        del connection, cursor
        if statement.split(maxsplit=1)[0].upper() in {
            "CREATE",
            "DROP",
            "ALTER",
            "INSERT",
            "UPDATE",
            "DELETE",
        }:
            if len(done) == number:
                raise Stop
            done.append(statement)

    event.listen(Engine, "before_cursor_execute", count)
    try:
        yield done
    except Stop:
        pass
    finally:
        event.remove(Engine, "before_cursor_execute", count)


# Up and down.


def test_migrations_make_what_the_models_say(catalog: Catalog) -> None:
    assert list_differences(catalog) == []


def test_migrating_again_changes_nothing(catalog: Catalog) -> None:
    add_surroundings(catalog)
    schema.migrate(catalog)
    schema.check(catalog)
    with catalog.read() as session:
        assert session.scalar(select(SourceRow.name)) == "lab"


def test_migrations_lead_down_to_nothing_and_up_again(empty: Catalog) -> None:
    schema.migrate(empty)
    move(empty, "base")
    assert tables(empty) <= {"alembic_version"}
    assert schema.find_revision(empty) is None
    schema.migrate(empty)
    assert list_differences(empty) == []


def test_backups_survive_every_migration_down_and_up(empty: Catalog) -> None:
    """A table that SQLite rebuilds must not take with it what refers to it."""
    schema.migrate(empty)
    add_surroundings(empty)
    with empty.write() as session:
        session.add(backup())
        session.flush()
        session.add(disk())
        session.flush()
        session.add(chain())
    move(empty, "0001")
    schema.migrate(empty)
    with empty.read() as session:
        for table in (BackupRow, BackupDiskRow, ChainRow):
            assert session.scalar(select(func.count()).select_from(table)) == 1


def test_foreign_keys_hold_again_after_a_migration(empty: Catalog) -> None:
    schema.migrate(empty)
    if empty.engine.dialect.name == "sqlite":
        with empty.read() as session:
            assert session.scalar(text("PRAGMA foreign_keys")) == 1
    else:
        names = inspect(empty.engine).get_foreign_keys("backup_chains")
        assert {key["referred_table"] for key in names} == {
            "backup_jobs",
            "backup_repositories",
            "vm_contexts",
        }


# Not alone, and not to the end.


def test_of_two_hubs_that_start_at_once_one_migrates(
    kind: str, database_url: Callable[[str], str]
) -> None:
    url = database_url(kind)
    hubs = [
        subprocess.Popen(
            [sys.executable, "-c", MIGRATOR, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for hub in hubs:
        assert hub.stdout is not None
        assert hub.stdout.readline() == "ready\n"
    told = [hub.communicate("go\n", timeout=MIGRATE_SECONDS_MAX) for hub in hubs]
    assert [hub.returncode for hub in hubs] == [0, 0], told
    assert {out.strip() for out, _ in told} == {schema.newest_revision()}
    catalog = Catalog(url)
    assert list_differences(catalog) == []
    catalog.close()


def test_an_interrupted_migration_leaves_nothing_or_goes_on(
    empty: Catalog, *, long_run: bool
) -> None:
    """MariaDB commits with each statement: there it goes on, from each one. The others go back."""
    steps = 1 if long_run else STATEMENTS_BETWEEN_STOPS
    number = 0
    while schema.find_revision(empty) != schema.newest_revision():
        with stopping_at(number) as done:
            schema.migrate(empty)
        number += steps
        if empty.engine.dialect.name != "mariadb" and len(done) < number:
            assert tables(empty) in (set(), {*Base.metadata.tables, "alembic_version"})
    assert number > len(Base.metadata.tables)
    assert list_differences(empty) == []


def test_a_downgrade_of_mariadb_goes_on_too(
    database_url: Callable[[str], str], *, long_run: bool
) -> None:
    catalog = Catalog(database_url("mariadb"))
    schema.migrate(catalog)
    number = 0
    while schema.find_revision(catalog) is not None:
        with stopping_at(number):
            move(catalog, "base")
        number += 1 if long_run else STATEMENTS_BETWEEN_STOPS
    assert tables(catalog) <= {"alembic_version"}
    schema.migrate(catalog)
    assert list_differences(catalog) == []
    catalog.close()


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_hub_does_not_wait_for_ever_for_another_one_that_migrates(
    empty: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "WAIT_SECONDS_MAX", 1)
    with schema.configured(empty) as config, config.attributes["connection"] as connection:
        config.attributes["prepare"](connection)
        with pytest.raises(CatalogUnavailable) as caught:
            schema.migrate(empty)
    assert caught.value.kind == "catalog-busy"
    assert tables(empty) <= {"alembic_version"}


# Refused.


def test_a_newer_schema_is_refused_and_left_alone(empty: Catalog) -> None:
    schema.migrate(empty)
    with empty.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for act in (schema.migrate, schema.check):
        with pytest.raises(Invalid) as caught:
            act(empty)
        assert caught.value.kind == "catalog-newer"
    assert schema.find_revision(empty) == "9999"


def test_a_worker_waits_for_the_hub_to_migrate(empty: Catalog) -> None:
    with pytest.raises(Unavailable) as caught:
        schema.check(empty)
    assert caught.value.kind == "catalog-older"


def test_tables_of_somebody_else_are_not_taken_over(empty: Catalog) -> None:
    with empty.engine.begin() as connection:
        connection.execute(text("CREATE TABLE jobs (n INTEGER)"))
    with pytest.raises(Conflict) as caught:
        schema.migrate(empty)
    assert caught.value.kind == "catalog-foreign"
    assert tables(empty) == {"jobs"}


def test_a_server_that_is_too_old_is_refused(
    empty: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = empty.engine.dialect.name
    monkeypatch.setattr(schema, "_VERSIONS_MIN", {name: (99, 1)})
    with pytest.raises(Invalid, match=r"99\.1 is needed") as caught:
        schema.migrate(empty)
    assert caught.value.kind == "database-unsupported"
    assert tables(empty) == set()


def test_a_database_that_cannot_hold_every_name_is_refused(postgresql: PostgresqlServer) -> None:
    url = postgresql.create_database()
    name = url.rpartition("/")[2]
    postgresql.ask(f"DROP DATABASE {name}")
    postgresql.ask(
        f"CREATE DATABASE {name} OWNER sendense TEMPLATE template0 ENCODING 'LATIN1'"
        " LOCALE_PROVIDER libc LOCALE 'C'"
    )
    catalog = Catalog(url)
    with pytest.raises(Invalid, match="LATIN1") as caught:
        schema.migrate(catalog)
    assert caught.value.kind == "database-unsupported"
    catalog.close()
