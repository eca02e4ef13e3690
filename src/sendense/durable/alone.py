"""One process at a time, among all that share a catalog.

The lock lives where the live set lives, in the catalog: all workers of one engine share one. With
an SQLite catalog all are on one machine, and a locked file will do. On a server it is the server's
advisory lock, on a connection that the server throws out where its holder froze: a process on
another machine cannot be ended from here.

Whoever holds it still acts as if it might have lost it: a lock that goes by time is no proof.
"""

import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import Connection

from sendense.db.catalog import Catalog

_log = logging.getLogger(__name__)

_MILLISECONDS = 1000
_KEY_BYTES = 8  # PostgreSQL's advisory locks are numbers of 64 bits


@contextmanager
def alone(
    name: str, catalog: Catalog, *, lock_folder: Path, idle_seconds_max: float
) -> Iterator[bool]:
    """Give True to one process at a time, False at once to all others.

    `idle_seconds_max` is how long a server keeps the lock for a holder that it does not hear of.
    """
    backend = catalog.url.get_backend_name()
    if backend == "sqlite":
        with _by_file(lock_folder / f"{name}.lock") as got:
            yield got
        return
    with catalog.engine.connect() as connection:
        take = _take_postgresql if backend == "postgresql" else _take_mariadb
        got = take(connection, f"sendense.{name}", idle_seconds_max)
        try:
            yield got
        finally:
            # Closed, not handed back: the lock goes with it, even where the server is gone.
            connection.invalidate()


@contextmanager
def _by_file(path: Path) -> Iterator[bool]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(lock)


def _take_postgresql(connection: Connection, name: str, idle_seconds_max: float) -> bool:
    """Lock until the transaction ends; the server ends one that is idle for too long."""
    digest = hashlib.sha256(name.encode()).digest()[:_KEY_BYTES]
    idle = str(int(idle_seconds_max * _MILLISECONDS))
    return bool(
        connection.scalar(
            sa.text(
                "SELECT pg_try_advisory_xact_lock(:key) FROM"
                " set_config('idle_in_transaction_session_timeout', :idle, true)"
            ),
            {"key": int.from_bytes(digest, "big", signed=True), "idle": idle},
        )
    )


def _take_mariadb(connection: Connection, name: str, idle_seconds_max: float) -> bool:
    """Lock for this connection; the server closes one that is idle for too long.

    Names of locks are the server's, shared by all of its databases.
    """
    seconds = max(1, int(idle_seconds_max))
    connection.execute(sa.text(f"SET SESSION wait_timeout = {seconds}"))
    full = hashlib.sha256(f"{connection.engine.url.database}.{name}".encode()).hexdigest()[:32]
    return bool(connection.scalar(sa.text("SELECT GET_LOCK(:name, 0)"), {"name": full}))
