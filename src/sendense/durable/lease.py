"""A worker's lease: the row that says it is alive, by the database's clock.

A lease is written before the engine starts, so that no workflow is ever held by an executor nobody
has heard of. A worker whose lease is stale may already have been replaced: it ends itself at once,
without a further step. On one machine a locked file says sooner than the clock that a worker is
dead, and a frozen one is ended by the others before its lease can tell; see `lease_terms`.
"""

import logging
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import ColumnElement

from sendense.core.errors import SendenseError
from sendense.db.catalog import Catalog
from sendense.db.tables.workers import WorkerRow
from sendense.durable import lease_terms, placement, presence, process
from sendense.durable.presence import Place, Presence

_log = logging.getLogger(__name__)

EXIT_LEASE_LOST = 70  # BSD's EX_SOFTWARE; the supervisor starts a new worker


class epoch_now(ColumnElement[float]):  # noqa: N801 - reads as the SQL function it is
    """The database's clock as seconds since 1970: the same for every worker, whatever its own."""

    inherit_cache = True
    type = sa.Double()


@compiles(epoch_now, "sqlite")
def _epoch_sqlite(_element: epoch_now, _compiler: SQLCompiler, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(epoch_now, "postgresql")
def _epoch_postgresql(_element: epoch_now, _compiler: SQLCompiler, **_: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


@compiles(epoch_now, "mysql", "mariadb")
def _epoch_mariadb(_element: epoch_now, _compiler: SQLCompiler, **_: Any) -> str:
    # Never through the session's time zone: an hour of each year comes twice there.
    return "(timestampdiff(microsecond, '1970-01-01', utc_timestamp(6)) / 1e6)"


@dataclass(frozen=True, slots=True)
class About:
    """What a worker says about itself."""

    labels: placement.Labels = field(default_factory=dict)
    version: str = ""


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker that holds a lease.

    Attributes:
        started_at, beat_at: when it started and renewed its lease, in seconds since 1970 by the
            database's clock; age_seconds, by the same one, was the time since the latter.
    """

    worker_id: str
    host: str
    pid: int
    about: About
    started_at: float
    beat_at: float
    age_seconds: float


def end_process() -> None:
    """End this process without any clean-up: clean-up is what must not happen any more."""
    os._exit(EXIT_LEASE_LOST)  # pragma: no cover - ends the process; a test runs it in another one


class Lease:
    """The lease of this process. `acquire`, then `check` before whatever destroys something.

    Two threads keep it. One renews the row and may have to wait for the database. The other one
    waits for nothing: it shows by its waking that this process runs, and ends it where the lease is
    lost.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        worker_id: str,
        lease_seconds: float,
        lock_folder: Path,
        about: About = About(),
        on_lost: Callable[[], None] = end_process,
    ) -> None:
        self._catalog = catalog
        self.worker_id = worker_id
        self._about = about
        self.lease_seconds = lease_seconds
        self._place = Place(lock_folder, worker_id)
        self._on_lost = on_lost
        self._beat_at = 0.0
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []

    def acquire(self) -> None:
        """Take the file, write the row and keep both until `release`."""
        self._place.take()
        with self._catalog.write() as session:
            asked = _ask(session)
            session.execute(
                sa.insert(WorkerRow).values(
                    id=self.worker_id,
                    host=socket.gethostname(),
                    pid=os.getpid(),
                    labels=dict(self._about.labels),
                    version=self._about.version,
                    started_at=epoch_now(),
                    beat_at=epoch_now(),
                )
            )
        self._beat_at = asked
        for name, run in (("pulse", self._pulse), ("lease", self._keep)):
            thread = threading.Thread(target=run, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        pulse = self._threads[0].native_id
        assert pulse is not None, "it was started"
        self._place.write(process.mark_self(thread=pulse, wake_seconds=self._pulse_seconds))

    def check(self) -> None:
        """Return while the lease is good; else end this process at once."""
        unbeaten = lease_terms.awake_seconds() - self._beat_at
        if unbeaten > self.lease_seconds * lease_terms.STALE_SHARE:
            _log.error("worker %s lost its lease and ends itself", self.worker_id)
            self._on_lost()

    def confirm(self, session: Session) -> None:
        """Return where the row is still there, as this transaction sees it; else end this process.

        In a transaction that writes, nobody can remove it before that has ended.
        """
        found = session.scalar(sa.select(WorkerRow.id).where(WorkerRow.id == self.worker_id))
        if found is None:
            _log.error("worker %s was declared dead and ends itself", self.worker_id)
            self._on_lost()

    def beat(self) -> None:
        """Renew the row. A row that somebody removed means that the jobs are no longer ours.

        Beside whatever writes: a server ends a transaction that stands still after seconds only,
        and a worker frozen in one must not cost the others their leases.
        """
        with self._catalog.write_beside() as session:
            asked = _ask(session)
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
        self._beat_at = asked

    def release(self) -> None:
        """Say that this worker is gone. Only when it runs nothing, right before it ends."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        try:
            with self._catalog.write() as session:
                session.execute(sa.delete(WorkerRow).where(WorkerRow.id == self.worker_id))
        except (sa.exc.SQLAlchemyError, SendenseError) as error:
            _log.warning("the row of %s stays until the next sweep: %s", self.worker_id, error)
        self._place.drop()

    @property
    def _pulse_seconds(self) -> float:
        return self.lease_seconds / lease_terms.PULSES_PER_LEASE

    def _keep(self) -> None:
        while not self._stopped.wait(self.lease_seconds / lease_terms.BEATS_PER_LEASE):
            try:
                self.beat()
            except (sa.exc.SQLAlchemyError, SendenseError) as error:
                # The next beat may succeed; if none does, `check` ends the process.
                _log.warning("the lease of %s could not be renewed: %s", self.worker_id, error)

    def _pulse(self) -> None:
        while not self._stopped.wait(self._pulse_seconds):
            self.check()


def _ask(session: Session) -> float:
    """Return when a transaction got the database's attention: its clock tells no earlier time.

    What the transaction had to wait for its lock is no part of a beat's age.
    """
    session.connection()
    return lease_terms.awake_seconds()


def list_workers(session: Session) -> list[WorkerState]:
    """Return every worker that has a row, live or not, oldest first."""
    rows = session.execute(
        sa.select(WorkerRow, (epoch_now() - WorkerRow.beat_at)).order_by(
            WorkerRow.started_at, WorkerRow.id
        )
    )
    return [
        WorkerState(
            worker_id=row.id,
            host=row.host,
            pid=row.pid,
            about=About(row.labels or {}, row.version or ""),
            started_at=float(row.started_at),
            beat_at=float(row.beat_at),
            age_seconds=float(age),
        )
        for row, age in rows
    ]


def is_live(worker: WorkerState, *, lease_seconds: float, lock_folder: Path) -> bool:
    """Whether a worker may still be running anything, as far as one look can tell."""
    found, _ = presence.look(presence.path_of(lock_folder, worker.worker_id))
    if found is Presence.UNKNOWN:
        return worker.age_seconds <= lease_seconds * lease_terms.DEAD_SHARE
    return found is Presence.HELD


def list_with_life(
    session: Session, *, lease_seconds: float, lock_folder: Path
) -> list[tuple[WorkerState, bool]]:
    """Return every worker that has a row, each with whether it is alive."""
    return [
        (worker, is_live(worker, lease_seconds=lease_seconds, lock_folder=lock_folder))
        for worker in list_workers(session)
    ]
