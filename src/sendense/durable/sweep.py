"""Take-over: what a dead worker left behind is given to the living.

DBOS itself never does this: workflows of a killed worker would stay PENDING for ever while others
idle. Any process may sweep; a lock lets one at a time, and what it does is right even where it has
lost the lock unawares: workflows are taken only from the dead worker, and rows only of those that
have not beaten again.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sendense.db.catalog import Catalog
from sendense.db.tables.workers import TakeOverRow, WorkerRow
from sendense.durable import lease, lease_terms, presence, process, schema
from sendense.durable.alone import alone
from sendense.durable.client import EngineClient, WorkflowState, WorkflowStatus
from sendense.durable.lease import WorkerState
from sendense.durable.presence import Presence

_log = logging.getLogger(__name__)

# A job that killed five workers without any progress in between would kill the sixth.
TAKE_OVERS_MAX = 5
_SAME_SECONDS = 0.001  # beats are this much apart; a database may round the last digits


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What one sweep did: ids of the dead workers, and of the jobs taken over or given up."""

    dead: tuple[str, ...]
    taken_over: tuple[str, ...]
    given_up: tuple[str, ...]


NOTHING = SweepReport((), (), ())


class Sweep:
    """Finds workflows whose worker is dead and queues them again, counting.

    Keep one for the life of a process: it remembers since when it saw no beat of each worker.
    `check_lease` does not return where this process has itself lost its lease.
    """

    def __init__(
        self,
        catalog: Catalog,
        client: EngineClient,
        *,
        lease_seconds: float,
        lock_folder: Path,
        check_lease: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = lease_terms.awake_seconds,
    ) -> None:
        self._catalog = catalog
        self._client = client
        self._lease_seconds = lease_seconds
        self._lock_folder = lock_folder
        self._check_lease = check_lease
        self._clock = clock
        self._beats: dict[str, tuple[float, float]] = {}

    def run(self) -> SweepReport:
        """Sweep once; does nothing while another process sweeps."""
        with alone(
            "sweep",
            self._catalog,
            lock_folder=self._lock_folder,
            idle_seconds_max=self._lease_seconds,
        ) as got:
            return self._take_over() if got else NOTHING

    def _take_over(self) -> SweepReport:
        # In this order: a worker writes its row before it takes anything, so the owner of each
        # workflow in the first list has a row in the second, or is gone.
        running = self._client.list_workflows(statuses=[WorkflowStatus.RUNNING])
        with self._catalog.read() as session:
            workers = lease.list_workers(session)
        dead = self._declare_dead([one for one in workers if self._is_dead(one)])
        live = {one.worker_id for one in workers} - set(dead)
        jobs: dict[str, list[WorkflowState]] = {}
        for workflow in running:
            if workflow.executor_id not in live:
                jobs.setdefault(schema.job_id_of(workflow.workflow_id), []).append(workflow)
        taken, given_up = [], []
        for job_id, workflows in sorted(jobs.items()):
            self._check_lease()
            if self._count(job_id) >= TAKE_OVERS_MAX:
                self._give_up(job_id)
                self._count_one_more(job_id)
                given_up.append(job_id)
            elif self._take(workflows):
                self._count_one_more(job_id)
                taken.append(job_id)
                _log.warning("job %s is taken over from %s", job_id, workflows[0].executor_id)
        return SweepReport(dead, tuple(taken), tuple(given_up))

    def _is_dead(self, worker: WorkerState) -> bool:
        """Whether a worker can have no hand on its jobs any more.

        Its file is free, or it has not beaten for long: by the database's clock, and by our own
        too, so that nobody dies of a clock that jumps.
        """
        now = self._clock()
        beat_at, since = self._beats.get(worker.worker_id, (worker.beat_at, now))
        if abs(worker.beat_at - beat_at) > _SAME_SECONDS:
            since = now
        self._beats[worker.worker_id] = (worker.beat_at, since)
        found, _ = presence.look(presence.path_of(self._lock_folder, worker.worker_id))
        if found is Presence.FREE:
            return True
        dead_seconds = self._lease_seconds * lease_terms.DEAD_SHARE
        unchanged = now - since
        return unchanged > dead_seconds or (
            worker.age_seconds > dead_seconds
            and unchanged > self._lease_seconds * lease_terms.UNCHANGED_SHARE
        )

    def _declare_dead(self, workers: list[WorkerState]) -> tuple[str, ...]:
        """End and remove dead workers; return the ids of those that are gone.

        What is left of a process goes first, then the row: a worker of another machine that was
        only frozen finds it gone and ends itself.
        """
        gone = []
        for worker in workers:
            path = presence.path_of(self._lock_folder, worker.worker_id)
            found, mark = presence.look(path)
            if found is Presence.HELD and mark is not None and not process.end(mark, path):
                _log.error("worker %s is stale and cannot be ended", worker.worker_id)
            with self._catalog.write() as session:
                answer = session.execute(
                    sa.delete(WorkerRow).where(
                        WorkerRow.id == worker.worker_id,
                        # Any other beat is a sign of life; an earlier one, of a clock set back.
                        WorkerRow.beat_at.between(
                            worker.beat_at - _SAME_SECONDS, worker.beat_at + _SAME_SECONDS
                        ),
                    )
                )
                assert isinstance(answer, sa.CursorResult), "a deletion returns a count of rows"
                removed = answer.rowcount
            if removed:
                _log.warning("worker %s is dead", worker.worker_id)
                path.unlink(missing_ok=True)
                del self._beats[worker.worker_id]
                gone.append(worker.worker_id)
        return tuple(gone)

    def _take(self, workflows: list[WorkflowState]) -> bool:
        """Queue workflows again where the dead worker still has them; whether any was."""
        taken = [
            self._client.take_over(one.workflow_id, executor_id=one.executor_id or "")
            for one in workflows
        ]
        return any(taken)

    def _count(self, job_id: str) -> int:
        with self._catalog.read() as session:
            return count_take_overs(session, job_id)

    def _count_one_more(self, job_id: str) -> None:
        with self._catalog.write() as session:
            row = session.get(TakeOverRow, job_id)
            if row is None:
                session.add(TakeOverRow(job_id=job_id, count=1))
            else:
                row.count += 1

    def _give_up(self, job_id: str) -> None:
        """End a job's workflows; whoever owns jobs sees that and cleans up."""
        _log.error("job %s was taken over %d times without progress", job_id, TAKE_OVERS_MAX)
        for workflow in self._client.list_workflows(prefix=job_id):
            if schema.job_id_of(workflow.workflow_id) == job_id and not workflow.ended:
                self._client.cancel(workflow.workflow_id)


def count_take_overs(session: Session, job_id: str) -> int:
    """Return how often a job was taken over since its last progress."""
    count = session.scalar(sa.select(TakeOverRow.count).where(TakeOverRow.job_id == job_id))
    return int(count or 0)


def forget_take_overs(session: Session, job_id: str) -> None:
    """Start counting anew: the job made durable progress, or ended."""
    session.execute(sa.delete(TakeOverRow).where(TakeOverRow.job_id == job_id))
