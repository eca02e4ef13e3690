"""What the databases' own errors mean."""

import sqlite3
from typing import Any

import psycopg
import pymysql
import pytest
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from sendense.core.errors import Corrupt, NoSpace, Unavailable
from sendense.db import failure
from sendense.db.failure import CatalogUnavailable, Trouble


def sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("words")
    error.sqlite_errorcode = code
    return error


def postgresql_error(state: str) -> Any:
    return psycopg.errors.lookup(state)("words")


def mariadb_error(code: int, words: str = "words") -> pymysql.err.OperationalError:
    return pymysql.err.OperationalError(code, words)


@pytest.mark.parametrize(
    ("raw", "trouble"),
    [
        (sqlite_error(sqlite3.SQLITE_BUSY), Trouble.BUSY),
        (sqlite_error(sqlite3.SQLITE_BUSY_SNAPSHOT), Trouble.BUSY),
        (sqlite_error(sqlite3.SQLITE_FULL), Trouble.FULL),
        (sqlite_error(sqlite3.SQLITE_IOERR_WRITE), Trouble.AWAY),
        (sqlite_error(sqlite3.SQLITE_READONLY_DBMOVED), Trouble.READ_ONLY),
        (sqlite_error(sqlite3.SQLITE_CORRUPT), Trouble.BROKEN),
        (sqlite_error(sqlite3.SQLITE_NOTADB), Trouble.BROKEN),
        (sqlite_error(sqlite3.SQLITE_ERROR), None),
        (postgresql_error("57P01"), Trouble.AWAY),
        (postgresql_error("57P03"), Trouble.AWAY),
        (postgresql_error("53300"), Trouble.AWAY),
        (postgresql_error("53100"), Trouble.FULL),
        (postgresql_error("55P03"), Trouble.BUSY),
        (postgresql_error("40P01"), Trouble.BUSY),
        (postgresql_error("25006"), Trouble.READ_ONLY),
        (postgresql_error("25P03"), Trouble.AWAY),
        (postgresql_error("28P01"), Trouble.DENIED),
        (postgresql_error("42501"), Trouble.DENIED),
        (postgresql_error("58030"), Trouble.AWAY),
        (postgresql_error("XX001"), Trouble.BROKEN),
        (postgresql_error("42P01"), None),
        (psycopg.OperationalError("connection refused"), Trouble.AWAY),
        (mariadb_error(2003), Trouble.AWAY),
        (mariadb_error(1205), Trouble.BUSY),
        (mariadb_error(1213), Trouble.BUSY),
        (mariadb_error(1045), Trouble.DENIED),
        (mariadb_error(1290), Trouble.READ_ONLY),
        (mariadb_error(1030, 'Got error 28 "No space left on device"'), Trouble.FULL),
        (mariadb_error(1026, "Error writing file (Errcode: 30: Read-only)"), Trouble.READ_ONLY),
        (mariadb_error(1030, 'Got error 5 "Input/output error"'), Trouble.AWAY),
        (mariadb_error(1054), None),
        (pymysql.err.InterfaceError(0, ""), Trouble.AWAY),
        (pymysql.err.OperationalError(), Trouble.AWAY),
    ],
)
def test_each_database_s_words_mean_the_same(raw: Exception, trouble: Trouble | None) -> None:
    assert failure.tell(OperationalError("SELECT", None, raw)) == trouble


def test_a_lost_connection_is_no_fault_of_the_statement() -> None:
    error = DBAPIError("SELECT", None, sqlite3.ProgrammingError("closed"))
    error.connection_invalidated = True
    assert failure.tell(error) is Trouble.AWAY
    assert (
        failure.tell(InterfaceError("SELECT", None, psycopg.InterfaceError("closed")))
        is Trouble.AWAY
    )


def test_a_pool_that_is_used_up_is_busy() -> None:
    with pytest.raises(CatalogUnavailable) as caught, failure.translated():
        raise PoolTimeoutError("QueuePool limit of size 10 overflow 40 reached")
    assert caught.value.kind == "catalog-busy"


def test_a_violated_rule_stays_what_it_is() -> None:
    with pytest.raises(IntegrityError), failure.translated():
        raise IntegrityError("INSERT", None, pymysql.err.IntegrityError(1062, "Duplicate entry"))


@pytest.mark.parametrize(
    ("code", "kind", "types"),
    [
        (sqlite3.SQLITE_BUSY, "catalog-busy", (CatalogUnavailable,)),
        (sqlite3.SQLITE_IOERR, "catalog-unavailable", (CatalogUnavailable,)),
        (sqlite3.SQLITE_FULL, "catalog-full", (CatalogUnavailable, NoSpace)),
        (sqlite3.SQLITE_READONLY, "catalog-read-only", (CatalogUnavailable, Unavailable)),
        (sqlite3.SQLITE_PERM, "catalog-denied", (CatalogUnavailable,)),
        (sqlite3.SQLITE_CORRUPT, "catalog-damaged", (Corrupt,)),
    ],
)
def test_trouble_has_a_kind_a_hint_and_its_cause(
    code: int, kind: str, types: tuple[type, ...], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises((CatalogUnavailable, Corrupt)) as caught, failure.translated():
        raise OperationalError("SELECT secret", None, sqlite_error(code))
    assert caught.value.kind == kind
    assert caught.value.hint
    assert isinstance(caught.value.__cause__, OperationalError)
    assert all(isinstance(caught.value, one) for one in types)
    assert "words" in caplog.text
    assert "secret" not in caplog.text
