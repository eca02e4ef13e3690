"""Runs the migrations on the connection that `db.schema` hands over, and throws away after it."""

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import JSON, BigInteger, Connection, Float, String, event

from sendense.core.errors import Corrupt
from sendense.db import repeatable
from sendense.db.base import Base, UtcDateTime
from sendense.db.tables import __all__ as _tables

assert _tables, "importing the tables is what fills Base.metadata"


def _render(kind: str, item: Any, autogenerate_context: AutogenContext) -> str | Literal[False]:
    """Name our own types by their own names."""
    if kind != "type":
        return False
    length = getattr(item, "length", None)
    for name, matches in {
        "UtcDateTime()": isinstance(item, UtcDateTime),
        "BIG_INT": isinstance(item, BigInteger),
        "FLOAT": isinstance(item, Float) and not item.precision,
        "JSON_VALUE": isinstance(item, JSON),
        f"text({length})": isinstance(item, String),
    }.items():
        if matches:
            autogenerate_context.imports.add(
                f"from sendense.db.base import {name.partition('(')[0]}"
            )
            return name
    return False


def _run(connection: Connection) -> None:
    """Migrate in one transaction where the database can, else so that it can be run again.

    SQLite rebuilds a table to alter it; with foreign keys on, that cascades deletes. Hence they
    are off on this connection, and checked before the commit.
    """
    name = connection.dialect.name
    if name == "sqlite":
        driver: Any = connection.connection.driver_connection
        driver.execute("PRAGMA foreign_keys = OFF")  # of no effect inside a transaction
    if name == "mariadb":
        event.listen(connection, "before_cursor_execute", repeatable.rewrite, retval=True)
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,
        compare_type=True,
        render_item=_render,
        transactional_ddl=name != "mariadb",
        transaction_per_migration=name == "mariadb",
    )
    with context.begin_transaction():
        context.config.attributes["prepare"](connection)
        context.run_migrations()
        if name == "sqlite":
            _check_references(connection)


def _check_references(connection: Connection) -> None:
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
    if broken:
        raise Corrupt(f"the migration left rows that refer to nothing: {broken[:5]}")


_run(context.config.attributes["connection"])
