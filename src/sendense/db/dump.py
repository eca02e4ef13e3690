"""All rows of a catalog as JSON values, and back into an empty one: on any of the databases.

Left out is what belongs to running processes: who works, and which engine they share.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sendense.core import clock
from sendense.core.errors import Conflict, Corrupt
from sendense.db import schema
from sendense.db.base import Base, UtcDateTime
from sendense.db.catalog import Catalog

LEFT_OUT = frozenset({"workers", "take_overs", "job_engine"})
ROWS_AT_ONCE = 500  # read or written: some hundred KiB

Row = tuple[str, dict[str, Any]]


def read_rows(session: Session) -> Iterator[Row]:
    """Yield every row with its table's name; tables after those that they refer to."""
    for table in Base.metadata.sorted_tables:
        if table.name in LEFT_OUT:
            continue
        query = sa.select(table).execution_options(yield_per=ROWS_AT_ONCE)
        for row in session.execute(query):
            yield table.name, {key: _dump(value) for key, value in row._mapping.items()}  # noqa: SLF001 - its public name


def require_empty(catalog: Catalog) -> None:
    """Raise Conflict, kind `catalog-not-empty`, where a catalog has rows."""
    with catalog.read() as session:
        there = set(sa.inspect(session.connection()).get_table_names())
        for table in Base.metadata.sorted_tables:
            if table.name in LEFT_OUT or table.name not in there:
                continue
            if session.scalar(sa.select(sa.literal(1)).select_from(table).limit(1)):
                raise Conflict(
                    f"the catalog is not empty: table {table.name} has rows",
                    kind="catalog-not-empty",
                    hint="restore into a new data directory or database; a hub that has begun to"
                    " work can import the repositories instead",
                )


def restore(catalog: Catalog, revision: str, rows: Iterable[Row]) -> None:
    """Fill an empty catalog with rows that were read at a revision, then bring it up to date.

    The rows come whole or not at all, in one transaction. Raises Conflict, kind
    `catalog-not-empty`; Invalid, kind `catalog-newer`, for a revision that is not known; Corrupt,
    kind `hub-export-damaged`, for rows that fit no table.
    """
    require_empty(catalog)
    schema.migrate(catalog, to=revision)
    with catalog.write() as session:
        _write_rows(session, rows)
    schema.migrate(catalog)


def _write_rows(session: Session, rows: Iterable[Row]) -> None:
    """Insert rows; references within a table are set when all of its rows are there."""
    tables: dict[str, sa.Table] = {}
    links: dict[str, list[dict[str, Any]]] = {}
    waiting: list[dict[str, Any]] = []
    last = ""
    for name, row in rows:
        if name != last or len(waiting) >= ROWS_AT_ONCE:
            _insert(session, tables.get(last), waiting)
            waiting, last = [], name
        if name not in tables:
            tables[name] = _reflect(session, name)
        values = _load_row(tables[name], row)
        links.setdefault(name, []).extend(_take_links(tables[name], values))
        waiting.append(values)
    _insert(session, tables.get(last), waiting)
    for name, table in tables.items():
        _link(session, table, links[name])
        _go_on_counting(session, table)


def _take_links(table: sa.Table, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Take out of a row what refers to other rows of its table, as parameters of `_link`."""
    own = {
        one.parent.name
        for one in table.foreign_keys
        if one.target_fullname.startswith(f"{table.name}.")
    }
    taken = [(name, values.pop(name)) for name in sorted(own & values.keys())]
    return [
        {"column": name, "own_id": values["id"], "other_id": other}
        for name, other in taken
        if other is not None
    ]


def _link(session: Session, table: sa.Table, links: list[dict[str, Any]]) -> None:
    for column in sorted({one["column"] for one in links}):
        statement = (
            sa.update(table)
            .where(table.c.id == sa.bindparam("own_id"))
            .values({column: sa.bindparam("other_id")})
        )
        parameters = [one for one in links if one["column"] == column]
        for start in range(0, len(parameters), ROWS_AT_ONCE):
            session.connection().execute(
                statement,
                [
                    {"own_id": one["own_id"], "other_id": one["other_id"]}
                    for one in parameters[start : start + ROWS_AT_ONCE]
                ],
            )


def _insert(session: Session, table: sa.Table | None, rows: list[dict[str, Any]]) -> None:
    if table is not None and rows:
        session.connection().execute(sa.insert(table), rows)


def _reflect(session: Session, name: str) -> sa.Table:
    """Return a table as the database has it now, with the types that its columns have for us."""
    if name in LEFT_OUT or name not in Base.metadata.tables:
        raise _damaged(f"it holds rows of a table {name!r:.80}")
    found = sa.Table(name, sa.MetaData(), autoload_with=session.connection())
    known = Base.metadata.tables[name].columns
    for column in found.columns:
        if column.name in known:
            column.type = known[column.name].type
    return found


def _load_row(table: sa.Table, row: dict[str, Any]) -> dict[str, Any]:
    strange = row.keys() - table.columns.keys()
    if strange:
        raise _damaged(f"table {table.name} has no column {min(strange)!r:.80}")
    return {key: _load(table.columns[key], value) for key, value in row.items()}


def _dump(value: Any) -> Any:
    return clock.format_utc(value) if isinstance(value, datetime) else value


def _load(column: sa.Column[Any], value: Any) -> Any:
    if value is None or not isinstance(column.type, UtcDateTime):
        return value
    try:
        return clock.parse_utc(value)
    except (TypeError, ValueError) as error:
        raise _damaged(f"column {column.name} holds no time: {value!r:.80}") from error


def _go_on_counting(session: Session, table: sa.Table) -> None:
    """Let PostgreSQL number new rows from behind those that brought their numbers along."""
    column = table.autoincrement_column
    if column is None or session.connection().dialect.name != "postgresql":
        return
    sequence = session.scalar(sa.select(sa.func.pg_get_serial_sequence(table.name, column.name)))
    if sequence is not None:
        last = sa.select(sa.func.coalesce(sa.func.max(column), 0) + 1).scalar_subquery()
        session.execute(sa.select(sa.func.setval(sequence, last, sa.false())))


def _damaged(what: str) -> Corrupt:
    return Corrupt(f"the export cannot be restored: {what}", kind="hub-export-damaged")
