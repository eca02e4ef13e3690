"""Backups as the API shows them, many at once.

A chain has hundreds of members. So columns are read instead of objects, disks within them, and one
pass makes the models: half the time of an object for each row and a call for each model.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from sendense.db.packed import packed, unpack
from sendense.db.tables import BackupDiskRow, BackupRow, JobRow
from sendense.hub.backups import queries
from sendense.hub.backups.schemas import Backup, BackupDisk
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs.schemas import JobStatus

_DISK_FIELDS = tuple(BackupDisk.model_fields)
# By key, and the key goes first: rows are packed in no order.
_DISKS = (
    select(packed(BackupDiskRow.key, *(BackupDiskRow.__table__.c[name] for name in _DISK_FIELDS)))
    .where(BackupDiskRow.backup_id == BackupRow.id)
    .correlate(BackupRow)
    .scalar_subquery()
    .label("packed_disks")
)
_FIELDS = tuple(name for name, _ in BackupRow.__table__.c.items() if name in Backup.model_fields)
# What `show` needs of a backup's row, disks at last; the others have the names of its fields.
COLUMNS = (
    BackupRow.id.label("backup_id"),
    *(BackupRow.__table__.c[name] for name in _FIELDS),
    _DISKS,
)
_NAMES = ("backup_id", *_FIELDS)
_BACKUPS = TypeAdapter(list[Backup])


def show(session: Session, rows: Sequence[Row[Any]]) -> list[Backup]:
    """Return backups as the API shows them, of rows of COLUMNS."""
    job_rows = queries.list_jobs_of(session, rows)
    return _BACKUPS.validate_python(
        [
            _describe(row, _name_disks(disks), job_rows.get(row.job_id or ""))
            for row, disks in zip(rows, unpack(row.packed_disks for row in rows), strict=True)
        ]
    )


def _name_disks(disks: list[list[Any]]) -> list[dict[str, Any]]:
    """Return the disks of a backup in the order of their keys."""
    return [dict(zip(_DISK_FIELDS, values, strict=True)) for _, *values in sorted(disks)]


def _describe(row: Row[Any], disks: list[dict[str, Any]], job: JobRow | None) -> dict[str, Any]:
    status = JobStatus(row.status)
    active = job if status.is_active else None
    known = sum(disk["bytes_total"] for disk in disks)
    return {
        **dict(zip(_NAMES, row[:-1], strict=True)),
        "progress_percent": _percent(status, job),
        "current_phase": active.current_phase if active is not None else status,
        "bytes_transferred": row.bytes_read,
        "bytes_to_read": known if known or not status.is_active else None,
        "transfer_speed_bps": _speed(row.bytes_read, row.started_at, row.completed_at, active),
        "seconds_left": active.progress.get("seconds_left") if active is not None else None,
        "disks": disks,
    }


def _percent(status: JobStatus, job: JobRow | None) -> float:
    if status is JobStatus.COMPLETED:
        return jobs.PERCENT_DONE
    return round(job.progress_percent, 1) if job is not None else 0.0


def _speed(
    bytes_read: int, started: datetime | None, completed: datetime | None, active: JobRow | None
) -> float | None:
    """Return the rate of the moment while it runs, and the mean of the whole afterwards."""
    if active is not None:
        speed: float | None = active.progress.get("transfer_speed_bps")
        return speed
    if started is None or completed is None:
        return None
    seconds = (completed - started).total_seconds()
    return round(bytes_read / seconds, 1) if seconds > 0 else None
