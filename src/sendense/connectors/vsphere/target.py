"""What a VM must be like before a disk of it is overwritten, and after. Rule 22."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sendense.connectors.vsphere import inventory, readiness, snapshots
from sendense.connectors.vsphere.session import Session
from sendense.core.clock import Clock
from sendense.core.errors import Conflict, NotFound


@dataclass(frozen=True, slots=True)
class WritableDisk:
    """A disk that may be overwritten.

    Attributes:
        path: `[datastore1] folder/disk.vmdk`.
    """

    path: str
    host_moref: str


def require_writable(
    told: Mapping[str, Any], key: int, *, size_bytes: int, disk_uuid: str
) -> WritableDisk:
    """Return a disk of a VM as `snapshots.read_vm` told of it, or raise Conflict or NotFound.

    A snapshot of anybody's forbids it: the disk that it builds on must never change.
    """
    require_at_rest(told)
    disks = {disk.key: disk for disk in inventory.list_disks(told.get(inventory.DEVICES, ()))}
    disk = disks.get(key)
    if disk is None:
        raise NotFound(f"the VM has no disk with key {key}", kind="disk-unknown")
    if inventory.uuid_of(disk) != disk_uuid:
        raise Conflict(
            f"disk {key} of the VM is another one than when the restore was asked for",
            kind="disk-replaced",
            hint="discover the source, look at the VM, and ask for the restore again",
        )
    capacity_bytes = inventory.size_of(disk)
    if capacity_bytes != size_bytes:
        raise Conflict(
            f"disk {key} of the VM is {capacity_bytes} bytes long, the backup's {size_bytes}",
            kind="target-size-differs",
            hint="give the VM a disk of the very same size",
        )
    return WritableDisk(str(disk.backing.fileName), inventory.host_of(told))


def stop_tracking(
    session: Session, vm_moref: str, told: Mapping[str, Any], *, clock: Clock
) -> None:
    """Switch change tracking off before anything is written.

    What a restore writes must not be missing in the next incremental, and a job may end anywhere.
    The next backup switches it on again; its change ids are new ones then, so it reads everything
    and says why.
    """
    if told.get(readiness.TRACKING_ENABLED):
        snapshots.switch_tracking(session, vm_moref, enabled=False, clock=clock)


def require_at_rest(told: Mapping[str, Any]) -> None:
    """Raise Conflict where the disks of a VM must not be written now."""
    if told.get(readiness.TEMPLATE):
        raise Conflict(
            "the VM is a template, whose disks nobody may write",
            kind="vm-is-template",
            hint="convert it to a virtual machine, or restore into another VM",
        )
    if not snapshots.is_off(told):
        raise Conflict(
            f"the VM is {told.get(readiness.POWER)}: its disks can only be overwritten while it is"
            " off",
            kind="vm-not-off",
            hint="shut it down, and do not start it before the restore has completed",
        )
    if told.get(snapshots.TREE) or told.get(readiness.SNAPSHOTS):
        raise Conflict(
            "the VM has snapshots, which build on the disks that would be overwritten",
            kind="vm-has-snapshots",
            hint="remove them, or restore into another VM",
        )
    if told.get(readiness.CONSOLIDATION):
        raise Conflict(
            "the VM's disks need consolidation",
            kind="consolidation-needed",
            hint="consolidate them in vCenter first",
        )
