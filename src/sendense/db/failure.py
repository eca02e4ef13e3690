"""What a database's own errors mean: one vocabulary for three databases.

A statement that is wrong (a violated constraint, a missing column) is a bug or a race that the
caller knows of, and stays as SQLAlchemy raises it. Where the database itself is the matter, the
caller gets a CatalogUnavailable: it may be asked again.
"""

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from sendense.core.errors import Corrupt, NoSpace, SendenseError, Unavailable

_log = logging.getLogger(__name__)


class CatalogUnavailable(Unavailable):
    """The catalog's database does not do what it is asked; it may if asked again."""

    default_kind = "catalog-unavailable"


class CatalogFull(CatalogUnavailable, NoSpace):
    """The disk of the catalog's database is full; nothing of the transaction was kept."""

    default_kind = "catalog-full"


class Trouble(StrEnum):
    """What can be the matter with a database."""

    AWAY = "away"
    BUSY = "busy"
    FULL = "full"
    READ_ONLY = "read-only"
    DENIED = "denied"
    BROKEN = "broken"


_SQLITE = {
    sqlite3.SQLITE_BUSY: Trouble.BUSY,
    sqlite3.SQLITE_LOCKED: Trouble.BUSY,
    sqlite3.SQLITE_FULL: Trouble.FULL,
    sqlite3.SQLITE_READONLY: Trouble.READ_ONLY,
    sqlite3.SQLITE_PERM: Trouble.DENIED,
    sqlite3.SQLITE_IOERR: Trouble.AWAY,
    sqlite3.SQLITE_CANTOPEN: Trouble.AWAY,
    sqlite3.SQLITE_NOMEM: Trouble.AWAY,
    sqlite3.SQLITE_PROTOCOL: Trouble.BUSY,
    sqlite3.SQLITE_CORRUPT: Trouble.BROKEN,
    sqlite3.SQLITE_NOTADB: Trouble.BROKEN,
}
_SQLITE_PRIMARY = 0xFF  # the lowest byte of an extended code

# SQL states, by their longest known beginning; https://www.postgresql.org/docs/15/errcodes-appendix.html
_POSTGRESQL = {
    "08": Trouble.AWAY,
    "25006": Trouble.READ_ONLY,
    "25P03": Trouble.AWAY,  # idle for too long inside a transaction: this process stood still
    "28": Trouble.DENIED,
    "3D000": Trouble.AWAY,
    "40001": Trouble.BUSY,
    "40P01": Trouble.BUSY,
    "42501": Trouble.DENIED,
    "53": Trouble.AWAY,
    "53100": Trouble.FULL,
    "55P03": Trouble.BUSY,
    "57": Trouble.AWAY,
    "57014": Trouble.BUSY,
    "58": Trouble.AWAY,
    "XX001": Trouble.BROKEN,
    "XX002": Trouble.BROKEN,
}
_STATE_LENGTH, _CLASS_LENGTH = 5, 2

# https://mariadb.com/kb/en/mariadb-error-code-reference/, and from 2000 on those of the client.
_MARIADB = {
    1021: Trouble.FULL,
    1040: Trouble.AWAY,  # too many connections
    1044: Trouble.DENIED,
    1045: Trouble.DENIED,
    1049: Trouble.AWAY,  # no such database
    1053: Trouble.AWAY,
    1114: Trouble.FULL,
    1142: Trouble.DENIED,
    1143: Trouble.DENIED,
    1203: Trouble.AWAY,
    1205: Trouble.BUSY,
    1213: Trouble.BUSY,
    1226: Trouble.AWAY,
    1290: Trouble.READ_ONLY,
    1317: Trouble.BUSY,
    1698: Trouble.DENIED,
    1836: Trouble.READ_ONLY,
    1927: Trouble.AWAY,  # killed, e.g. for standing still inside a transaction
    1969: Trouble.BUSY,
    **dict.fromkeys((2002, 2003, 2006, 2013, 2014, 2026, 2055, 4031), Trouble.AWAY),
}
_MARIADB_DISK = {1026, 1030}  # a storage engine's trouble; its number is in the text
_ENOSPC, _EROFS = 28, 30

_KIND_OF_TROUBLE = {
    Trouble.AWAY: "catalog-unavailable",
    Trouble.BUSY: "catalog-busy",
    Trouble.READ_ONLY: "catalog-read-only",
    Trouble.DENIED: "catalog-denied",
}
_TOLD = {
    Trouble.AWAY: (
        "the catalog does not answer",
        "try again; if it lasts, look at the database's server or disk",
    ),
    Trouble.BUSY: (
        "the catalog is busy: somebody else has been writing for too long",
        "try again; if it lasts, look for a process that stands still inside a transaction",
    ),
    Trouble.FULL: ("the disk of the catalog is full", "make room there, then try again"),
    Trouble.READ_ONLY: (
        "the catalog cannot be written to",
        "look whether the disk was mounted read-only, or the server is a stand-by",
    ),
    Trouble.DENIED: (
        "the catalog's database refuses this user",
        "look at user, password and privileges; docs/operations/databases.md names them",
    ),
    Trouble.BROKEN: (
        "the catalog's database is damaged",
        "look for disk errors in the kernel's log; if it stays so, bring back a copy",
    ),
}


@contextmanager
def translated() -> Iterator[None]:
    """Let a database's trouble in the block out as an error of ours.

    Raises CatalogUnavailable, kind `catalog-unavailable`, `-busy`, `-full`, `-read-only` or
    `-denied`, and Corrupt, kind `catalog-damaged`. Other errors pass as they are.
    """
    try:
        yield
    except (DBAPIError, PoolTimeoutError) as error:
        trouble = tell(error)
        if trouble is None:
            raise
        # The server's own words, for the log only: they may name hosts and users.
        _log.warning("%s: %s", _TOLD[trouble][0], _words(error))
        raise _describe(trouble) from error


def tell(error: DBAPIError | PoolTimeoutError) -> Trouble | None:
    """Return what is the matter with the database; None where it is the statement."""
    if isinstance(error, PoolTimeoutError):
        return Trouble.BUSY
    found = _tell_by_code(error.orig)
    if found is None and (error.connection_invalidated or _is_nameless(error)):
        return Trouble.AWAY
    return found


def _tell_by_code(raw: Any) -> Trouble | None:
    if isinstance(raw, sqlite3.Error):
        return _SQLITE.get(getattr(raw, "sqlite_errorcode", 0) & _SQLITE_PRIMARY)
    code = raw.args[0] if raw.args else None
    if isinstance(code, int):  # only MariaDB's driver puts a number first
        return _tell_by_errno(str(raw)) if code in _MARIADB_DISK else _MARIADB.get(code)
    state = getattr(raw, "sqlstate", None) or ""
    known = (_POSTGRESQL.get(state[:length]) for length in (_STATE_LENGTH, _CLASS_LENGTH))
    return next((one for one in known if one is not None), None)


def _tell_by_errno(text: str) -> Trouble:
    for number, trouble in ((_ENOSPC, Trouble.FULL), (_EROFS, Trouble.READ_ONLY)):
        if f" {number} " in text or f"{number}: " in text:
            return trouble
    return Trouble.AWAY


def _is_nameless(error: DBAPIError) -> bool:
    """Whether a server was not reached or fell silent: its driver has no code for that."""
    raw: Any = error.orig
    if isinstance(raw, sqlite3.Error) or not isinstance(error, OperationalError | InterfaceError):
        return False
    code = raw.args[0] if raw.args else None
    return getattr(raw, "sqlstate", None) is None and not (isinstance(code, int) and code)


def _words(error: DBAPIError | PoolTimeoutError) -> str:
    raw = error.orig if isinstance(error, DBAPIError) else error
    return " ".join(str(raw).split()) or type(raw).__name__


def _describe(trouble: Trouble) -> SendenseError:
    message, hint = _TOLD[trouble]
    if trouble is Trouble.BROKEN:
        return Corrupt(message, hint=hint, kind="catalog-damaged")
    if trouble is Trouble.FULL:
        return CatalogFull(message, hint=hint)
    return CatalogUnavailable(message, hint=hint, kind=_KIND_OF_TROUBLE[trouble])
