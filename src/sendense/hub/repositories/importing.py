"""Writing into the catalog what a repository holds: after the hub, or only its database, was lost.

A backup is written as `record` would have written it, in the same order: its row, its disks, then
the chains. What a manifest does not tell is not made up: the VM counts as gone until a discovery
finds it, and its source has neither address nor credentials until somebody gives them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Text, cast, select
from sqlalchemy.orm import Session

from sendense.connectors.base import disk_id
from sendense.core.ids import IdSource, new_id
from sendense.db.base import ID_LENGTH_MAX, NAME_LENGTH_MAX
from sendense.db.tables import (
    BackupDiskRow,
    BackupRow,
    BackupTagRow,
    DiskRow,
    RepositoryRow,
    SourceRow,
    VmRow,
)
from sendense.hub.backups import chains
from sendense.hub.backups import queries as backups
from sendense.hub.backups.schemas import BackupType, RequestedType
from sendense.hub.jobs.schemas import JobStatus
from sendense.hub.sources import queries as sources
from sendense.hub.vms.schemas import PowerState
from sendense.repository.holds import Hold
from sendense.repository.manifest import DiskRecord, Manifest, Mode

SOURCE_TROUBLE = "imported from a repository: give its configuration, then discover its VMs"
_NAMES_MAX = 1000  # tries for a free name; two repositories know a few sources


@dataclass(frozen=True, slots=True)
class Imported:
    """What one call wrote; `elsewhere` are ids that the catalog has in another repository."""

    added: int
    known: int
    elsewhere: tuple[str, ...]


def write(
    session: Session,
    repository: RepositoryRow,
    manifests: Iterable[Manifest],
    *,
    ids: IdSource,
    now: datetime,
) -> Imported:
    """Write backups that the catalog does not have, parents before children. Idempotent."""
    added, known, elsewhere = 0, 0, []
    for one in manifests:
        row = session.get(BackupRow, one.backup_id)
        if row is None:
            vm = _find_or_add_vm(session, one, ids=ids, now=now)
            _add_backup(session, repository, vm, one, now=now)
            added += 1
        elif row.repository_id == repository.id:
            known += 1
        else:
            elsewhere.append(one.backup_id)
    return Imported(added, known, tuple(elsewhere))


def follow_holds(session: Session, repository: RepositoryRow, held: Mapping[str, Hold]) -> None:
    """Make the catalog agree with who holds which backups of a repository."""
    noted = select(BackupRow).where(
        BackupRow.repository_id == repository.id, cast(BackupRow.hold, Text).is_not(None)
    )
    for row in session.scalars(noted):
        if row.id not in held:
            row.hold = None
    for backup_id, hold in held.items():
        found = session.get(BackupRow, backup_id)
        if found is not None and found.repository_id == repository.id:
            found.hold = backups.describe_hold(hold)


def list_vanished(
    session: Session, repository: RepositoryRow, manifests: Iterable[Manifest]
) -> list[str]:
    """Return the live, completed backups that the repository does not have."""
    there = {one.backup_id for one in manifests}
    known = session.scalars(
        select(BackupRow.id).where(
            BackupRow.repository_id == repository.id,
            BackupRow.status == JobStatus.COMPLETED,
            BackupRow.deleted_at.is_(None),
        )
    )
    return sorted(set(known) - there)


def follow_chains(
    session: Session, repository: RepositoryRow, manifests: Iterable[Manifest], *, now: datetime
) -> None:
    """Make the chains of all disks in some manifests agree with the catalog."""
    wanted = {
        (one.vm.source_uuid, one.vm.uuid, disk.key) for one in manifests for disk in one.disks
    }
    for source_uuid, vm_uuid, key in sorted(wanted):
        vm = _find_vm(session, source_uuid, vm_uuid)
        if vm is not None:
            chains.follow(session, vm_id=vm.id, key=key, repository_id=repository.id, now=now)


def _add_backup(
    session: Session, repository: RepositoryRow, vm: VmRow, one: Manifest, *, now: datetime
) -> None:
    reasons = {disk.mode_reason for disk in one.disks if disk.mode_reason}
    parents = [_find_parent(session, disk) for disk in one.disks]
    is_incremental = any(disk.mode is Mode.INCREMENTAL for disk in one.disks)
    session.add(
        BackupRow(
            id=one.backup_id,
            job_id=None,
            vm_id=vm.id,
            vm_name=one.vm.name,
            repository_id=repository.id,
            parent_backup_id=max((parent for parent in parents if parent), default=None),
            requested_type=_requested_type(one),
            backup_type=BackupType.INCREMENTAL if is_incremental else BackupType.FULL,
            type_reason="; ".join(sorted(reasons)) or None,
            status=JobStatus.COMPLETED,
            partial=one.partial,
            skipped=[
                {"disk_id": disk_id(each.key), "index": each.index, "reason": each.reason}
                for each in one.skipped
            ],
            warnings=[*one.warnings],
            consistency_wish=one.consistency,
            consistency=one.consistency,
            tags={**one.tags},
            total_bytes=sum(disk.size_bytes for disk in one.disks),
            bytes_read=sum(disk.bytes_read for disk in one.disks),
            bytes_new=sum(disk.bytes_new for disk in one.disks),
            bytes_deduplicated=sum(disk.bytes_deduplicated for disk in one.disks),
            created_at=one.created_at,
            started_at=one.started_at,
            completed_at=one.completed_at,
            moment=one.disks[0].moment if one.disks else None,
            imported_at=now,
            immutable_until=one.immutable_until,
        )
    )
    session.flush()
    _add_tags(session, one.backup_id, one.tags, created_at=one.created_at)
    disks = session.execute(select(DiskRow.key, DiskRow.id).where(DiskRow.vm_id == vm.id))
    known = {row.key: row.id for row in disks}
    session.add_all(
        _describe_disk(one.backup_id, disk, vm_disk_id=known.get(disk.key), parent=parent)
        for disk, parent in zip(one.disks, parents, strict=True)
    )
    session.flush()


def _add_tags(
    session: Session, backup_id: str, tags: Mapping[str, str], *, created_at: datetime
) -> None:
    session.add_all(
        BackupTagRow(
            backup_id=backup_id, key=key, value=value, deleted=False, created_at=created_at
        )
        for key, value in tags.items()
    )


def _describe_disk(
    backup_id: str, disk: DiskRecord, *, vm_disk_id: int | None, parent: str | None
) -> BackupDiskRow:
    return BackupDiskRow(
        backup_id=backup_id,
        vm_disk_id=vm_disk_id,
        disk_id=disk_id(disk.key),
        key=disk.key,
        index=disk.index,
        label=disk.label,
        uuid=disk.uuid,
        capacity_bytes=disk.size_bytes,
        change_id=disk.change_id,
        root=disk.root.hex(),
        parent_backup_id=parent,
        backup_type=BackupType(disk.mode),
        type_reason=disk.mode_reason or None,
        status=JobStatus.COMPLETED,
        bytes_total=disk.bytes_read,
        bytes_read=disk.bytes_read,
        bytes_new=disk.bytes_new,
        bytes_deduplicated=disk.bytes_deduplicated,
    )


def _find_parent(session: Session, disk: DiskRecord) -> str | None:
    """Return what an incremental was built on, where the catalog has it; it may be deleted."""
    if disk.mode is not Mode.INCREMENTAL or disk.parent_backup_id is None:
        return None
    parent = session.get(BackupRow, disk.parent_backup_id)
    return parent.id if parent is not None else None


def _requested_type(one: Manifest) -> str:
    known = {str(each) for each in RequestedType}
    return one.requested_type if one.requested_type in known else str(RequestedType.AUTO)


def _find_vm(session: Session, source_uuid: str, vm_uuid: str) -> VmRow | None:
    return session.scalar(
        select(VmRow).where(VmRow.source_uuid == source_uuid, VmRow.vm_uuid == vm_uuid)
    )


def _find_or_add_vm(session: Session, one: Manifest, *, ids: IdSource, now: datetime) -> VmRow:
    """Return a manifest's VM; one that is new here counts as gone until a discovery finds it."""
    told = one.vm
    row = _find_vm(session, told.source_uuid, told.uuid)
    if row is None:
        source = _find_or_add_source(session, one, ids=ids, now=now)
        row = VmRow(
            id=new_id("vm", ids),
            source_id=source.id,
            source_uuid=told.source_uuid,
            vm_uuid=told.uuid,
            name=told.name,
            power_state=PowerState.UNKNOWN,
            tags={},
            created_at=now,
            seen_at=one.completed_at,
            gone_at=now,
        )
        session.add(row)
        session.flush()
    elif row.gone_at is not None and row.seen_at < one.completed_at:
        row.name, row.seen_at = told.name, one.completed_at  # as its newest backup names it
    return row


def _find_or_add_source(
    session: Session, one: Manifest, *, ids: IdSource, now: datetime
) -> SourceRow:
    """Return a manifest's source; a new one has no configuration yet, but its identity.

    So what a user gives it later is the same platform, and its VMs are known again. A source
    without an identity of its own goes by the id that the lost hub gave it, and keeps that.
    """
    told = one.vm
    row = sources.find_by_uuid(session, told.source_uuid)
    if row is None:
        is_ours = told.source_uuid.startswith("source-")
        row = SourceRow(
            id=told.source_uuid[:ID_LENGTH_MAX] if is_ours else new_id("source", ids),
            uuid=told.source_uuid,
            name=_free_name(session, told.source_name),
            type=told.source_type,
            config={},
            credentials=None,
            required_labels=None,
            created_at=now,
            updated_at=now,
            trouble=SOURCE_TROUBLE,
        )
        session.add(row)
        session.flush()
    return row


def _free_name(session: Session, name: str) -> str:
    taken = set(session.scalars(select(SourceRow.name)))
    tried = (name, *(f"{name[: NAME_LENGTH_MAX - 8]}-{number}" for number in range(2, _NAMES_MAX)))
    return next(one for one in tried if one not in taken)
