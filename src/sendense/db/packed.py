"""Rows of another table within a column: one question instead of two, one text instead of cells."""

import json
from collections.abc import Iterable
from typing import Any

from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import Text


class packed(GenericFunction[str]):  # noqa: N801 - reads as the SQL function it is
    """An aggregate: the values of rows, in no order, as JSON; for `unpack`.

    Null where there are no rows, on some databases. The columns are texts and numbers.
    """

    type = Text()
    inherit_cache = True


@compiles(packed, "sqlite")
def _pack_sqlite(element: packed, compiler: SQLCompiler, **more: Any) -> str:
    return f"json_group_array(json_array({compiler.process(element.clauses, **more)}))"


@compiles(packed, "postgresql")
def _pack_postgresql(element: packed, compiler: SQLCompiler, **more: Any) -> str:
    values = compiler.process(element.clauses, **more)
    return f"CAST(json_agg(json_build_array({values})) AS TEXT)"


@compiles(packed, "mariadb")
def _pack_mariadb(element: packed, compiler: SQLCompiler, **more: Any) -> str:
    """Cut at `group_concat_max_len`, which connections set."""
    return f"json_arrayagg(json_array({compiler.process(element.clauses, **more)}))"


def unpack(texts: Iterable[str | None]) -> list[list[list[Any]]]:
    """Return the rows of texts by `packed`; to read all at once takes a fifth of the time."""
    found: list[list[list[Any]]] = json.loads(f"[{','.join(text or '[]' for text in texts)}]")
    return found
