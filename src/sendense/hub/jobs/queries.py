"""Jobs in the catalog: the truth about each execution, whatever the engine's own tables say."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.orm import Session, defer

from sendense.core import clock
from sendense.core.errors import Conflict, NotFound, SendenseError
from sendense.db.tables import JobRow, RepositoryRow, SourceRow
from sendense.durable.placement import Labels
from sendense.hub import paging
from sendense.hub.jobs.schemas import ACTIVE, JobFilter, JobKind, JobStatus
from sendense.hub.tracing import current_request_id

LOG_LINES_MAX = 200  # a job's page, not a log archive; the oldest lines go first
MESSAGE_LENGTH_MAX = 4000  # of the catalog's columns
PERCENT_DONE = 100.0
CLOCK_SLIP = timedelta(minutes=1)  # hub and worker on two machines never differ by so much
# For lists, which show neither: both may be long, and reading them takes longer than all the rest.
WITHOUT_HISTORY = (defer(JobRow.steps), defer(JobRow.log))


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to create.

    It demands what its source and its repository demand, and what `required_labels` adds.

    Attributes:
        subject: ids of what the job is about; no secrets.
        vm_slot: the VM that nothing else may work on meanwhile.
    """

    id: str
    kind: JobKind
    subject: dict[str, Any]
    priority: int
    created_at: datetime
    vm_slot: str | None = None
    source_id: str | None = None
    repository_id: str | None = None
    retry_of: str | None = None
    required_labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobProgress:
    """How far a job is. None is "not known"."""

    percent: float
    bytes_total: int | None = None
    bytes_done: int | None = None
    bytes_new: int | None = None
    bytes_deduplicated: int | None = None
    transfer_speed_bps: float | None = None
    seconds_left: float | None = None


def create_job(session: Session, new: NewJob) -> JobRow:
    """Write a pending job; the unique slot refuses a second one for its VM.

    Raises Conflict, kind `placement-impossible`, where no worker could ever have all the labels
    that are demanded.
    """
    row = JobRow(
        id=new.id,
        kind=new.kind,
        status=JobStatus.PENDING,
        priority=new.priority,
        subject=new.subject,
        vm_slot=new.vm_slot,
        source_id=new.source_id,
        repository_id=new.repository_id,
        retry_of=new.retry_of,
        required_labels=_demand(session, new) or None,
        current_phase="waiting",
        progress_percent=0.0,
        progress={},
        steps=[],
        log=_first_lines(new),
        attempts=0,
        created_at=new.created_at,
        updated_at=new.created_at,
    )
    session.add(row)
    session.flush()
    return row


def _first_lines(new: NewJob) -> list[dict[str, Any]]:
    """Return the log's beginning: the request that asked for the job, as other logs call it."""
    request_id = current_request_id()
    if request_id is None:
        return []
    message = f"asked for by request {request_id}"
    return [{"at": clock.format_utc(new.created_at), "level": "info", "message": message}]


def _demand(session: Session, new: NewJob) -> dict[str, str]:
    """Return all labels that a job's worker must have."""
    source = session.get(SourceRow, new.source_id) if new.source_id else None
    repository = session.get(RepositoryRow, new.repository_id) if new.repository_id else None
    demanded: dict[str, str] = {}
    for labels in (
        source.required_labels if source is not None else None,
        repository.required_labels if repository is not None else None,
        new.required_labels,
    ):
        for key, value in (labels or {}).items():
            if demanded.setdefault(key, value) != value:
                raise Conflict(
                    f"no worker can have {key}={demanded[key]} and {key}={value}",
                    kind="placement-impossible",
                    hint="source, repository and target of one job must be reachable from one"
                    " machine; change the labels that they require",
                )
    return demanded


def find_job(session: Session, job_id: str) -> JobRow | None:
    """Return a job or None."""
    return session.get(JobRow, job_id)


def get_job(session: Session, job_id: str) -> JobRow:
    """Return a job. Raises NotFound, kind `job-unknown`."""
    row = find_job(session, job_id)
    if row is None:
        raise NotFound(f"job {job_id} is not known", kind="job-unknown", job_id=job_id)
    return row


def find_job_of_vm(session: Session, vm_id: str) -> JobRow | None:
    """Return the job that holds a VM's slot."""
    return session.scalar(select(JobRow).where(JobRow.vm_slot == vm_id))


def list_jobs(session: Session, wanted: JobFilter) -> tuple[Sequence[JobRow], int]:
    """Return a page of jobs, newest first, and how many there are in all."""
    conditions: list[ColumnElement[bool]] = []
    for column, value in (
        (JobRow.status, wanted.status),
        (JobRow.kind, wanted.kind),
        (JobRow.source_id, wanted.source_id),
        (JobRow.repository_id, wanted.repository_id),
    ):
        if value is not None:
            conditions.append(column == value)
    if wanted.created_after is not None:
        conditions.append(JobRow.created_at >= wanted.created_after)
    if wanted.created_before is not None:
        conditions.append(JobRow.created_at < wanted.created_before)
    # Ids come from an index alone; rows, which are long, are read for one page only.
    ids, total = paging.list_ids(
        session,
        select(JobRow.id).where(*conditions),
        newest_first=(JobRow.created_at, JobRow.id),
        limit=wanted.limit,
        offset=wanted.offset,
    )
    rows = session.scalars(select(JobRow).where(JobRow.id.in_(ids)).options(*WITHOUT_HISTORY))
    place = {job_id: number for number, job_id in enumerate(ids)}
    return sorted(rows, key=lambda row: place[row.id]), total


def list_active(session: Session, *, source_id: str | None = None) -> Sequence[JobRow]:
    """Return all jobs that are pending or running, oldest first; perhaps of one source only."""
    query = select(JobRow).where(JobRow.status.in_(ACTIVE)).order_by(JobRow.created_at)
    if source_id is not None:
        query = query.where(JobRow.source_id == source_id)
    return session.scalars(query).all()


def list_active_of_repository(session: Session, repository_id: str) -> Sequence[JobRow]:
    """Return all jobs that are pending or running on a repository."""
    return session.scalars(
        select(JobRow).where(JobRow.status.in_(ACTIVE), JobRow.repository_id == repository_id)
    ).all()


def list_changed_since(session: Session, since: datetime, *, limit: int) -> Sequence[JobRow]:
    """Return jobs changed at or after a moment, in the order of their change."""
    return session.scalars(
        select(JobRow).where(JobRow.updated_at >= since).order_by(JobRow.updated_at).limit(limit)
    ).all()


def list_unqueued(session: Session, *, before: datetime) -> Sequence[JobRow]:
    """Return jobs created before a moment that the engine was never given: a sweep does it.

    One that was created long after it is old too: the clock was set back since.
    """
    return session.scalars(
        select(JobRow)
        .where(
            JobRow.status == JobStatus.PENDING,
            JobRow.enqueued_at.is_(None),
            or_(JobRow.created_at < before, JobRow.created_at > before + CLOCK_SLIP),
        )
        .order_by(JobRow.created_at)
    ).all()


def find_oldest_pending(session: Session) -> datetime | None:
    """Return since when the job waits that waits longest."""
    return session.scalar(
        select(func.min(JobRow.created_at)).where(JobRow.status == JobStatus.PENDING)
    )


def mark_enqueued(session: Session, job_id: str, *, now: datetime) -> None:
    """Note that the engine has the job."""
    row = get_job(session, job_id)
    row.enqueued_at = row.enqueued_at or now


def begin(session: Session, job_id: str, *, now: datetime) -> JobRow:
    """Note that a worker has begun, or begins again; an ended job stays ended."""
    row = get_job(session, job_id)
    if not JobStatus(row.status).is_active:
        return row
    row.status = JobStatus.RUNNING
    row.enqueued_at = row.enqueued_at or now
    row.started_at = row.started_at or now
    row.attempts += 1
    row.updated_at = now
    return row


def set_phase(session: Session, job_id: str, phase: str, *, now: datetime) -> None:
    """Say what the job does from now on."""
    row = get_job(session, job_id)
    row.current_phase = phase
    row.updated_at = now


def set_progress(session: Session, job_id: str, progress: JobProgress, *, now: datetime) -> None:
    """Say how far the job is; the percentage never goes back."""
    row = get_job(session, job_id)
    row.progress_percent = max(row.progress_percent, min(progress.percent, PERCENT_DONE))
    row.progress = {
        **row.progress,
        "bytes_total": progress.bytes_total,
        "bytes_done": progress.bytes_done,
        "bytes_new": progress.bytes_new,
        "bytes_deduplicated": progress.bytes_deduplicated,
        "transfer_speed_bps": progress.transfer_speed_bps,
        "seconds_left": progress.seconds_left,
    }
    row.updated_at = now


def start_step(session: Session, job_id: str, name: str, *, now: datetime) -> None:
    """Note that a step begins; one that begins again is shown once."""
    row = get_job(session, job_id)
    others = [step for step in row.steps if step["name"] != name]
    row.steps = [
        *others,
        {"name": name, "status": JobStatus.RUNNING, "started_at": clock.format_utc(now)},
    ]
    row.updated_at = now


def finish_step(
    session: Session,
    job_id: str,
    name: str,
    *,
    now: datetime,
    error: SendenseError | None = None,
) -> None:
    """Note that a step ended, well or with an error."""
    row = get_job(session, job_id)
    ended: dict[str, Any] = {
        "status": JobStatus.COMPLETED if error is None else JobStatus.FAILED,
        "completed_at": clock.format_utc(now),
        "error": None if error is None else describe(error),
    }
    row.steps = [step if step["name"] != name else {**step, **ended} for step in row.steps]
    row.updated_at = now


def add_log(
    session: Session, job_id: str, message: str, *, now: datetime, level: str = "info"
) -> None:
    """Add a line to the job's log; the oldest of too many go."""
    row = get_job(session, job_id)
    line = {
        "at": clock.format_utc(now),
        "level": level,
        "message": message[:MESSAGE_LENGTH_MAX],
    }
    row.log = [*row.log, line][-LOG_LINES_MAX:]
    row.updated_at = now


def set_snapshot(
    session: Session, job_id: str, reference: dict[str, Any] | None, *, now: datetime
) -> None:
    """Remember how to find the job's snapshot again, or that it is gone."""
    row = get_job(session, job_id)
    row.snapshot = reference
    row.updated_at = now


def request_cancel(session: Session, job_id: str, *, now: datetime) -> JobRow:
    """Ask a job to stop; it looks at least every second."""
    row = get_job(session, job_id)
    row.cancel_requested_at = row.cancel_requested_at or now
    row.updated_at = now
    return row


def is_cancel_requested(session: Session, job_id: str) -> bool:
    """Whether somebody asked the job to stop."""
    return session.scalar(select(JobRow.cancel_requested_at).where(JobRow.id == job_id)) is not None


def finish(
    session: Session,
    job_id: str,
    status: JobStatus,
    *,
    now: datetime,
    error: SendenseError | None = None,
    result: dict[str, Any] | None = None,
) -> JobRow:
    """End a job and free its VM's slot. The first end stays."""
    assert not status.is_active, f"{status} is no end"
    row = get_job(session, job_id)
    if not JobStatus(row.status).is_active:
        return row
    row.status = status
    row.current_phase = status
    row.vm_slot = None
    row.error = None if error is None else describe(error)
    row.result = result if result is not None else row.result
    row.finished_at = now
    row.updated_at = now
    row.progress = {**row.progress, "transfer_speed_bps": None, "seconds_left": None}
    if status is JobStatus.COMPLETED:
        row.progress_percent = PERCENT_DONE
    return row


def describe(error: SendenseError) -> dict[str, Any]:
    """Return an error as the catalog keeps it."""
    return {
        "kind": error.kind,
        "message": error.message[:MESSAGE_LENGTH_MAX],
        "hint": error.hint[:MESSAGE_LENGTH_MAX],
    }
