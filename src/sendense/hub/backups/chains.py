"""Chains: for each disk and repository, where its live backups begin and end.

A chain is derived: after a backup is completed or deleted, its row is made to follow.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from sendense.db.tables import BackupDiskRow, BackupRow, ChainRow
from sendense.hub.jobs.schemas import JobStatus

_ID_DIGITS = 16  # 64 bits: two chains of one hub never meet


def chain_id(*, vm_id: str, key: int, repository_id: str) -> str:
    """Return a chain's id; a chain that ended and begins again has the same."""
    identity = f"{vm_id}\n{key}\n{repository_id}".encode()
    return f"chain-{hashlib.sha256(identity).hexdigest()[:_ID_DIGITS]}"


def list_chains(
    session: Session, vm_id: str, *, disk_id: str | None = None, repository_id: str | None = None
) -> Sequence[ChainRow]:
    """Return a VM's chains in the order of disk and repository."""
    query = select(ChainRow).where(ChainRow.vm_id == vm_id)
    if disk_id is not None:
        query = query.where(ChainRow.disk_id == disk_id)
    if repository_id is not None:
        query = query.where(ChainRow.repository_id == repository_id)
    return session.scalars(query.order_by(ChainRow.key, ChainRow.repository_id)).all()


def list_members(session: Session, chain: ChainRow) -> Sequence[BackupRow]:
    """Return the live backups of a chain, oldest first."""
    return [backup for backup, _ in _members(session, chain.vm_id, chain.key, chain.repository_id)]


def follow(
    session: Session, *, vm_id: str, key: int, repository_id: str, now: datetime
) -> ChainRow | None:
    """Make a chain's row agree with its live backups; without any, there is no row.

    Its full backup is the oldest that remains: every backup can be restored on its own, so the
    chain only tells where it begins.
    """
    members = _members(session, vm_id, key, repository_id)
    row = session.scalar(
        select(ChainRow).where(
            ChainRow.vm_id == vm_id, ChainRow.key == key, ChainRow.repository_id == repository_id
        )
    )
    if not members:
        if row is not None:
            session.delete(row)
            session.flush()
        return None
    if row is None:
        row = ChainRow(
            id=chain_id(vm_id=vm_id, key=key, repository_id=repository_id),
            vm_id=vm_id,
            disk_id=members[0][1].disk_id,
            key=key,
            repository_id=repository_id,
            created_at=now,
        )
        session.add(row)
    row.full_backup_id = members[0][0].id
    row.latest_backup_id = members[-1][0].id
    row.total_backups = len(members)
    row.total_size_bytes = sum(disk.bytes_new for _, disk in members)
    row.updated_at = now
    session.flush()
    return row


def _members(
    session: Session, vm_id: str, key: int, repository_id: str
) -> Sequence[tuple[BackupRow, BackupDiskRow]]:
    found = session.execute(
        select(BackupRow, BackupDiskRow)
        .join(BackupDiskRow, BackupDiskRow.backup_id == BackupRow.id)
        .where(
            BackupRow.vm_id == vm_id,
            BackupRow.repository_id == repository_id,
            BackupRow.status == JobStatus.COMPLETED,
            BackupRow.deleted_at.is_(None),
            BackupDiskRow.key == key,
            BackupDiskRow.status == JobStatus.COMPLETED,
        )
        .order_by(BackupRow.created_at, BackupRow.id)
    )
    return [(backup, disk) for backup, disk in found]
