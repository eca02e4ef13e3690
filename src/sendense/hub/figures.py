"""Counts and sums over the whole catalog, for monitoring."""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sendense.db.tables import BackupRow, JobRow, RepositoryRow, VmRow
from sendense.hub.context import Hub
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs.schemas import ACTIVE, JobStatus

# Each VM is a series of its own in the monitoring; an estate beyond this watches the sum.
VM_SERIES_MAX = 10_000


@dataclass(frozen=True, slots=True)
class RepositoryFigures:
    """A repository as it was last measured; None is "not known"."""

    repository_id: str
    name: str
    capacity_bytes: int | None
    free_bytes: int | None
    trouble: str


@dataclass(frozen=True, slots=True)
class Figures:
    """What monitoring wants to know of the catalog, read in one transaction.

    Attributes:
        jobs: how many by (kind, status).
        backups: how many ended by (status,), deleted ones included.
        workers: how many by (state,).
        last_backups: Unix time of the newest completed backup by (vm_id, name); at most
            VM_SERIES_MAX.
    """

    jobs: tuple[tuple[tuple[str, str], int], ...]
    oldest_waiting_seconds: float
    workers: tuple[tuple[tuple[str], int], ...]
    backups: tuple[tuple[tuple[str], int], ...]
    bytes_read: int
    bytes_new: int
    bytes_deduplicated: int
    vms: int
    vms_without_backup: int
    last_backups: tuple[tuple[tuple[str, str], float], ...]
    repositories: tuple[RepositoryFigures, ...]


def read_figures(hub: Hub) -> Figures:
    """Read the catalog's figures. Raises Unavailable where it does not answer."""
    now = hub.clock.now()
    with hub.catalog.read() as session:
        oldest = jobs.find_oldest_pending(session)
        alive = sum(live for _, live in hub.list_workers(session))
        known = len(hub.list_workers(session))
        backups, sums = _sum_backups(session)
        vms = session.scalar(select(func.count()).select_from(VmRow)) or 0
        last = _last_backups(session)
        return Figures(
            jobs=tuple(
                ((kind, status), count)
                for kind, status, count in session.execute(
                    select(JobRow.kind, JobRow.status, func.count()).group_by(
                        JobRow.kind, JobRow.status
                    )
                )
            ),
            oldest_waiting_seconds=max((now - oldest).total_seconds(), 0.0) if oldest else 0.0,
            workers=((("live",), alive), (("stale",), known - alive)),
            backups=backups,
            bytes_read=sums[0],
            bytes_new=sums[1],
            bytes_deduplicated=sums[2],
            vms=vms,
            vms_without_backup=vms - len(last),
            last_backups=last[:VM_SERIES_MAX],
            repositories=tuple(
                RepositoryFigures(row.id, row.name, row.capacity_bytes, row.free_bytes, row.trouble)
                for row in session.scalars(select(RepositoryRow).order_by(RepositoryRow.id))
            ),
        )


def _sum_backups(
    session: Session,
) -> tuple[tuple[tuple[tuple[str], int], ...], tuple[int, int, int]]:
    """Return how many backups ended, by state, and what they moved in all."""
    rows = session.execute(
        select(
            BackupRow.status,
            func.count(),
            func.sum(BackupRow.bytes_read),
            func.sum(BackupRow.bytes_new),
            func.sum(BackupRow.bytes_deduplicated),
        )
        .where(BackupRow.status.not_in(ACTIVE))
        .group_by(BackupRow.status)
        .order_by(BackupRow.status)
    ).all()
    counts = tuple(((str(row[0]),), int(row[1])) for row in rows)
    read, new, known = (sum(int(row[column] or 0) for row in rows) for column in (2, 3, 4))
    return counts, (read, new, known)


def _last_backups(session: Session) -> tuple[tuple[tuple[str, str], float], ...]:
    """Return when each VM that has one completed its newest backup."""
    newest = (
        select(BackupRow.vm_id, func.max(BackupRow.completed_at).label("at"))
        .where(
            BackupRow.status == JobStatus.COMPLETED,
            BackupRow.deleted_at.is_(None),
            BackupRow.vm_id.is_not(None),
        )
        .group_by(BackupRow.vm_id)
        .subquery()
    )
    rows = session.execute(
        select(VmRow.id, VmRow.name, newest.c.at)
        .join(newest, newest.c.vm_id == VmRow.id)
        .order_by(VmRow.id)
    )
    return tuple(((vm_id, name), at.timestamp()) for vm_id, name, at in rows)
