"""Starting, cancelling and retrying jobs."""

import logging
from collections.abc import Mapping, Sequence

from sqlalchemy.orm import Session

from sendense.core.errors import Conflict, Unavailable
from sendense.db.tables import JobRow
from sendense.durable import placement
from sendense.hub.context import Hub
from sendense.hub.jobs import queries
from sendense.hub.jobs.schemas import Job, JobDetail, JobFilter, JobKind, JobList, JobStatus
from sendense.hub.model import failure_of

_log = logging.getLogger(__name__)

# The hub knows workflows by name only; a test asserts that each is registered in workflows/.
WORKFLOWS: Mapping[JobKind, str] = {
    JobKind.BACKUP: "backup_vm",
    JobKind.RESTORE: "restore_disk",
    JobKind.DISCOVERY: "discover_vms",
    JobKind.CHECK: "check_repository",
    JobKind.IMPORT: "import_repository",
    JobKind.GC: "collect_garbage",
    JobKind.VERIFY: "verify_repository",
    JobKind.HUB_EXPORT: "export_hub",
}

# Lower runs first; the same words as in durable/schema.py.
PRIORITY_RESTORE = 10  # somebody is waiting
PRIORITY_INTERACTIVE = 20  # asked for by a person or a client


def enqueue(hub: Hub, job_id: str) -> None:
    """Hand a committed job to the engine.

    Where that fails the job stays pending and a sweep hands it over: the request has succeeded.
    """
    with hub.catalog.read() as session:
        job = queries.get_job(session, job_id)
    try:
        hub.starter.start(
            WORKFLOWS[JobKind(job.kind)],
            job.id,
            priority=job.priority,
            required=job.required_labels or {},
        )
    except Unavailable as error:
        _log.warning("job %s waits for the next sweep: %s", job.id, error.message)
        return
    with hub.catalog.write() as session:
        queries.mark_enqueued(session, job_id, now=hub.clock.now())


def show(row: JobRow, *, waiting_reason: str | None = None) -> Job:
    """Return a job as the API shows it."""
    progress = row.progress
    return Job(
        job_id=row.id,
        kind=JobKind(row.kind),
        status=JobStatus(row.status),
        progress_percent=round(row.progress_percent, 1),
        current_phase=row.current_phase,
        waiting_reason=waiting_reason,
        required_labels=row.required_labels or {},
        bytes_total=progress.get("bytes_total"),
        bytes_done=progress.get("bytes_done"),
        bytes_new=progress.get("bytes_new"),
        bytes_deduplicated=progress.get("bytes_deduplicated"),
        transfer_speed_bps=progress.get("transfer_speed_bps"),
        seconds_left=progress.get("seconds_left"),
        cancel_requested=row.cancel_requested_at is not None,
        attempts=row.attempts,
        error=failure_of(row.error),
        result=row.result,
        subject=row.subject,
        retry_of=row.retry_of,
        created_at=row.created_at,
        started_at=row.started_at,
        completed_at=row.finished_at,
        updated_at=row.updated_at,
    )


def show_detail(session: Session, hub: Hub, row: JobRow) -> JobDetail:
    """Return a job with its steps and log."""
    shown = show(row, waiting_reason=_explain_waits(session, hub, [row]).get(row.id))
    return JobDetail.model_validate({**dict(shown), "steps": row.steps, "log": row.log})


def list_jobs(session: Session, hub: Hub, wanted: JobFilter) -> JobList:
    """Return a page of jobs."""
    rows, total = queries.list_jobs(session, wanted)
    reasons = _explain_waits(session, hub, rows)
    return JobList(
        jobs=[show(row, waiting_reason=reasons.get(row.id)) for row in rows], total=total
    )


def _explain_waits(session: Session, hub: Hub, rows: Sequence[JobRow]) -> dict[str, str | None]:
    """Return why active jobs do not go on though they could, by id: nobody alive may run them."""
    active = [row for row in rows if JobStatus(row.status).is_active]
    if not active:
        return {}
    live = [worker.about.labels for worker, alive in hub.list_workers(session) if alive]
    return {row.id: placement.explain(row.required_labels or {}, live) for row in active}


def cancel(session: Session, job_id: str, hub: Hub) -> JobRow:
    """Ask a job to stop; it cleans up after itself. Raises Conflict where it has ended.

    The job is asked, never torn down: its worker removes the snapshot and ends it as cancelled.
    """
    row = queries.get_job(session, job_id)
    if not JobStatus(row.status).is_active:
        raise Conflict(
            f"job {job_id} is {row.status}",
            kind="job-ended",
            hint="nothing is left to cancel",
            job_id=job_id,
            status=row.status,
        )
    return queries.request_cancel(session, job_id, now=hub.clock.now())


def check_retry(row: JobRow) -> None:
    """Raise Conflict unless a job failed or was cancelled."""
    if row.status not in {JobStatus.FAILED, JobStatus.CANCELLED}:
        raise Conflict(
            f"job {row.id} is {row.status}",
            kind="job-not-failed",
            hint="only a failed or cancelled job can be retried",
            job_id=row.id,
            status=row.status,
        )
