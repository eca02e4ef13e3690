"""Engines for the three databases, made to behave alike.

Each says how a transaction begins: one that reads has one consistent view for its whole length; one
that writes has the catalog's one write lock from its first moment on. The lock goes with the
transaction, however that ends. Servers throw out whoever stands still inside a transaction.
"""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from pymysql.constants import FIELD_TYPE
from pymysql.converters import conversions
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.pool import ConnectionPoolEntry

# Longer than any transaction of ours; a writer that waits this long has met a bug or a dead disk.
BUSY_SECONDS_MAX = 30.0
# A step between two statements takes milliseconds; whoever needs this long is frozen.
PACKED_BYTES_MAX = 1 << 24  # of `packed` rows in MariaDB: 30,000 disks in one backup
IDLE_SECONDS_MAX = 10
CONNECT_SECONDS_MAX = 10
# A server that is dead or cut off is given up after this; longer than the wait for a lock.
ANSWER_SECONDS_MAX = 60
RECYCLE_SECONDS = 600  # firewalls forget silent connections after some more
CACHE_KIB = 16_384  # of each SQLite connection: the pages of a chain of a thousand
CONNECTIONS_KEPT = 10
CONNECTIONS_MAX = 50  # above the 40 threads in which the API runs its routes
_MILLISECONDS = 1000

# Execution options of a connection: what its transactions are for. On SQLite whatever does not
# only read has the write lock; on a server whatever has neither option is an ordinary transaction.
READS = "sendense_reads"
WRITES = "sendense_writes"

# Locks of PostgreSQL are numbers, of each database its own; this one is "sendense" in ASCII.
LOCK_POSTGRESQL = f"SELECT pg_advisory_xact_lock({int.from_bytes(b'sendense', 'big')})"


def create(url: URL, *, answer_seconds_max: int = ANSWER_SECONDS_MAX) -> Engine:
    """Return an engine for a URL that `url.parse` gave; the caller disposes of it.

    A MariaDB that says nothing for `answer_seconds_max` is given up. A PostgreSQL is, where its
    machine no longer answers.
    """
    backend = url.get_backend_name()
    if backend == "sqlite":
        return _create_sqlite(url)
    if backend == "postgresql":
        return _create_postgresql(url)
    return _create_mariadb(url, answer_seconds_max)


def _create_sqlite(url: URL) -> Engine:
    engine = _create(
        url,
        _begin_sqlite,
        connect_args={"timeout": BUSY_SECONDS_MAX},
        json_deserializer=_read_json,
    )
    event.listen(engine, "connect", _prepare_sqlite)
    return engine


def _create_postgresql(url: URL) -> Engine:
    options = {
        "timezone": "UTC",
        "lock_timeout": int(BUSY_SECONDS_MAX * _MILLISECONDS),
        "idle_in_transaction_session_timeout": IDLE_SECONDS_MAX * _MILLISECONDS,
        "default_transaction_isolation": r"read\ committed",
        # Solid-state disks; by its default of 4, PostgreSQL reads whole tables instead of the
        # indexes that lists are made for, which takes twice as long.
        "random_page_cost": 1.1,
    }
    given = url.query.get("options", "")
    words = [given if isinstance(given, str) else " ".join(given)]
    words.extend(f"-c {name}={value}" for name, value in options.items())
    return _create(
        url,
        _begin_postgresql,
        json_deserializer=_read_json_bytes,
        connect_args={
            "client_encoding": "utf8",
            "connect_timeout": CONNECT_SECONDS_MAX,
            "application_name": "sendense",
            "options": " ".join(words).strip(),
            # A machine that is gone without a word is noticed within half a minute.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 4,
            "tcp_user_timeout": int(BUSY_SECONDS_MAX * _MILLISECONDS),
        },
        pool_pre_ping=True,
        pool_recycle=RECYCLE_SECONDS,
    )


def _create_mariadb(url: URL, answer_seconds_max: int) -> Engine:
    session = {
        "sql_mode": "'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,ERROR_FOR_DIVISION_BY_ZERO'",
        "time_zone": "'+00:00'",
        "collation_connection": "utf8mb4_nopad_bin",
        "tx_isolation": "'READ-COMMITTED'",
        "innodb_lock_wait_timeout": int(BUSY_SECONDS_MAX),
        "lock_wait_timeout": int(BUSY_SECONDS_MAX),
        "idle_transaction_timeout": IDLE_SECONDS_MAX,
        "group_concat_max_len": PACKED_BYTES_MAX,
    }
    return _create(
        url.update_query_dict({"charset": "utf8mb4"}),
        _begin_mariadb,
        json_deserializer=_read_json,
        connect_args={
            "connect_timeout": CONNECT_SECONDS_MAX,
            "read_timeout": answer_seconds_max,
            "write_timeout": answer_seconds_max,
            # The driver's own reads each moment by a regular expression, at ten times the cost.
            "conv": {**conversions, FIELD_TYPE.DATETIME: datetime.fromisoformat},
            "init_command": "SET "
            + ", ".join(f"SESSION {name} = {value}" for name, value in session.items()),
        },
        pool_pre_ping=True,
        pool_recycle=RECYCLE_SECONDS,
    )


def _create(url: URL, begin: Callable[[Connection], None], **more: Any) -> Engine:
    engine = create_engine(
        url,
        hide_parameters=True,  # what users wrote has no place in messages
        pool_size=CONNECTIONS_KEPT,
        max_overflow=CONNECTIONS_MAX - CONNECTIONS_KEPT,
        pool_timeout=BUSY_SECONDS_MAX,
        **more,
    )
    event.listen(engine, "begin", begin)
    return engine


def _read_json(text: str) -> Any:
    """Read JSON; most lists and objects of ours are empty, and known at a glance."""
    if text == "[]":
        return []
    if text == "{}":
        return {}
    return json.loads(text)


def _read_json_bytes(data: bytes) -> Any:
    """Read JSON as psycopg gives it: UTF-8, which need not be found out for each value."""
    return _read_json(data.decode())


def _prepare_sqlite(connection: Any, record: ConnectionPoolEntry) -> None:
    del record
    connection.isolation_level = None  # the driver's own BEGIN comes too late; see _begin_sqlite
    # As str.lower does, in all alphabets; SQLite's own knows the English one.
    connection.create_function("lower", 1, _lower, deterministic=True)
    cursor = connection.cursor()
    for pragma in (
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = FULL",  # what the catalog has confirmed survives a power failure
        "PRAGMA foreign_keys = ON",
        # A chain's rows lie on as many pages as it has members. KiB; by default it is 2000.
        f"PRAGMA cache_size = -{CACHE_KIB}",
    ):
        cursor.execute(pragma)
    cursor.close()


def _lower(text: Any) -> Any:
    return text.lower() if isinstance(text, str) else text


def _begin_sqlite(connection: Connection) -> None:
    """Take the write lock at once: a reader that turns writer half-way cannot wait for it."""
    reads = connection.get_execution_options().get(READS, False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _begin_postgresql(connection: Connection) -> None:
    """Take the write lock; a reader's snapshot is taken with its first statement."""
    options = connection.get_execution_options()
    if options.get(READS, False):
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    elif options.get(WRITES, False):
        connection.exec_driver_sql(LOCK_POSTGRESQL)


def _begin_mariadb(connection: Connection) -> None:
    """Take the write lock, the row that every migrated catalog has; or the reader's snapshot.

    A row goes with the transaction; a lock by name would belong to the connection, and to the
    server with all its databases.
    """
    options = connection.get_execution_options()
    if options.get(READS, False):
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.exec_driver_sql("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
    elif options.get(WRITES, False):
        connection.exec_driver_sql("SELECT version_num FROM alembic_version FOR UPDATE")
