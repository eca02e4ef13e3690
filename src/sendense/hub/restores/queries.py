"""Restores in the catalog, and the transactions that move them through their life."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from sendense.core.errors import NotFound, SendenseError
from sendense.db.tables import JobRow, RestoreRow
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs.schemas import ACTIVE, JobStatus
from sendense.hub.restores.schemas import RestoreFilter

PERCENT_MAX = 99.9  # what writing can reach; the rest is the sync and the file's own name


@dataclass(frozen=True, slots=True)
class NewRestore:
    """A restore to create, pending."""

    id: str
    job_id: str
    backup_id: str
    disk_id: str
    key: int
    target: dict[str, Any]
    overwrite: bool
    total_bytes: int
    created_at: datetime


def create_restore(session: Session, new: NewRestore) -> RestoreRow:
    """Write a pending restore; its job exists already."""
    row = RestoreRow(
        id=new.id,
        job_id=new.job_id,
        backup_id=new.backup_id,
        disk_id=new.disk_id,
        key=new.key,
        target=new.target,
        overwrite=new.overwrite,
        status=JobStatus.PENDING,
        total_bytes=new.total_bytes,
        created_at=new.created_at,
    )
    session.add(row)
    session.flush()
    return row


def get_restore(session: Session, restore_id: str) -> RestoreRow:
    """Return a restore. Raises NotFound, kind `restore-unknown`."""
    row = session.get(RestoreRow, restore_id)
    if row is None:
        raise NotFound(
            f"restore {restore_id} is not known", kind="restore-unknown", restore_id=restore_id
        )
    return row


def list_restores(session: Session, wanted: RestoreFilter) -> tuple[Sequence[RestoreRow], int]:
    """Return a page of restores, newest first, and how many there are in all."""
    conditions: list[ColumnElement[bool]] = []
    if wanted.backup_id is not None:
        conditions.append(RestoreRow.backup_id == wanted.backup_id)
    if wanted.status is not None:
        conditions.append(RestoreRow.status == wanted.status)
    total = session.scalar(select(func.count()).select_from(RestoreRow).where(*conditions)) or 0
    rows = session.scalars(
        select(RestoreRow)
        .where(*conditions)
        .order_by(RestoreRow.created_at.desc(), RestoreRow.id.desc())
        .limit(wanted.limit)
        .offset(wanted.offset)
    )
    return rows.all(), total


def list_active(session: Session, *, backup_id: str | None = None) -> Sequence[RestoreRow]:
    """Return the restores that are pending or running, perhaps of one backup only."""
    query = select(RestoreRow).where(RestoreRow.status.in_(ACTIVE))
    if backup_id is not None:
        query = query.where(RestoreRow.backup_id == backup_id)
    return session.scalars(query).all()


def list_jobs_of(session: Session, rows: Sequence[RestoreRow]) -> dict[str, JobRow]:
    """Return the jobs of restores by job id."""
    ids = [row.job_id for row in rows if row.job_id is not None]
    return {row.id: row for row in session.scalars(select(JobRow).where(JobRow.id.in_(ids)))}


def begin_restore(session: Session, restore_id: str, *, now: datetime) -> RestoreRow:
    """Note that the restore's job has begun, or begins again after a crash."""
    row = get_restore(session, restore_id)
    if JobStatus(row.status).is_active:
        row.status = JobStatus.RUNNING
        row.started_at = row.started_at or now
    return row


def set_progress(
    session: Session,
    restore_id: str,
    *,
    bytes_total: int,
    bytes_written: int,
    rate: float,
    now: datetime,
) -> None:
    """Note how far a restore is, and with it its job."""
    row = get_restore(session, restore_id)
    row.bytes_written = bytes_written
    if row.job_id is None:
        return
    jobs.set_progress(
        session,
        row.job_id,
        jobs.JobProgress(
            percent=min(PERCENT_MAX, 100.0 * bytes_written / bytes_total) if bytes_total else 0.0,
            bytes_total=bytes_total,
            bytes_done=bytes_written,
            transfer_speed_bps=rate or None,
            seconds_left=max(0, bytes_total - bytes_written) / rate if rate else None,
        ),
        now=now,
    )


def finish_restore(
    session: Session,
    restore_id: str,
    status: JobStatus,
    *,
    now: datetime,
    error: SendenseError | None = None,
) -> RestoreRow:
    """End a restore; its job is ended by the caller. The first end stays."""
    assert not status.is_active, f"{status} is no end"
    row = get_restore(session, restore_id)
    if not JobStatus(row.status).is_active:
        return row
    row.status = status
    row.error = None if error is None else jobs.describe(error)
    row.completed_at = now
    return row
