"""What may be asked of VMs, and which of their disks a backup holds."""

from collections.abc import Sequence

from sqlalchemy.orm import Session

from sendense.connectors.base import Tracking
from sendense.core.errors import Conflict, Invalid, NotFound
from sendense.db.tables import DiskRow, VmRow
from sendense.hub.backups import queries as backups
from sendense.hub.jobs import queries as jobs
from sendense.hub.vms import queries
from sendense.hub.vms.schemas import ChangeVm, Disk, Vm, VmFilter, VmList

EXCLUDED_BY_USER = "excluded by the user"
CANDIDATES_SHOWN_MAX = 20  # enough to choose from; an estate of clones may have thousands


def find_by_name(session: Session, name: str) -> VmRow:
    """Return the one VM of this name, or of this id.

    Raises NotFound, kind `vm-unknown`, and Conflict, kind `vm-name-ambiguous`, which lists the
    candidates. A VM that its source no longer has yields to one of the same name that it has.
    """
    by_id = queries.find_vm(session, name)
    if by_id is not None:
        return by_id
    rows = queries.list_vms_named(session, name)
    present = [row for row in rows if row.gone_at is None]
    candidates = present or rows
    if not candidates:
        raise NotFound(
            f"VM {name} is not known",
            kind="vm-unknown",
            hint="discover its source, or look at `GET /api/v1/vms`",
            vm_name=name,
        )
    if len(candidates) > 1:
        raise Conflict(
            f"{len(candidates)} VMs are named {name}",
            kind="vm-name-ambiguous",
            hint="name one by vm_id",
            candidates=[
                {"id": row.id, "name": row.name, "source_id": row.source_id, "path": row.path}
                for row in candidates[:CANDIDATES_SHOWN_MAX]
            ],
        )
    return candidates[0]


def find_disk(vm: VmRow, disks: Sequence[DiskRow], choice: int | str) -> DiskRow:
    """Return the disk by index or name. Raises NotFound, kind `disk-unknown`."""
    for disk in disks:
        if disk.gone_at is None and choice in {disk.index, disk.disk_id}:
            return disk
    present = [disk.disk_id for disk in disks if disk.gone_at is None]
    raise NotFound(
        f"VM {vm.name} has no disk {choice}",
        kind="disk-unknown",
        hint=f"it has {', '.join(present)}" if present else "it has no disks",
        vm_id=vm.id,
        disks=present,
    )


def excluded_reason(disk: DiskRow) -> str | None:
    """Return why backups leave a disk out, or None."""
    return disk.unsupported_reason or (EXCLUDED_BY_USER if disk.excluded else None)


def show_disk(disk: DiskRow) -> Disk:
    """Return a disk as the API shows it."""
    reason = excluded_reason(disk)
    return Disk(
        disk_id=disk.disk_id,
        index=disk.index,
        label=disk.label,
        uuid=disk.uuid,
        capacity_bytes=disk.capacity_bytes,
        datastore=disk.datastore,
        job_id=disk.job_id,
        excluded=reason is not None,
        excluded_reason=reason,
        tracking=Tracking(disk.tracking),
        present=disk.gone_at is None,
    )


def show_vms(session: Session, rows: Sequence[VmRow]) -> list[Vm]:
    """Return VMs as the API shows them."""
    ids = [row.id for row in rows]
    disks = queries.list_disks(session, ids)
    backed_up = queries.list_last_backups(session, ids)
    active = queries.list_active_jobs(session, ids)
    return [
        Vm(
            id=row.id,
            name=row.name,
            source_id=row.source_id,
            uuid=row.vm_uuid,
            path=row.path,
            power_state=row.power_state,
            cpu_count=row.cpu_count,
            memory_bytes=row.memory_bytes,
            guest_os=row.guest_os,
            networks=row.networks or [],
            tags=row.tags,
            disk_count=sum(disk.gone_at is None for disk in disks[row.id]),
            protected=row.id in backed_up,
            last_backup_at=backed_up.get(row.id),
            present=row.gone_at is None,
            active_job_id=active.get(row.id),
            created_at=row.created_at,
            seen_at=row.seen_at,
        )
        for row in rows
    ]


def list_vms(session: Session, wanted: VmFilter) -> VmList:
    """Return a page of VMs."""
    rows, total = queries.list_vms(session, wanted)
    return VmList(vms=show_vms(session, rows), total=total)


def change_vm(session: Session, vm_id: str, change: ChangeVm) -> VmRow:
    """Set a VM's tags and which of its disks backups leave out."""
    vm = queries.get_vm(session, vm_id)
    if change.excluded_disks is not None:
        disks = queries.list_disks(session, [vm_id])[vm_id]
        chosen = {find_disk(vm, disks, choice).key for choice in change.excluded_disks}
        for disk in disks:
            disk.excluded = disk.key in chosen
    if change.tags is not None:
        vm.tags = change.tags
    return vm


def delete_vm(session: Session, vm_id: str) -> None:
    """Forget a VM. Raises Conflict while it has backups or a job works on it."""
    vm = queries.get_vm(session, vm_id)
    job = jobs.find_job_of_vm(session, vm_id)
    if job is not None:
        raise Conflict(
            f"job {job.id} works on VM {vm.name}", kind="vm-busy", job_id=job.id, vm_id=vm_id
        )
    count = backups.count_live(session, vm_ids=[vm_id])
    if count:
        raise Conflict(
            f"VM {vm.name} has {count} backups",
            kind="vm-has-backups",
            hint="delete its backups first",
            vm_id=vm_id,
            backups=count,
        )
    queries.delete_vm(session, vm_id)


def check_capacity(disk: DiskRow, vm: VmRow) -> int:
    """Return a disk's capacity. Raises Invalid, kind `disk-without-capacity`."""
    if not disk.capacity_bytes:
        why = f": {disk.unsupported_reason}" if disk.unsupported_reason else ""
        raise Invalid(
            f"{disk.disk_id} of VM {vm.name} has no known capacity{why}",
            kind="disk-without-capacity",
            hint="mend the disk on its source, then discover again",
            vm_id=vm.id,
            disk_id=disk.disk_id,
        )
    return disk.capacity_bytes
