"""Backups in the catalog, and the transactions that move them through their life.

A backup's row exists before anything refers to it; its disks refer to it, chains refer to both.
What is written here follows the repository: a backup is completed here after it is committed there.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, func, select, update
from sqlalchemy.orm import Session

from sendense.core import clock
from sendense.core.errors import NotFound, SendenseError
from sendense.db.tables import BackupDiskRow, BackupRow, BackupTagRow, JobRow
from sendense.hub.backups import chains
from sendense.hub.backups.schemas import BackupType, RequestedType
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs.schemas import ACTIVE, JobStatus
from sendense.repository.holds import Hold

CLOCK_BACK_MAX = timedelta(days=1)  # time zones mixed up, a slip by hand; see next_moment
RATE_SHARE_MAX = 99.9  # what a transfer can reach; the rest is commit and clean-up


@dataclass(frozen=True, slots=True)
class NewDisk:
    """A disk that a new backup shall hold."""

    vm_disk_id: int
    disk_id: str
    key: int
    index: int
    label: str
    uuid: str
    capacity_bytes: int
    backup_type: BackupType
    type_reason: str | None
    parent_backup_id: str | None


@dataclass(frozen=True, slots=True)
class NewBackup:
    """A backup to create, pending."""

    id: str
    job_id: str
    vm_id: str
    vm_name: str
    repository_id: str
    requested_type: RequestedType
    backup_type: BackupType
    type_reason: str | None
    parent_backup_id: str | None
    consistency_wish: str
    tags: dict[str, str]
    skipped: tuple[dict[str, Any], ...]
    disks: tuple[NewDisk, ...]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """How a disk is read, as decided with its snapshot."""

    key: int
    backup_type: BackupType
    type_reason: str | None
    parent_backup_id: str | None
    capacity_bytes: int
    uuid: str


@dataclass(frozen=True, slots=True)
class DiskProgress:
    """How far one disk's transfer is; the fields of engine.progress.ProgressSnapshot."""

    bytes_total: int
    bytes_read: int
    bytes_new: int
    bytes_deduplicated: int
    rate: float


@dataclass(frozen=True, slots=True)
class DiskResult:
    """One disk as committed."""

    key: int
    capacity_bytes: int
    uuid: str
    change_id: str | None
    root: str | None
    backup_type: BackupType
    type_reason: str | None
    parent_backup_id: str | None
    bytes_read: int
    bytes_new: int
    bytes_deduplicated: int


@dataclass(frozen=True, slots=True)
class BackupResult:
    """A backup as committed.

    Attributes:
        skipped: disks left out after all, as `{"disk_id", "index", "reason"}`.
        immutable_until: nobody deletes it before, or None.
    """

    backup_id: str
    consistency: str
    moment: str
    warnings: tuple[str, ...]
    skipped: tuple[dict[str, Any], ...]
    disks: tuple[DiskResult, ...]
    immutable_until: datetime | None = None


def create_backup(session: Session, new: NewBackup) -> BackupRow:
    """Write a pending backup, then its disks: in this order, which foreign keys hold."""
    row = BackupRow(
        id=new.id,
        job_id=new.job_id,
        vm_id=new.vm_id,
        vm_name=new.vm_name,
        repository_id=new.repository_id,
        parent_backup_id=new.parent_backup_id,
        requested_type=new.requested_type,
        backup_type=new.backup_type,
        type_reason=new.type_reason,
        status=JobStatus.PENDING,
        partial=False,
        skipped=list(new.skipped),
        warnings=[],
        consistency_wish=new.consistency_wish,
        tags=new.tags,
        total_bytes=sum(disk.capacity_bytes for disk in new.disks),
        created_at=new.created_at,
    )
    session.add(row)
    session.flush()
    session.add_all(
        BackupTagRow(
            backup_id=new.id, key=key, value=value, deleted=False, created_at=new.created_at
        )
        for key, value in new.tags.items()
    )
    session.add_all(
        BackupDiskRow(
            backup_id=new.id,
            vm_disk_id=disk.vm_disk_id,
            disk_id=disk.disk_id,
            key=disk.key,
            index=disk.index,
            label=disk.label,
            uuid=disk.uuid,
            capacity_bytes=disk.capacity_bytes,
            parent_backup_id=disk.parent_backup_id,
            backup_type=disk.backup_type,
            type_reason=disk.type_reason,
            status=JobStatus.PENDING,
        )
        for disk in new.disks
    )
    session.flush()
    return row


def next_moment(session: Session, vm_id: str, *, now: datetime) -> datetime:
    """Return when a backup of a VM is made that is requested now: later than the one before it.

    Chains, lists and the choice of a parent go by this order. A clock that was set back keeps it
    for a day; one that was wrong by more gets its time, since years of backups within one second
    would be worse.
    """
    last = session.scalar(select(func.max(BackupRow.created_at)).where(BackupRow.vm_id == vm_id))
    if last is None or not now <= last <= now + CLOCK_BACK_MAX:
        return now
    return last + timedelta(microseconds=1)


def find_backup(session: Session, backup_id: str) -> BackupRow | None:
    """Return a backup, deleted or not, or None."""
    return session.get(BackupRow, backup_id)


def get_backup(session: Session, backup_id: str) -> BackupRow:
    """Return a backup that is not deleted. Raises NotFound, kind `backup-unknown`."""
    row = find_backup(session, backup_id)
    if row is None or row.deleted_at is not None:
        raise NotFound(
            f"backup {backup_id} is not known", kind="backup-unknown", backup_id=backup_id
        )
    return row


def list_disks(session: Session, backup_ids: Sequence[str]) -> dict[str, list[BackupDiskRow]]:
    """Return the disks of backups in the order of their keys, by backup id."""
    found: dict[str, list[BackupDiskRow]] = defaultdict(list)
    for row in session.scalars(
        select(BackupDiskRow)
        .where(BackupDiskRow.backup_id.in_(backup_ids))
        .order_by(BackupDiskRow.key)
    ):
        found[row.backup_id].append(row)
    return found


def list_jobs_of(session: Session, backups: Sequence[Row[Any]]) -> dict[str, JobRow]:
    """Return the jobs of backups by job id, without steps and log.

    Those of completed backups are left out: nothing that the API shows of them is not in the row.
    """
    ids = [
        row.job_id
        for row in backups
        if row.job_id is not None and row.status != JobStatus.COMPLETED
    ]
    if not ids:
        return {}
    query = select(JobRow).where(JobRow.id.in_(ids)).options(*jobs.WITHOUT_HISTORY)
    return {row.id: row for row in session.scalars(query)}


def find_parent(
    session: Session, *, vm_id: str, key: int, repository_id: str
) -> BackupDiskRow | None:
    """Return a disk as its newest completed backup in a repository holds it, or None."""
    return session.scalar(
        select(BackupDiskRow)
        .join(BackupRow, BackupRow.id == BackupDiskRow.backup_id)
        .where(
            BackupRow.vm_id == vm_id,
            BackupRow.repository_id == repository_id,
            BackupRow.status == JobStatus.COMPLETED,
            BackupRow.deleted_at.is_(None),
            BackupDiskRow.key == key,
            BackupDiskRow.status == JobStatus.COMPLETED,
        )
        .order_by(BackupRow.created_at.desc(), BackupRow.id.desc())
        .limit(1)
    )


def list_live_change_ids(session: Session, vm_id: str) -> frozenset[str]:
    """Return the change ids that next incrementals of a VM build on, in every repository.

    These are those of the newest live backup of each of its disks in each repository.
    """
    return frozenset(
        disk.change_id
        for chain in chains.list_chains(session, vm_id)
        if (
            disk := find_parent(
                session, vm_id=vm_id, key=chain.key, repository_id=chain.repository_id
            )
        )
        and disk.change_id
    )


def count_live(
    session: Session, *, repository_id: str | None = None, vm_ids: Sequence[str] | None = None
) -> int:
    """Return how many backups there are that are neither deleted nor failed nor cancelled."""
    conditions: list[ColumnElement[bool]] = [
        BackupRow.deleted_at.is_(None),
        BackupRow.status.in_({*ACTIVE, JobStatus.COMPLETED}),
    ]
    if repository_id is not None:
        conditions.append(BackupRow.repository_id == repository_id)
    if vm_ids is not None:
        conditions.append(BackupRow.vm_id.in_(vm_ids))
    return session.scalar(select(func.count()).select_from(BackupRow).where(*conditions)) or 0


def begin_backup(session: Session, backup_id: str, *, now: datetime) -> BackupRow:
    """Note that the backup's job has begun, or begins again after a crash."""
    row = get_backup(session, backup_id)
    if JobStatus(row.status).is_active:
        row.status = JobStatus.RUNNING
        row.started_at = row.started_at or now
    return row


def set_plan(
    session: Session,
    backup_id: str,
    plans: Sequence[DiskPlan],
    *,
    skipped: Sequence[dict[str, Any]] = (),
) -> None:
    """Note how each disk is read and which are left out after all; disks not named stay."""
    row = get_backup(session, backup_id)
    disks = {disk.key: disk for disk in list_disks(session, [backup_id])[backup_id]}
    for plan in plans:
        disk = disks[plan.key]
        disk.backup_type = plan.backup_type
        disk.type_reason = plan.type_reason
        disk.parent_backup_id = plan.parent_backup_id
        disk.capacity_bytes = plan.capacity_bytes
        disk.uuid = plan.uuid
    _skip(session, row, disks, skipped)
    _summarise(row, list(disks.values()))


def set_disk_progress(
    session: Session, backup_id: str, key: int, progress: DiskProgress, *, now: datetime
) -> None:
    """Note how far one disk's transfer is, and with it the backup and its job."""
    row = get_backup(session, backup_id)
    disks = list_disks(session, [backup_id])[backup_id]
    for disk in disks:
        if disk.key == key:
            disk.status = JobStatus.RUNNING
            disk.bytes_total = progress.bytes_total
            disk.bytes_read = progress.bytes_read
            disk.bytes_new = progress.bytes_new
            disk.bytes_deduplicated = progress.bytes_deduplicated
    _summarise(row, disks)
    if row.job_id is None:
        return
    job = jobs.get_job(session, row.job_id)
    rates = {**job.progress.get("rates", {}), str(key): progress.rate}
    rate = sum(rates.values())
    total = sum(disk.bytes_total for disk in disks)
    job.progress = {**job.progress, "rates": rates}
    jobs.set_progress(
        session,
        row.job_id,
        jobs.JobProgress(
            percent=_percent(disks),
            bytes_total=total,
            bytes_done=row.bytes_read,
            bytes_new=row.bytes_new,
            bytes_deduplicated=row.bytes_deduplicated,
            transfer_speed_bps=rate or None,
            seconds_left=max(0, total - row.bytes_read) / rate if rate else None,
        ),
        now=now,
    )


def _percent(disks: Sequence[BackupDiskRow]) -> float:
    """Return the share of what is to be read; a disk that has not begun counts by its size."""
    total = sum(disk.bytes_total or disk.capacity_bytes for disk in disks)
    done = sum(disk.bytes_read for disk in disks)
    return min(RATE_SHARE_MAX, 100.0 * done / total) if total else 0.0


def complete_backup(session: Session, result: BackupResult, *, now: datetime) -> BackupRow:
    """Record a committed backup: its disks, then the chains, in the caller's one transaction.

    Idempotent: a completed backup is returned as it is. The job is finished by the caller, when
    the snapshot is gone too.
    """
    row = get_backup(session, result.backup_id)
    if row.status == JobStatus.COMPLETED:
        return row
    disks = {disk.key: disk for disk in list_disks(session, [row.id])[row.id]}
    for done in result.disks:
        disk = disks[done.key]
        disk.status = JobStatus.COMPLETED
        disk.capacity_bytes = done.capacity_bytes
        disk.uuid = done.uuid
        disk.change_id = done.change_id
        disk.root = done.root
        disk.backup_type = done.backup_type
        disk.type_reason = done.type_reason
        disk.parent_backup_id = done.parent_backup_id
        disk.bytes_total = max(disk.bytes_total, done.bytes_read)
        disk.bytes_read = done.bytes_read
        disk.bytes_new = done.bytes_new
        disk.bytes_deduplicated = done.bytes_deduplicated
    _skip(session, row, disks, result.skipped)
    _summarise(row, list(disks.values()))
    row.status = JobStatus.COMPLETED
    row.partial = bool(row.skipped)
    row.consistency = result.consistency
    row.moment = result.moment
    row.warnings = [*result.warnings]
    row.error = None
    row.immutable_until = result.immutable_until
    row.started_at = row.started_at or now
    row.completed_at = now
    session.flush()
    assert row.vm_id is not None, f"the VM of {row.id} was removed while its backup ran"
    for disk in disks.values():
        chains.follow(
            session, vm_id=row.vm_id, key=disk.key, repository_id=row.repository_id, now=now
        )
    return row


def describe_hold(hold: Hold) -> dict[str, Any]:
    """Return what the catalog keeps of a hold."""
    return {"who": hold.who, "why": hold.why, "at": clock.format_utc(hold.at)}


def set_hold(session: Session, backup_id: str, hold: Hold | None) -> BackupRow:
    """Note who holds a backup, or that nobody does; its repository knows already."""
    row = get_backup(session, backup_id)
    row.hold = describe_hold(hold) if hold is not None else None
    session.flush()
    return row


def fail_backup(
    session: Session,
    backup_id: str,
    status: JobStatus,
    error: SendenseError,
    *,
    now: datetime,
) -> BackupRow:
    """End a backup that was not committed, as failed or cancelled. A completed one stays so."""
    assert status in {JobStatus.FAILED, JobStatus.CANCELLED}, f"{status} is no failure"
    row = get_backup(session, backup_id)
    if not JobStatus(row.status).is_active:
        return row
    row.status = status
    row.error = jobs.describe(error)
    row.completed_at = now
    for disk in list_disks(session, [backup_id])[backup_id]:
        disk.status = status
    return row


def delete_backup(session: Session, backup_id: str, *, now: datetime) -> BackupRow:
    """Mark a backup as deleted and let its chains follow, in the caller's one transaction."""
    row = get_backup(session, backup_id)
    row.deleted_at = now
    session.execute(
        update(BackupTagRow).where(BackupTagRow.backup_id == backup_id).values(deleted=True)
    )
    session.flush()
    if row.vm_id is not None:
        for disk in list_disks(session, [backup_id])[backup_id]:
            chains.follow(
                session, vm_id=row.vm_id, key=disk.key, repository_id=row.repository_id, now=now
            )
    return row


def _skip(
    session: Session,
    row: BackupRow,
    disks: dict[int, BackupDiskRow],
    skipped: Sequence[dict[str, Any]],
) -> None:
    """Leave disks out after all: their rows go, the backup says why."""
    for entry in skipped:
        key = next((key for key, disk in disks.items() if disk.disk_id == entry["disk_id"]), None)
        if key is not None:
            session.delete(disks.pop(key))
    known = {entry["disk_id"] for entry in row.skipped}
    row.skipped = [*row.skipped, *(entry for entry in skipped if entry["disk_id"] not in known)]


def _summarise(row: BackupRow, disks: Sequence[BackupDiskRow]) -> None:
    """Let the backup say what its disks say together."""
    row.total_bytes = sum(disk.capacity_bytes for disk in disks)
    row.bytes_read = sum(disk.bytes_read for disk in disks)
    row.bytes_new = sum(disk.bytes_new for disk in disks)
    row.bytes_deduplicated = sum(disk.bytes_deduplicated for disk in disks)
    incremental = [disk for disk in disks if disk.backup_type == BackupType.INCREMENTAL]
    full = [disk for disk in disks if disk.backup_type == BackupType.FULL]
    row.backup_type = BackupType.INCREMENTAL if incremental else BackupType.FULL
    parents = sorted({disk.parent_backup_id for disk in incremental if disk.parent_backup_id})
    row.parent_backup_id = parents[-1] if parents else None
    reasons = {disk.type_reason for disk in full if disk.type_reason}
    if len(reasons) == 1 and not incremental:
        row.type_reason = reasons.pop()
    else:
        told = [f"{disk.disk_id}: {disk.type_reason}" for disk in full if disk.type_reason]
        row.type_reason = "; ".join(told)[: jobs.MESSAGE_LENGTH_MAX] or None
