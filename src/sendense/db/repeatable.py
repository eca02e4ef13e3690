"""Migrations on MariaDB, which commits with every change of a table.

A migration that was interrupted has done some of its statements. It is run again from its start, so
each of them must do nothing where it is done already: MariaDB has a word for that in every one.
Each statement itself is done whole or not at all (MariaDB 10.6 and later).
"""

import re
from typing import Any

_IF_NOT_EXISTS = r"\g<0> IF NOT EXISTS"
_IF_EXISTS = r"\g<0> IF EXISTS"
_WORDS = (
    (re.compile(r"^\s*CREATE (TABLE|(UNIQUE )?INDEX)(?! IF NOT)", re.IGNORECASE), _IF_NOT_EXISTS),
    (re.compile(r"^\s*DROP (TABLE|INDEX)(?! IF)", re.IGNORECASE), _IF_EXISTS),
    (
        re.compile(r"^\s*ALTER TABLE \S+ ADD (COLUMN|CONSTRAINT)(?! IF NOT)", re.IGNORECASE),
        _IF_NOT_EXISTS,
    ),
    (
        re.compile(
            r"^\s*ALTER TABLE \S+ DROP (COLUMN|CONSTRAINT|FOREIGN KEY)(?! IF)", re.IGNORECASE
        ),
        _IF_EXISTS,
    ),
)


def rewrite(
    connection: Any, cursor: Any, statement: str, parameters: Any, execution: Any, many: Any
) -> tuple[str, Any]:
    """Return a statement that may be executed twice, with its parameters."""
    del connection, cursor, execution, many
    return make(statement), parameters


def make(statement: str) -> str:
    """Return what does the same as a statement, or nothing where that is done."""
    for pattern, replacement in _WORDS:
        statement, count = pattern.subn(replacement, statement)
        if count:
            break
    return statement
