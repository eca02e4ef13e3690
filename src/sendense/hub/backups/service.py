"""What is checked before a backup starts, and how backups are shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from sendense.connectors.base import DiskSnapshot, Tracking
from sendense.core import ids
from sendense.core.errors import Conflict, Invalid, NotFound
from sendense.db.tables import BackupDiskRow, BackupRow, ChainRow, DiskRow, VmRow
from sendense.engine import plan
from sendense.hub.backups import chains, listing, queries, shown
from sendense.hub.backups.schemas import (
    Backup,
    BackupAccepted,
    BackupFilter,
    BackupList,
    BackupType,
    Chain,
    ChainList,
    RequestedType,
    StartBackup,
)
from sendense.hub.context import Hub
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs import service as job_service
from sendense.hub.jobs.schemas import JobKind, JobStatus
from sendense.hub.repositories import queries as repositories
from sendense.hub.vms import queries as vms
from sendense.hub.vms import service as vm_service
from sendense.repository.holds import Hold


@dataclass(frozen=True, slots=True)
class _Choice:
    """The disks that a backup shall hold, and those it leaves out."""

    disks: tuple[DiskRow, ...]
    skipped: tuple[dict[str, Any], ...]


def start(
    session: Session, hub: Hub, wanted: StartBackup, *, retry_of: str | None = None
) -> BackupAccepted:
    """Check a request and write job, backup and disks, all pending.

    The repository was checked before, outside the transaction. Raises, with nothing written:
    `vm-unknown`, `vm-name-ambiguous`, `vm-gone`, `disk-unknown`, `disk-excluded`,
    `disk-without-capacity`, `backup-running`.
    """
    vm = _find_vm(session, wanted)
    check_slot(session, vm)
    choice = _choose(session, vm, wanted.disk_id)
    now = queries.next_moment(session, vm.id, now=hub.clock.now())
    chunk_size = repositories.get_repository(session, wanted.repository_id).chunk_size
    new_disks = tuple(_plan(session, disk, wanted, chunk_size=chunk_size) for disk in choice.disks)
    backup_id = ids.backup_id(vm.name, at=now, source=hub.ids)
    job_id = ids.new_id("job", hub.ids)
    jobs.create_job(
        session,
        jobs.NewJob(
            id=job_id,
            kind=JobKind.BACKUP,
            subject={"backup_id": backup_id, "vm_id": vm.id},
            priority=job_service.PRIORITY_INTERACTIVE,
            created_at=now,
            vm_slot=vm.id,
            source_id=vm.source_id,
            repository_id=wanted.repository_id,
            retry_of=retry_of,
        ),
    )
    backup_type, type_reason = _summarise(new_disks)
    parents = [disk.parent_backup_id for disk in new_disks if disk.parent_backup_id]
    queries.create_backup(
        session,
        queries.NewBackup(
            id=backup_id,
            job_id=job_id,
            vm_id=vm.id,
            vm_name=vm.name,
            repository_id=wanted.repository_id,
            requested_type=wanted.backup_type,
            backup_type=backup_type,
            type_reason=type_reason,
            parent_backup_id=max(parents, default=None),
            consistency_wish=wanted.consistency,
            tags=wanted.tags,
            skipped=choice.skipped,
            disks=new_disks,
            created_at=now,
        ),
    )
    return BackupAccepted(
        backup_id=backup_id, job_id=job_id, backup_type=backup_type, type_reason=type_reason
    )


def check_request(session: Session, wanted: StartBackup) -> None:
    """Raise what `start` would raise, before anybody asks the repository's storage."""
    vm = _find_vm(session, wanted)
    _choose(session, vm, wanted.disk_id)
    check_slot(session, vm)


def _find_vm(session: Session, wanted: StartBackup) -> VmRow:
    if wanted.vm_id is not None:
        vm = vms.get_vm(session, wanted.vm_id)
    else:
        assert wanted.vm_name is not None, "the schema wants one of both"
        vm = vm_service.find_by_name(session, wanted.vm_name)
    require_present(vm)
    return vm


def require_present(vm: VmRow) -> None:
    """Raise Conflict, kind `vm-gone`, where the VM's source no longer has it."""
    if vm.gone_at is not None:
        raise Conflict(
            f"VM {vm.name} is no longer on its source",
            kind="vm-gone",
            hint="discover the source again if the VM is back",
            vm_id=vm.id,
        )


def check_slot(session: Session, vm: VmRow) -> None:
    """Raise Conflict, kind `backup-running`, while a job works on the VM."""
    job = jobs.find_job_of_vm(session, vm.id)
    if job is not None:
        raise Conflict(
            f"a {job.kind} of VM {vm.name} is {job.status}",
            kind="backup-running",
            hint=f"wait for job {job.id}, or cancel it",
            job_id=job.id,
            backup_id=job.subject.get("backup_id"),
            vm_id=vm.id,
        )


def _choose(session: Session, vm: VmRow, choice: int | str | None) -> _Choice:
    disks = vms.list_disks(session, [vm.id])[vm.id]
    if choice is not None:
        disk = vm_service.find_disk(vm, disks, choice)
        vm_service.check_capacity(disk, vm)
        reason = vm_service.excluded_reason(disk)
        if reason is not None:
            raise Conflict(
                f"{disk.disk_id} of VM {vm.name} is excluded: {reason}",
                kind="disk-excluded",
                hint="include it by `PATCH /api/v1/vms/{id}` where the user excluded it",
                vm_id=vm.id,
                disk_id=disk.disk_id,
            )
        return _Choice((disk,), ())
    present = [disk for disk in disks if disk.gone_at is None]
    reasons = {disk.key: vm_service.excluded_reason(disk) for disk in present}
    chosen = [disk for disk in present if reasons[disk.key] is None]
    for disk in chosen:
        vm_service.check_capacity(disk, vm)
    if not chosen:
        raise Invalid(
            f"VM {vm.name} has no disk that can be backed up"
            + "".join(f"; {disk.disk_id}: {reasons[disk.key]}" for disk in present),
            kind="vm-without-disks",
            hint="see `GET /api/v1/vms/{id}/readiness`",
            vm_id=vm.id,
        )
    # What the user left out on purpose does not make the backup partial.
    skipped = tuple(
        {"disk_id": disk.disk_id, "index": disk.index, "reason": disk.unsupported_reason}
        for disk in present
        if disk.unsupported_reason is not None
    )
    return _Choice(tuple(chosen), skipped)


def _plan(
    session: Session, disk: DiskRow, wanted: StartBackup, *, chunk_size: int
) -> queries.NewDisk:
    """Say how a disk will be read, as far as the catalog can tell; the job decides again."""
    parent = queries.find_parent(
        session, vm_id=disk.vm_id, key=disk.key, repository_id=wanted.repository_id
    )
    decision = _decide(disk, parent, wanted.backup_type, chunk_size=chunk_size)
    incremental = decision.mode is plan.Mode.INCREMENTAL
    assert disk.capacity_bytes is not None, "checked by _choose"
    return queries.NewDisk(
        vm_disk_id=disk.id,
        disk_id=disk.disk_id,
        key=disk.key,
        index=disk.index,
        label=disk.label,
        uuid=disk.uuid,
        capacity_bytes=disk.capacity_bytes,
        backup_type=BackupType(decision.mode),
        type_reason=decision.reason or None,
        parent_backup_id=parent.backup_id if parent is not None and incremental else None,
    )


def _decide(
    disk: DiskRow, parent: BackupDiskRow | None, wanted: RequestedType, *, chunk_size: int
) -> plan.Decision:
    """Decide by the engine's own rules, with the disk as discovery saw it for its snapshot."""
    assert disk.capacity_bytes is not None, "checked by _choose"
    return plan.decide_mode(
        plan.Wish(wanted),
        None
        if parent is None
        else plan.Parent(
            uuid=parent.uuid,
            size_bytes=parent.capacity_bytes,
            chunk_size=chunk_size,
            change_id=parent.change_id,
        ),
        tracking=Tracking(disk.tracking),
        chunk_size=chunk_size,
        snapshot=DiskSnapshot(
            key=disk.key, size_bytes=disk.capacity_bytes, uuid=disk.uuid, change_id=None
        ),
    )


def _summarise(disks: Sequence[queries.NewDisk]) -> tuple[BackupType, str | None]:
    incremental = any(disk.backup_type is BackupType.INCREMENTAL for disk in disks)
    reasons = {disk.type_reason for disk in disks if disk.type_reason}
    if not incremental and len(reasons) == 1:
        return BackupType.FULL, reasons.pop()
    told = [f"{disk.disk_id}: {disk.type_reason}" for disk in disks if disk.type_reason]
    return (
        BackupType.INCREMENTAL if incremental else BackupType.FULL,
        "; ".join(told)[: jobs.MESSAGE_LENGTH_MAX] or None,
    )


def list_backups(session: Session, wanted: BackupFilter) -> BackupList:
    """Return a page of backups."""
    rows, total = listing.list_backups(session, wanted)
    return BackupList(backups=shown.show(session, rows), total=total)


def get_backup(session: Session, backup_id: str) -> Backup:
    """Return one backup. Raises NotFound, kind `backup-unknown`."""
    queries.get_backup(session, backup_id)
    rows = session.execute(select(*shown.COLUMNS).where(BackupRow.id == backup_id)).all()
    return shown.show(session, rows)[0]


def get_chain(
    session: Session, vm_name: str, *, disk: int | str | None, repository_id: str | None
) -> Chain | ChainList:
    """Return the one chain that the filters leave, else the list of them.

    Raises NotFound, kind `chain-unknown`, where filters name one that has no backup.
    """
    vm = vm_service.find_by_name(session, vm_name)
    disk_name = None
    if disk is not None:
        disk_name = disk if isinstance(disk, str) else _disk_name(session, vm, disk)
    found = chains.list_chains(session, vm.id, disk_id=disk_name, repository_id=repository_id)
    if not found:
        where = f" in repository {repository_id}" if repository_id is not None else ""
        what = f"{disk_name} of VM {vm.name}" if disk_name is not None else f"VM {vm.name}"
        raise NotFound(f"{what} has no completed backup{where}", kind="chain-unknown", vm_id=vm.id)
    shown = [_show_chain(session, vm, chain) for chain in found]
    return shown[0] if len(shown) == 1 else ChainList(chains=shown)


def _disk_name(session: Session, vm: VmRow, index: int) -> str:
    """Return the name of the disk at an index, also of one that the VM no longer has."""
    disks = vms.list_disks(session, [vm.id])[vm.id]
    named = sorted(
        (disk for disk in disks if disk.index == index), key=lambda disk: disk.gone_at is not None
    )
    return named[0].disk_id if named else vm_service.find_disk(vm, disks, index).disk_id


def _show_chain(session: Session, vm: VmRow, chain: ChainRow) -> Chain:
    return Chain(
        chain_id=chain.id,
        vm_id=vm.id,
        vm_name=vm.name,
        disk_id=chain.disk_id,
        repository_id=chain.repository_id,
        full_backup_id=chain.full_backup_id,
        latest_backup_id=chain.latest_backup_id,
        backups=shown.show(session, chains.list_members(session, chain, shown.COLUMNS)),
        total_backups=chain.total_backups,
        total_size_bytes=chain.total_size_bytes,
    )


def check_deletable(session: Session, backup_id: str) -> BackupRow:
    """Return a backup that may go. Raises Conflict, kind `backup-running`, while it is made."""
    row = queries.get_backup(session, backup_id)
    if JobStatus(row.status).is_active:
        raise Conflict(
            f"backup {backup_id} is {row.status}",
            kind="backup-running",
            hint=f"wait for job {row.job_id}, or cancel it",
            backup_id=backup_id,
            job_id=row.job_id,
        )
    return row


def check_holdable(session: Session, backup_id: str) -> BackupRow:
    """Return a backup that may be held or released. Raises Conflict where it was never made."""
    row = queries.get_backup(session, backup_id)
    if not is_stored(row):
        raise Conflict(
            f"backup {backup_id} is {row.status}: there is nothing to hold",
            kind="backup-not-completed",
            backup_id=backup_id,
        )
    return row


def note_hold(session: Session, backup_id: str, hold: Hold | None) -> Backup:
    """Note who holds a backup, or that nobody does, and return it as the API shows it."""
    queries.set_hold(session, backup_id, hold)
    return get_backup(session, backup_id)


def is_stored(row: BackupRow) -> bool:
    """Whether the repository may hold the backup: a failed one was never committed."""
    return row.status == JobStatus.COMPLETED


def delete(session: Session, backup_id: str, *, now: datetime) -> BackupRow:
    """Mark a backup as deleted; its repository knows already. Chains follow."""
    check_deletable(session, backup_id)
    return queries.delete_backup(session, backup_id, now=now)


def to_request(session: Session, row: BackupRow) -> StartBackup:
    """Return the request that a backup answered, to ask for it again."""
    disks = queries.list_disks(session, [row.id])[row.id]
    all_disks = vms.list_disks(session, [row.vm_id or ""])[row.vm_id or ""]
    one = len(disks) == 1 and len([disk for disk in all_disks if disk.gone_at is None]) > 1
    return StartBackup.model_validate(
        {
            "vm_id": row.vm_id,
            "disk_id": disks[0].disk_id if one else None,
            "repository_id": row.repository_id,
            "backup_type": row.requested_type,
            "tags": row.tags,
            "consistency": row.consistency_wish,
        }
    )
