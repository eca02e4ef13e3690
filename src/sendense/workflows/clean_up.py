"""Ends a job whose own workflow cannot: it was given up, or broke.

    settle   what the workflow's own compensation does, for whatever kind of job it is

Started by the sweep under the id `clean-up:<job>:<n>`, also for jobs that have ended and left a
snapshot. The steps are the workflow's own; they are idempotent and look for what is there.
"""

from typing import Any

from sendense.connectors.base import SnapshotOutcome
from sendense.core.errors import Cancelled, SendenseError, Unavailable
from sendense.durable import sweep
from sendense.durable.definition import Workflow, step
from sendense.durable.flow import Flow
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs.schemas import JobKind, JobStatus
from sendense.repository.session import State
from sendense.workflows import (
    backup_undo,
    backup_vm,
    discover_vms,
    ending,
    restore_disk,
)
from sendense.workflows.context import Context
from sendense.workflows.ending import FINISH_RETRY, to_data

PREFIX = "clean-up:"


def clean_up_id(job_id: str, number: int) -> str:
    """Return the id of a job's n-th clean-up. Without a slash: it is nobody's child."""
    return f"{PREFIX}{job_id}:{number}"


def job_of(workflow_id: str) -> str:
    """Return the job that a workflow works for, a clean-up too."""
    if workflow_id.startswith(PREFIX):
        return workflow_id.removeprefix(PREFIX).rpartition(":")[0]
    return workflow_id.partition("/")[0]


@step("look", retry=FINISH_RETRY)
def look(context: Context, job_id: str) -> dict[str, Any]:
    """Return what kind of job it is, and why it ends."""
    with context.catalog.read() as session:
        job = jobs.get_job(session, job_id)
        take_overs = sweep.count_take_overs(session, job_id)
        kind, active = job.kind, JobStatus(job.status).is_active
        begun, cancelled = job.started_at is not None, job.cancel_requested_at is not None
    state = context.engine.find(job_id)
    error = state.error if state is not None else None
    if take_overs > sweep.TAKE_OVERS_MAX:
        error = Unavailable(
            f"{take_overs} workers died while they ran this job",
            hint="the worker's log tells how they ended; memory and disk are usual reasons",
            kind="workers-died",
        )
    if error is None and cancelled and not begun:
        error = Cancelled("the job was cancelled before a worker took it")
    if error is None:
        error = Unavailable(
            "the job was lost by the engine", hint="start it again", kind="job-lost"
        )
    return {"kind": kind, "active": active, "begun": begun, "reason": to_data(error)}


def clean_up(flow: Flow[Context]) -> None:
    """End the job as its own workflow would have ended it."""
    job_id = job_of(flow.workflow_id)
    found = flow.run(look, job_id)
    kind = JobKind(found["kind"])
    if kind is JobKind.BACKUP and found.get("begun", True):
        _clean_up_backup(flow, job_id, found)
    elif not found["active"]:
        return
    elif kind is JobKind.BACKUP:
        # Nothing was made, so nothing need be reached to undo it.
        flow.run(backup_undo.fail, job_id, found["reason"])
    elif kind is JobKind.RESTORE:
        flow.run(restore_disk.fail, job_id, found["reason"])
    elif kind is JobKind.DISCOVERY:
        flow.run(discover_vms.fail, job_id, found["reason"])
    else:  # it only reads, or another run goes on where it stopped
        flow.run(ending.fail, job_id, found["reason"])


def _clean_up_backup(flow: Flow[Context], job_id: str, found: dict[str, Any]) -> None:
    flow.run(backup_undo.stop_transfers, job_id)
    message = str(found["reason"]["message"])
    try:
        outcome = flow.run(backup_undo.abort_session, job_id, message)
    except SendenseError as error:
        # The next clean-up asks again. What was never begun in the repository needs no answer.
        if found["active"] and error.kind not in {"vm-unknown", "repository-unknown"}:
            raise
        outcome = State.ABORTED
    if outcome == State.COMMITTED:
        backup_vm.complete(flow, job_id)
        return
    backup_vm.remove_snapshot_or_note(flow, job_id, SnapshotOutcome.DISCARDED)
    flow.run(backup_undo.fail, job_id, found["reason"])


CLEAN_UP = Workflow[Context](
    "clean_up",
    clean_up,
    (
        look,
        backup_undo.stop_transfers,
        backup_undo.abort_session,
        backup_undo.remove_snapshot,
        backup_undo.note_leftover,
        backup_undo.fail,
        backup_vm.record,
        backup_vm.finish,
        restore_disk.fail,
        discover_vms.fail,
        ending.fail,
    ),
)
