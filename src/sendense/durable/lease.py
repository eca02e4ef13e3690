"""A worker's lease: the row that says it is alive, by the database's clock.

A lease is written before the engine starts, so that no workflow is ever held by an executor nobody
has heard of. A worker whose lease is stale may already have been replaced: it ends itself at once,
without a further step. On one machine a lock file says sooner than the clock that a worker is dead.
"""

import fcntl
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import ColumnElement

from sendense.db.catalog import Catalog
from sendense.db.tables.workers import WorkerRow

_log = logging.getLogger(__name__)

EXIT_LEASE_LOST = 70  # BSD's EX_SOFTWARE; the supervisor starts a new worker
_BEATS_PER_LEASE = 4  # three beats may fail before anybody worries
_STALE_SHARE = 0.8  # of a lease: the worker gives up well before others take over …
_DEAD_SHARE = 1.5  # … at this share of a lease


class epoch_now(ColumnElement[float]):  # noqa: N801 - reads as the SQL function it is
    """The database's clock as seconds since 1970: the same for every worker, whatever its own."""

    inherit_cache = True
    type = sa.Double()


@compiles(epoch_now, "sqlite")
def _epoch_sqlite(_element: epoch_now, _compiler: SQLCompiler, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(epoch_now, "postgresql")
def _epoch_postgresql(_element: epoch_now, _compiler: SQLCompiler, **_: Any) -> str:
    return "extract(epoch from clock_timestamp())"


@compiles(epoch_now, "mysql", "mariadb")
def _epoch_mariadb(_element: epoch_now, _compiler: SQLCompiler, **_: Any) -> str:
    return "(unix_timestamp(sysdate(6)))"


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker that holds a lease."""

    worker_id: str
    host: str
    pid: int
    age_seconds: float


def end_process() -> None:
    """End this process without any clean-up: clean-up is what must not happen any more."""
    os._exit(EXIT_LEASE_LOST)


def _awake_seconds() -> float:
    """Return monotonic seconds that go on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Lease:
    """The lease of this process. `acquire`, then `check` before whatever destroys something."""

    def __init__(
        self,
        catalog: Catalog,
        *,
        worker_id: str,
        lease_seconds: float,
        lock_folder: Path,
        on_lost: Callable[[], None] = end_process,
    ) -> None:
        self._catalog = catalog
        self.worker_id = worker_id
        self.lease_seconds = lease_seconds
        self._lock_path = lock_path(lock_folder, worker_id)
        self._on_lost = on_lost
        self._lock: int | None = None
        self._beat_at = 0.0
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Write the row, take the lock file and keep both until `release`."""
        self._lock_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        asked = _awake_seconds()
        with self._catalog.write() as session:
            session.execute(
                sa.insert(WorkerRow).values(
                    id=self.worker_id,
                    host=socket.gethostname(),
                    pid=os.getpid(),
                    started_at=epoch_now(),
                    beat_at=epoch_now(),
                )
            )
        self._beat_at = asked
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Return while the lease is good; else end this process at once."""
        if _awake_seconds() - self._beat_at > self.lease_seconds * _STALE_SHARE:
            _log.error("worker %s lost its lease and ends itself", self.worker_id)
            self._on_lost()

    def beat(self) -> None:
        """Renew the row. A row that somebody removed means that the jobs are no longer ours."""
        asked = _awake_seconds()  # before the answer: the database's time is at least this
        with self._catalog.write() as session:
            answer = session.execute(
                sa.update(WorkerRow)
                .where(WorkerRow.id == self.worker_id)
                .values(beat_at=epoch_now())
            )
            assert isinstance(answer, sa.CursorResult), "an update returns a count of rows"
            renewed = answer.rowcount
        if renewed == 0:
            _log.error("worker %s was declared dead and ends itself", self.worker_id)
            self._on_lost()
            return
        self._beat_at = asked

    def release(self) -> None:
        """Say that this worker is gone. Only when it runs nothing, right before it ends."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
        with self._catalog.write() as session:
            session.execute(sa.delete(WorkerRow).where(WorkerRow.id == self.worker_id))
        if self._lock is not None:
            self._lock_path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def _keep(self) -> None:
        while not self._stopped.wait(self.lease_seconds / _BEATS_PER_LEASE):
            self.check()
            try:
                self.beat()
            except sa.exc.SQLAlchemyError as error:
                # The next beat may succeed; if none does, `check` ends the process.
                _log.warning("the lease of %s could not be renewed: %s", self.worker_id, error)


def lock_path(folder: Path, worker_id: str) -> Path:
    """Return the lock file of a worker of this machine."""
    return folder / f"{worker_id}.lock"


def list_workers(session: Session) -> list[WorkerState]:
    """Return every worker that has a row, live or not."""
    rows = session.execute(
        sa.select(
            WorkerRow.id, WorkerRow.host, WorkerRow.pid, (epoch_now() - WorkerRow.beat_at)
        ).order_by(WorkerRow.started_at)
    )
    return [WorkerState(row[0], row[1], row[2], float(row[3])) for row in rows]


def is_live(worker: WorkerState, *, lease_seconds: float, lock_folder: Path) -> bool:
    """Whether a worker may still be running anything.

    Its row is young enough, and where its lock file is on this machine, somebody holds it: the
    kernel drops the lock with the process, however that ended.
    """
    if worker.age_seconds > lease_seconds * _DEAD_SHARE:
        return False
    path = lock_path(lock_folder, worker.worker_id)
    try:
        lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True  # on another machine, or just ending: the clock decides
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def count_live(session: Session, *, lease_seconds: float, lock_folder: Path) -> int:
    """Return how many workers are alive."""
    return sum(
        is_live(worker, lease_seconds=lease_seconds, lock_folder=lock_folder)
        for worker in list_workers(session)
    )
