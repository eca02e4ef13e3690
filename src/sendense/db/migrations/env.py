"""Runs the migrations: on the connection it is handed, or for `alembic revision` on a fresh one."""

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import JSON, BigInteger, Connection

from sendense.core.errors import Corrupt
from sendense.db.base import Base, UtcDateTime
from sendense.db.catalog import Catalog
from sendense.db.tables import __all__ as _tables

assert _tables, "importing the tables is what fills Base.metadata"


def _render(kind: str, item: Any, autogenerate_context: AutogenContext) -> str | Literal[False]:
    """Name our own types by their own names."""
    if kind != "type":
        return False
    for name, matches in {
        "UtcDateTime()": isinstance(item, UtcDateTime),
        "BIG_INT": isinstance(item, BigInteger),
        "JSON_VALUE": isinstance(item, JSON),
    }.items():
        if matches:
            autogenerate_context.imports.add(f"from sendense.db.base import {name.rstrip('()')}")
            return name
    return False


def _run(connection: Connection) -> None:
    """Migrate in one transaction where the database can.

    SQLite rebuilds a table to alter it; with foreign keys on, that cascades deletes. Hence they
    are off while the migrations run, and checked before the commit.
    """
    sqlite = connection.dialect.name == "sqlite"
    driver: Any = connection.connection.driver_connection
    if sqlite:
        driver.execute("PRAGMA foreign_keys = OFF")  # of no effect inside a transaction
    try:
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=True,
            compare_type=True,
            render_item=_render,
            transactional_ddl=True if sqlite else None,
        )
        with context.begin_transaction():
            context.run_migrations()
            if sqlite:
                _check_references(connection)
    finally:
        if sqlite:
            connection.rollback()
            driver.execute("PRAGMA foreign_keys = ON")


def _check_references(connection: Connection) -> None:
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
    if broken:
        raise Corrupt(f"the migration left rows that refer to nothing: {broken[:5]}")


def _main() -> None:
    handed: Connection | None = context.config.attributes.get("connection")
    if handed is not None:
        _run(handed)
        return
    # `alembic revision --autogenerate` compares the models with what the migrations make.
    catalog = Catalog("sqlite://")
    with catalog.engine.connect() as connection:
        _run(connection)
    catalog.close()


_main()
