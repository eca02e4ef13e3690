"""Chains: for each disk and repository, where its live backups begin and end.

A chain is derived: after a backup is completed or deleted, its row is made to follow.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Select, func, select
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


def list_members(session: Session, chain: ChainRow, columns: tuple[Any, ...]) -> Sequence[Row[Any]]:
    """Return columns of the live backups of a chain, oldest first."""
    query = _select_members(columns, chain.vm_id, chain.key, chain.repository_id)
    return session.execute(query.order_by(BackupRow.created_at, BackupRow.id)).all()


def follow(
    session: Session, *, vm_id: str, key: int, repository_id: str, now: datetime
) -> ChainRow | None:
    """Make a chain's row agree with its live backups; without any, there is no row.

    Its full backup is the oldest that remains: every backup can be restored on its own, so the
    chain only tells where it begins.
    """
    place = (vm_id, key, repository_id)
    ends = _select_members((BackupDiskRow,), *place).limit(1)
    oldest = session.scalar(ends.order_by(BackupRow.created_at, BackupRow.id))
    newest = session.scalar(ends.order_by(BackupRow.created_at.desc(), BackupRow.id.desc()))
    row = session.scalar(
        select(ChainRow).where(
            ChainRow.vm_id == vm_id, ChainRow.key == key, ChainRow.repository_id == repository_id
        )
    )
    if oldest is None or newest is None:
        if row is not None:
            session.delete(row)
            session.flush()
        return None
    # Counted by the database: a chain may have thousands, and this runs in a write transaction.
    figures = func.count(), func.coalesce(func.sum(BackupDiskRow.bytes_new), 0)
    total, size = session.execute(_select_members(figures, *place)).one()
    if row is None:
        row = ChainRow(
            id=chain_id(vm_id=vm_id, key=key, repository_id=repository_id),
            vm_id=vm_id,
            disk_id=oldest.disk_id,
            key=key,
            repository_id=repository_id,
            created_at=now,
        )
        session.add(row)
    row.full_backup_id = oldest.backup_id
    row.latest_backup_id = newest.backup_id
    row.total_backups = total
    row.total_size_bytes = int(size)
    row.updated_at = now
    session.flush()
    return row


def _select_members(what: tuple[Any, ...], vm_id: str, key: int, repository_id: str) -> Select[Any]:
    """Ask for something of the live backups of a disk in a repository, in no order."""
    return (
        select(*what)
        .select_from(BackupRow)
        .join(BackupDiskRow, BackupDiskRow.backup_id == BackupRow.id)
        .where(
            BackupRow.vm_id == vm_id,
            BackupRow.repository_id == repository_id,
            BackupRow.status == JobStatus.COMPLETED,
            BackupRow.deleted_at.is_(None),
            BackupDiskRow.key == key,
            BackupDiskRow.status == JobStatus.COMPLETED,
        )
    )
