"""What the worker answers the engine around each step: lease, pauses, what jobs show."""

import logging

from sqlalchemy.exc import SQLAlchemyError

from sendense.core.clock import Clock
from sendense.core.errors import Cancelled, SendenseError
from sendense.db.catalog import Catalog
from sendense.durable.lease import Lease
from sendense.hub.jobs import queries as jobs
from sendense.workflows.clean_up import job_of

_log = logging.getLogger(__name__)

_PAUSE_SECONDS = 0.5  # how often a waiting job looks at its cancel flag

# What a job shows while a step runs; other steps leave the phase as it is.
PHASES = {
    "plan": "planning",
    "take_snapshot": "snapshot",
    "decide": "planning",
    "wait_transfers": "transferring",
    "commit": "committing",
    "record": "committing",
    "remove_snapshot": "removing-snapshot",
    "stop_transfers": "cleaning-up",
    "abort_session": "cleaning-up",
    "discover": "discovering",
    "restore": "restoring",
    "check": "checking",
}

# These end the job, in the catalog, before they end themselves: shown, they would never be done.
HIDDEN = frozenset({"finish", "fail", "look"})


class WorkerOwner:
    """The engine's owner in a worker; see durable.flow.Owner."""

    def __init__(self, catalog: Catalog, lease: Lease, clock: Clock) -> None:
        self._catalog = catalog
        self._lease = lease
        self._clock = clock

    def check_lease(self) -> None:
        """End the process where the lease is lost."""
        self._lease.check()

    def pause(self, job_id: str, seconds: float, *, cancellable: bool) -> None:
        """Wait in small pieces, so that a cancelled job does not sit out a long pause."""
        deadline = self._clock.monotonic() + seconds
        while (left := deadline - self._clock.monotonic()) > 0:
            self._lease.check()
            if cancellable and self._is_cancelled(job_id):
                raise Cancelled("the job was cancelled")
            self._clock.sleep(min(left, _PAUSE_SECONDS))

    def step_started(self, workflow_id: str, step_name: str) -> None:
        """Show the step and, where it has one, its phase."""
        if step_name in HIDDEN:
            return
        job_id, now = job_of(workflow_id), self._clock.now()
        try:
            with self._catalog.write() as session:
                jobs.start_step(session, job_id, _shown(workflow_id, step_name), now=now)
                if step_name in PHASES and jobs.get_job(session, job_id).finished_at is None:
                    jobs.set_phase(session, job_id, PHASES[step_name], now=now)
        except (SQLAlchemyError, SendenseError) as error:
            _log.warning("cannot show step %s of %s: %s", step_name, workflow_id, error)

    def step_ended(self, workflow_id: str, step_name: str, error: SendenseError | None) -> None:
        """Show how the step ended."""
        if step_name in HIDDEN:
            return
        job_id, now = job_of(workflow_id), self._clock.now()
        try:
            with self._catalog.write() as session:
                jobs.finish_step(
                    session, job_id, _shown(workflow_id, step_name), now=now, error=error
                )
        except (SQLAlchemyError, SendenseError) as failed:
            _log.warning("cannot show step %s of %s: %s", step_name, workflow_id, failed)
        if error is None:  # a failure was logged with its reason
            _log.info("step %s of %s is done", step_name, workflow_id)

    def _is_cancelled(self, job_id: str) -> bool:
        try:
            with self._catalog.read() as session:
                return jobs.is_cancel_requested(session, job_id)
        except (SQLAlchemyError, SendenseError) as error:
            # What is waited for may be this very database; the step's next attempt tells.
            _log.warning("cannot look whether %s is cancelled: %s", job_id, error)
            return False


def _shown(workflow_id: str, step_name: str) -> str:
    """Return a step's name with its disk, where several run beside each other."""
    _, _, child = workflow_id.partition("/")
    return f"{step_name} {child}" if child else step_name
