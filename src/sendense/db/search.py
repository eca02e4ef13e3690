"""Conditions on texts that mean the same on every database."""

from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import String


class lowered(GenericFunction[str]):  # noqa: N801 - reads as the SQL function it is
    """A text in lower case, in every alphabet."""

    type = String()
    inherit_cache = True


@compiles(lowered)
def _lower(element: lowered, compiler: SQLCompiler, **more: Any) -> str:
    """Call what SQLite gets from us, and MariaDB has."""
    return f"lower({compiler.process(element.clauses, **more)})"


@compiles(lowered, "postgresql")
def _lower_postgresql(element: lowered, compiler: SQLCompiler, **more: Any) -> str:
    """Name a collation: that of our columns knows the English alphabet only."""
    return f'lower({compiler.process(element.clauses, **more)} COLLATE "und-x-icu")'


class exactly(GenericFunction[str]):  # noqa: N801 - reads as the SQL function it is
    """A text out of a JSON value, as it is."""

    type = String()
    inherit_cache = True


@compiles(exactly)
def _exactly(element: exactly, compiler: SQLCompiler, **more: Any) -> str:
    """Do nothing: such texts are compared by their code points."""
    return compiler.process(element.clauses, **more)


@compiles(exactly, "mariadb")
def _exactly_mariadb(element: exactly, compiler: SQLCompiler, **more: Any) -> str:
    """Name our collation: that of JSON would not see trailing blanks."""
    return f"({compiler.process(element.clauses, **more)} COLLATE utf8mb4_nopad_bin)"


def value_of(column: InstrumentedAttribute[dict[str, str]], key: str) -> ColumnElement[str]:
    """Return what a column of tags has under a key, as a text to compare; null without the key."""
    return exactly(column[key].as_string())


def contains(column: InstrumentedAttribute[Any], words: str) -> ColumnElement[bool]:
    """Whether a column's text holds some words, in upper or lower case; no sign is special."""
    return lowered(column).contains(words.lower(), autoescape=True)
