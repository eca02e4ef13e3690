"""Take-over: what a dead worker left behind is given to the living.

DBOS itself never does this: workflows of a killed worker would stay PENDING for ever while others
idle. Any process may sweep; a lock lets one at a time.
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sendense.db.catalog import Catalog
from sendense.db.tables.workers import TakeOverRow, WorkerRow
from sendense.durable import lease, schema
from sendense.durable.client import EngineClient, WorkflowState, WorkflowStatus

_log = logging.getLogger(__name__)

# A job that killed five workers without any progress in between would kill the sixth.
TAKE_OVERS_MAX = 5


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What one sweep did: ids of the dead workers, and of the jobs taken over or given up."""

    dead: tuple[str, ...]
    taken_over: tuple[str, ...]
    given_up: tuple[str, ...]


NOTHING = SweepReport((), (), ())


class Sweep:
    """Finds workflows whose worker is dead and queues them again, counting."""

    def __init__(
        self,
        catalog: Catalog,
        client: EngineClient,
        *,
        lease_seconds: float,
        lock_folder: Path,
    ) -> None:
        self._catalog = catalog
        self._client = client
        self._lease_seconds = lease_seconds
        self._lock_folder = lock_folder

    def run(self) -> SweepReport:
        """Sweep once; does nothing while another process sweeps."""
        with self._alone() as alone:
            return self._take_over() if alone else NOTHING

    def _take_over(self) -> SweepReport:
        # In this order: a worker writes its row before it takes anything, so the owner of each
        # workflow in the first list has a row in the second, or is gone.
        running = self._client.list_workflows(statuses=[WorkflowStatus.RUNNING])
        dead, live = self._declare_dead()
        stranded = [one for one in running if one.executor_id not in live]
        jobs: dict[str, list[WorkflowState]] = {}
        for workflow in stranded:
            jobs.setdefault(schema.job_id_of(workflow.workflow_id), []).append(workflow)
        given_up = tuple(job for job in sorted(jobs) if self._count(job) > TAKE_OVERS_MAX)
        for job, workflows in sorted(jobs.items()):
            if job in given_up:
                self._give_up(job)
                continue
            for workflow in workflows:
                self._client.resume(workflow.workflow_id, workflow.queue or schema.JOBS)
            _log.warning("job %s is taken over from %s", job, workflows[0].executor_id)
        return SweepReport(dead, tuple(sorted(set(jobs) - set(given_up))), given_up)

    def _declare_dead(self) -> tuple[tuple[str, ...], frozenset[str]]:
        """Remove the rows of dead workers; return the ids of the dead and of the living.

        The row goes first: a worker that was only frozen finds it gone and ends itself.
        """
        dead: list[str] = []
        live: list[str] = []
        with self._catalog.write() as session:
            for worker in lease.list_workers(session):
                alive = lease.is_live(
                    worker, lease_seconds=self._lease_seconds, lock_folder=self._lock_folder
                )
                (live if alive else dead).append(worker.worker_id)
            if dead:
                session.execute(sa.delete(WorkerRow).where(WorkerRow.id.in_(dead)))
        for worker_id in dead:
            _log.warning("worker %s is dead", worker_id)
            lease.lock_path(self._lock_folder, worker_id).unlink(missing_ok=True)
        return tuple(dead), frozenset(live)

    def _count(self, job_id: str) -> int:
        """Count one more take-over of a job and return the number since its last progress."""
        with self._catalog.write() as session:
            count = session.scalar(sa.select(TakeOverRow.count).where(TakeOverRow.job_id == job_id))
            if count is None:
                session.execute(sa.insert(TakeOverRow).values(job_id=job_id, count=1))
                return 1
            session.execute(
                sa.update(TakeOverRow)
                .where(TakeOverRow.job_id == job_id)
                .values(count=TakeOverRow.count + 1)
            )
            return int(count) + 1

    def _give_up(self, job_id: str) -> None:
        """End a job's workflows; whoever owns jobs sees that and cleans up."""
        _log.error("job %s was taken over %d times without progress", job_id, TAKE_OVERS_MAX)
        for workflow in self._client.list_workflows(prefix=job_id):
            if schema.job_id_of(workflow.workflow_id) == job_id and not workflow.ended:
                self._client.cancel(workflow.workflow_id)

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        self._lock_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._lock_folder / "sweep.lock"
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


def count_take_overs(session: Session, job_id: str) -> int:
    """Return how often a job was taken over since its last progress."""
    count = session.scalar(sa.select(TakeOverRow.count).where(TakeOverRow.job_id == job_id))
    return int(count or 0)


def forget_take_overs(session: Session, job_id: str) -> None:
    """Start counting anew: the job made durable progress, or ended."""
    session.execute(sa.delete(TakeOverRow).where(TakeOverRow.job_id == job_id))
