"""Bringing a database to the schema this code knows."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from sendense.core.errors import Conflict, Invalid, Unavailable
from sendense.db import copies, engines, failure
from sendense.db.base import Base
from sendense.db.catalog import Catalog
from sendense.db.tables import __all__ as _tables

_log = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
# What a hub that starts waits for another one's migration; large catalogs take minutes.
WAIT_SECONDS_MAX = 600
ANSWER_SECONDS_MAX = 2 * 60 * 60  # an index over millions of rows, on a slow disk
VERSION_TABLE = "alembic_version"

assert _tables, "importing the tables is what fills Base.metadata"

# What is relied on: JSON, COLLATE and SET TRANSACTION are older; MariaDB's DDL is whole since 10.6.
_VERSIONS_MIN = {"postgresql": (13,), "mariadb": (10, 6)}


def find_revision(catalog: Catalog) -> str | None:
    """Return the revision that the database is at, None for an empty database."""
    with failure.translated(), catalog.engine.connect() as connection:
        return _read_revision(connection)


def newest_revision() -> str:
    """Return the revision that this code needs."""
    head = ScriptDirectory(str(MIGRATIONS)).get_current_head()
    assert head is not None, f"no migrations in {MIGRATIONS}"
    return head


def migrate(catalog: Catalog, *, to: str | None = None) -> None:
    """Bring the database to a revision, by default the newest; never to an older one.

    Of several processes one migrates and the others wait for it. An SQLite catalog is copied
    before it is changed. SQLite and PostgreSQL change wholly or not at all; an interrupted
    migration of MariaDB goes on when this is called again.

    Raises Invalid, kind `catalog-newer`, and changes nothing where the database was written by a
    newer version of the product; kind `database-unsupported` for a server that is too old or has
    another encoding; Conflict, kind `catalog-foreign`, where tables of somebody else are in the
    way; and what `failure.translated` promises.
    """
    wanted = to or newest_revision()
    _refuse_newer(wanted)
    revision = find_revision(catalog)
    _refuse_newer(revision)
    if revision == wanted:
        return
    try:
        with failure.translated(), configured(catalog) as config:
            command.upgrade(config, wanted)
    except Exception:
        _log.error(
            "the catalog could not be brought from revision %s to %s; start again to go on",
            revision,
            wanted,
        )
        raise
    _log.info("the catalog is at revision %s", wanted)


def check(catalog: Catalog) -> None:
    """Raise unless the database is at exactly the revision this code needs.

    For processes that must not migrate: raises Unavailable, kind `catalog-older`, where the hub
    has not migrated yet, and Invalid, kind `catalog-newer`, as `migrate` does.
    """
    revision = find_revision(catalog)
    _refuse_newer(revision)
    if revision != newest_revision():
        raise Unavailable(
            f"the catalog is at revision {revision}, this version needs {newest_revision()}",
            kind="catalog-older",
            hint="start `sendense serve` first: it brings the catalog up to date",
        )


@contextmanager
def configured(catalog: Catalog) -> Iterator[Config]:
    """Give what Alembic's commands need to work on a catalog.

    They get a connection of their own, which is closed at the end: locks and settings of the
    migration go with it. Its server may take long for an answer.
    """

    def prepare(inside: Connection) -> None:
        """Act inside the first transaction; from here on nobody else changes anything."""
        _refuse_old_server(inside)
        _PREPARE[inside.dialect.name](inside)
        revision = _read_revision(inside)
        _refuse_newer(revision)
        _refuse_foreign(inside)
        if inside.dialect.name == "sqlite" and revision not in {None, newest_revision()}:
            assert revision is not None, "it is not in the set"
            copies.put(catalog.url, revision, now=datetime.now(UTC))

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    engine = engines.create(catalog.url, answer_seconds_max=ANSWER_SECONDS_MAX)
    try:
        with engine.connect() as connection:
            config.attributes.update(connection=connection, prepare=prepare)
            yield config
    finally:
        engine.dispose()


def _prepare_sqlite(inside: Connection) -> None:
    """Do nothing: the transaction began with the write lock."""
    del inside


def _prepare_postgresql(inside: Connection) -> None:
    """Wait for writers and for others that migrate; the transaction holds all of the migration."""
    inside.exec_driver_sql(f"SET LOCAL lock_timeout = '{WAIT_SECONDS_MAX}s'")
    inside.exec_driver_sql(engines.LOCK_POSTGRESQL)
    encoding = inside.exec_driver_sql("SHOW server_encoding").scalar_one()
    if encoding != "UTF8":
        raise Invalid(
            f"the database's encoding is {encoding}, the catalog needs UTF8",
            kind="database-unsupported",
            hint="create the database anew with ENCODING 'UTF8' TEMPLATE template0",
        )


def _prepare_mariadb(inside: Connection) -> None:
    """Wait for others that migrate, and set what new tables get.

    The lock belongs to the connection, since every change of a table ends the transaction; names
    of locks belong to the server, so the database is part of this one.
    """
    database = hashlib.sha256(str(inside.engine.url.database).encode()).hexdigest()
    name = f"sendense.{database}"[:_LOCK_NAME_LENGTH_MAX]
    got = inside.execute(
        text("SELECT GET_LOCK(:name, :wait)"), {"name": name, "wait": WAIT_SECONDS_MAX}
    )
    if got.scalar_one() != 1:
        raise failure.CatalogUnavailable(
            "another process has been migrating the catalog for too long",
            hint="wait for the other hub, or end it where it stands still; then start again",
            kind="catalog-busy",
        )
    for statement in (
        f"SET SESSION lock_wait_timeout = {WAIT_SECONDS_MAX}",
        "SET SESSION default_storage_engine = InnoDB",
        "ALTER DATABASE CHARACTER SET = utf8mb4 COLLATE = utf8mb4_nopad_bin",
    ):
        inside.exec_driver_sql(statement)


_LOCK_NAME_LENGTH_MAX = 64  # MariaDB's own limit
_PREPARE = {
    "sqlite": _prepare_sqlite,
    "postgresql": _prepare_postgresql,
    "mariadb": _prepare_mariadb,
}


def _refuse_foreign(inside: Connection) -> None:
    """Refuse a database in which somebody else's tables have names of ours."""
    there = set(inspect(inside).get_table_names())
    taken = sorted(there & set(Base.metadata.tables))
    if taken and VERSION_TABLE not in there:
        raise Conflict(
            f"the database holds tables that are not the catalog's: {', '.join(taken)}",
            kind="catalog-foreign",
            hint="give the catalog a database of its own",
        )


def _refuse_old_server(connection: Connection) -> None:
    least = _VERSIONS_MIN.get(connection.dialect.name, ())
    version = connection.dialect.server_version_info or ()
    if version < least:
        raise Invalid(
            f"the database's server has version {_dotted(version)}, {_dotted(least)} is needed",
            kind="database-unsupported",
            hint="docs/operations/databases.md says which versions are tested",
        )


def _dotted(version: tuple[int | str, ...]) -> str:
    return ".".join(map(str, version))


def _read_revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _refuse_newer(revision: str | None) -> None:
    known = {script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()}
    if revision is not None and revision not in known:
        raise Invalid(
            f"the catalog is at revision {revision}, which this version does not know",
            kind="catalog-newer",
            hint="it was written by a newer sendense: start that version, or restore the catalog"
            " from a copy made before the upgrade",
        )
