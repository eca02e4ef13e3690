"""Keeps jobs and the engine in step: two databases that one transaction cannot hold together.

Run every few seconds by each worker:

- workflows of dead workers are taken over (durable/sweep.py);
- jobs that the engine never got are handed to it;
- cancelled jobs that nobody has begun leave the queue;
- jobs whose workflow ended without ending them are cleaned up;
- snapshots that could not be removed are tried again;
- garbage of repositories is collected and the hub exported into them, where that is due;
- finished workflows are forgotten after a while.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import Text, cast, select

from sendense.core.clock import Clock
from sendense.core.ids import IdSource, SystemIds
from sendense.db.catalog import Catalog
from sendense.db.tables import JobRow
from sendense.durable import schema
from sendense.durable.client import EngineClient, WorkflowState, WorkflowStatus
from sendense.durable.sweep import Sweep, SweepReport
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs.schemas import ACTIVE, JobKind, JobStatus
from sendense.hub.jobs.service import WORKFLOWS
from sendense.workflows import schedules
from sendense.workflows.clean_up import PREFIX, clean_up_id
from sendense.workflows.schedules import Schedule

_log = logging.getLogger(__name__)

# The API enqueues right after its commit; only what is older was lost on the way.
UNQUEUED_SECONDS = 10.0
LEFTOVER_SECONDS = 600.0  # between two tries for a snapshot that would not go
FORGET_EVERY_SECONDS = 3600.0
LOOK_FOR_DUE_SECONDS = 60.0  # what is due once a day may begin a minute late
KEEP_WORKFLOWS = timedelta(days=7)  # for support; users look at jobs, which stay
CLEAN_UPS_MAX = 1000  # of one job: a week of tries
PAUSES_MAX = 10  # the tenth pause is the longest one already
CLEAN_UP_SECONDS = 1.0  # before the second try; doubles each time, up to LEFTOVER_SECONDS


@dataclass(slots=True)
class Housekeeping:
    """One worker's turns. Several workers may take turns at once: every act is idempotent.

    `check_engine` raises Conflict where this worker's engine is not the hub's. `schedules` is
    what is begun by itself.
    """

    catalog: Catalog
    client: EngineClient
    sweep: Sweep
    clock: Clock
    check_engine: Callable[[], None] = lambda: None
    schedules: tuple[Schedule, ...] = ()
    ids: IdSource = field(default_factory=SystemIds)
    _cleaned_at: dict[str, float] = field(default_factory=dict, init=False)
    _forgot_at: float | None = field(default=None, init=False)
    _leftovers_at: float | None = field(default=None, init=False)
    _due_at: float | None = field(default=None, init=False)

    def run(self) -> None:
        """Take one turn. Raises what database and engine raise; the next turn tries again.

        Raises Conflict, and touches nothing, where the hub uses another engine: its jobs are not
        lost because this one does not know them.
        """
        self.check_engine()
        self._tell(self.sweep.run())
        self._start_due()
        self._hand_over()
        self._end_cancelled()
        self._end_stranded()
        self._retry_leftovers()
        self._forget()

    def _tell(self, report: SweepReport) -> None:
        for job_id in report.taken_over:
            with self.catalog.write() as session:
                job = jobs.find_job(session, job_id)
                if job is None:
                    continue
                job.attempts += 1
                jobs.add_log(
                    session,
                    job_id,
                    "its worker died; another one goes on with it",
                    now=self.clock.now(),
                    level="warning",
                )

    def _start_due(self) -> None:
        """Write the jobs that are due; they are handed over as those that a crash left are."""
        if not self.schedules or not self._is_due(self._due_at, LOOK_FOR_DUE_SECONDS):
            return
        self._due_at = self.clock.monotonic()
        with self.catalog.write() as session:
            for schedule in self.schedules:
                schedules.create_due_jobs(session, schedule, now=self.clock.now(), ids=self.ids)

    def _hand_over(self) -> None:
        """Give the engine the jobs that it never got."""
        before = self.clock.now() - timedelta(seconds=UNQUEUED_SECONDS)
        with self.catalog.read() as session:
            waiting = jobs.list_unqueued(session, before=before)
        for job in waiting:
            self.client.start(
                WORKFLOWS[JobKind(job.kind)],
                job.id,
                priority=job.priority,
                required=job.required_labels or {},
            )
            with self.catalog.write() as session:
                jobs.mark_enqueued(session, job.id, now=self.clock.now())
            _log.info("job %s was handed to the engine by the sweep", job.id)

    def _end_cancelled(self) -> None:
        """Take cancelled jobs from the queue that nobody has begun: perhaps nobody ever can."""
        with self.catalog.read() as session:
            cancelled = session.scalars(
                select(JobRow.id).where(
                    JobRow.status == JobStatus.PENDING,
                    JobRow.cancel_requested_at.is_not(None),
                    JobRow.enqueued_at.is_not(None),
                )
            ).all()
        for job_id, state in self._states(cancelled).items():
            if state.status is WorkflowStatus.QUEUED:
                self.client.cancel(job_id)

    def _end_stranded(self) -> None:
        """Clean up after jobs that are active while their workflow is not."""
        before = self.clock.now() - timedelta(seconds=UNQUEUED_SECONDS)
        with self.catalog.read() as session:
            active = session.scalars(
                select(JobRow).where(JobRow.status.in_(ACTIVE), JobRow.enqueued_at.is_not(None))
            ).all()
        states = self._states([job.id for job in active])
        for job in active:
            state = states.get(job.id)
            if state is not None and not state.ended:
                continue
            if state is None and not _is_older(job.enqueued_at, before):
                continue  # being started at this moment
            if self._is_active(job.id):  # the workflow may have ended it since the list was made
                self._clean_up(job.id)

    def _retry_leftovers(self) -> None:
        """Try again to remove the snapshots of jobs that have ended."""
        if not self._is_due(self._leftovers_at, LEFTOVER_SECONDS):
            return
        self._leftovers_at = self.clock.monotonic()
        with self.catalog.read() as session:
            # A snapshot that went leaves a JSON null, one that never was an SQL null.
            left = session.scalars(
                select(JobRow.id).where(
                    JobRow.status.not_in(ACTIVE), cast(JobRow.snapshot, Text) != "null"
                )
            ).all()
        for job_id in left:
            self._clean_up(job_id)

    def _clean_up(self, job_id: str) -> None:
        """Start the next clean-up of a job, unless one is under way."""
        past = self.client.list_workflows(prefix=f"{PREFIX}{job_id}:")
        if any(not one.ended for one in past) or len(past) >= CLEAN_UPS_MAX:
            return
        # What failed is tried at once by no worker that has seen it fail.
        pause = min(CLEAN_UP_SECONDS * 2.0 ** min(len(past), PAUSES_MAX), LEFTOVER_SECONDS)
        if past and not self._is_due(self._cleaned_at.get(job_id), pause):
            return
        self._cleaned_at[job_id] = self.clock.monotonic()
        number = len(past) + 1
        _log.warning("job %s is cleaned up, try %d", job_id, number)
        with self.catalog.read() as session:
            job = jobs.get_job(session, job_id)
            # What was never begun left nothing that only some workers can reach.
            required = job.required_labels or {} if job.started_at is not None else {}
        self.client.start(
            "clean_up",
            clean_up_id(job_id, number),
            priority=schema.PRIORITY_INTERACTIVE,
            required=required,
        )

    def _forget(self) -> None:
        if not self._is_due(self._forgot_at, FORGET_EVERY_SECONDS):
            return
        self._forgot_at = self.clock.monotonic()
        self._cleaned_at.clear()
        self.client.delete_finished(before=self.clock.now() - KEEP_WORKFLOWS)

    def _states(self, job_ids: Sequence[str]) -> dict[str, WorkflowState]:
        found = self.client.list_workflows(workflow_ids=job_ids)
        return {state.workflow_id: state for state in found}

    def _is_active(self, job_id: str) -> bool:
        with self.catalog.read() as session:
            job = jobs.find_job(session, job_id)
            return job is not None and JobStatus(job.status).is_active

    def _is_due(self, last: float | None, interval_seconds: float) -> bool:
        return last is None or self.clock.monotonic() - last >= interval_seconds


def _is_older(moment: datetime | None, before: datetime) -> bool:
    return moment is not None and moment < before
