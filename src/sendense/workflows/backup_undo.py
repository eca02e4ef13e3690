"""What ends a backup that did not work: the same steps for the workflow itself and for clean-up.

    stop_transfers   children that wait are cancelled, those that run are waited for
    abort_session    `aborted` becomes the session's outcome, or `committed` is found to have won
    remove_snapshot  by reference or by name; settles change tracking by the outcome
    fail             the job ends with a reason

The outcome comes first: whoever still believes to own the job can no longer commit.
"""

import logging
from typing import Any

from sqlalchemy.orm import Session

from sendense.connectors.base import SnapshotOutcome
from sendense.core.errors import SendenseError
from sendense.durable import sweep
from sendense.durable.client import WorkflowStatus
from sendense.durable.definition import Retry, step
from sendense.hub.backups import queries as backups
from sendense.hub.jobs import queries as jobs
from sendense.repository.session import State
from sendense.workflows import backup_plan
from sendense.workflows.backup_plan import Subject
from sendense.workflows.context import Context
from sendense.workflows.ending import FINISH_RETRY, ending_of, from_data

_log = logging.getLogger(__name__)

WAIT_SECONDS = 0.25
# A child stops within 2 s of the flag; one that hangs in a system call is left to the lease.
STOP_SECONDS_MAX = 30.0

# In the job itself a person waits for the end: a few tries, and the clean-up goes on later.
ABORT_RETRY = Retry(attempts_max=4, interval_seconds=0.5, cancellable=False)
# A snapshot left behind fills the datastore: about five minutes of trying, then an alarm.
REMOVE_RETRY = Retry(
    attempts_max=8, interval_seconds=1.0, interval_seconds_max=60.0, cancellable=False
)


@step("stop_transfers")
def stop_transfers(context: Context, job_id: str) -> None:
    """Return when no child of the job runs, or after a while."""
    deadline = context.clock.monotonic() + STOP_SECONDS_MAX
    while context.clock.monotonic() < deadline:
        context.lease.check()
        children = context.engine.list_workflows(prefix=f"{job_id}/")
        for child in children:
            if child.status is WorkflowStatus.QUEUED:
                context.engine.cancel(child.workflow_id)
        if all(child.ended for child in children):
            return
        context.clock.sleep(WAIT_SECONDS)
    _log.warning("transfers of job %s did not stop in time", job_id)


@step("abort_session", retry=ABORT_RETRY)
def abort_session(context: Context, job_id: str, reason: str) -> str:
    """End the repository's session; return `committed` where that had won, else `aborted`."""
    with context.catalog.read() as session:
        subject = backup_plan.load(session, job_id)
    with context.open_repository(subject.repository) as repository:
        context.lease.check()
        outcome = repository.abort(job_id, reason)
    return State.COMMITTED if outcome.state is State.COMMITTED else State.ABORTED


@step("remove_snapshot", retry=REMOVE_RETRY)
def remove_snapshot(context: Context, job_id: str, outcome: str) -> None:
    """Remove the job's snapshot, however it is found, and settle change tracking."""
    with context.catalog.read() as session:
        subject = backup_plan.load(session, job_id)
        reference = jobs.get_job(session, job_id).snapshot
    with context.open_source(subject.source) as source:
        if reference is None:
            reference = source.find_snapshot(subject.vm.vm_uuid, subject.snapshot_name)
        if reference is None:
            return
        live = _live_change_ids(context, subject)
        context.lease.check()
        source.remove_snapshot(reference, SnapshotOutcome(outcome), live)
    with context.catalog.write() as session:
        jobs.set_snapshot(session, job_id, None, now=context.now())


def _live_change_ids(context: Context, subject: Subject) -> frozenset[str]:
    """Return the change ids that some next incremental of the VM builds on.

    Those of the newest live backup of each disk in each repository, as the manifests say. A
    repository that cannot be read may name any: then all that the catalog remembers of it stay.
    """
    with context.catalog.read() as session:
        places = backup_plan.list_places(session, subject.vm.id)
    found: set[str] = set()
    for row, remembered in places:
        try:
            with context.open_repository(row) as repository:
                found |= backup_plan.list_change_ids(subject, repository)
        except SendenseError as error:
            _log.warning("repository %s keeps its change ids: %s", row.name, error.message)
            found |= remembered
    return frozenset(found)


@step("note_leftover", retry=FINISH_RETRY)
def note_leftover(context: Context, job_id: str, reason: dict[str, Any]) -> None:
    """Raise the alarm: the snapshot is still there, and a sweep tries again."""
    message = f"the snapshot could not be removed: {from_data(reason).message}"
    _log.error("job %s: %s", job_id, message)
    with context.catalog.write() as session:
        jobs.add_log(session, job_id, message, now=context.now(), level="error")
        backup = backups.find_backup(session, _backup_id(session, job_id))
        if backup is not None:
            backup.warnings = [*backup.warnings, message]


@step("fail", retry=FINISH_RETRY)
def fail(context: Context, job_id: str, reason: dict[str, Any]) -> None:
    """End backup and job with the reason, in one transaction that also frees the VM's slot."""
    error = from_data(reason)
    now = context.now()
    with context.catalog.write() as session:
        backups.fail_backup(session, _backup_id(session, job_id), ending_of(error), error, now=now)
        jobs.finish(session, job_id, ending_of(error), now=now, error=error)
        sweep.forget_take_overs(session, job_id)


def _backup_id(session: Session, job_id: str) -> str:
    return str(jobs.get_job(session, job_id).subject["backup_id"])
