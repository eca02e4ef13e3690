"""Snapshots of ours on a VM: taken, found by name, removed. Rules 8, 9, 14 to 17.

A snapshot is ours by its name, which holds the hub's. Nothing else is ever removed, and never all.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pyVmomi import vim, vmodl

from sendense.connectors.base import Consistency, ConsistencyWish
from sendense.connectors.vsphere import failure, inventory, properties, readiness, tasks
from sendense.connectors.vsphere.session import Login, Session, moref_of
from sendense.core.clock import Clock
from sendense.core.errors import Conflict, NotFound, SendenseError, Unavailable

_log = logging.getLogger(__name__)

PREFIX = "sendense"
NAME_LENGTH_MAX = 80  # vCenter's
DESCRIPTION = "Taken for a backup by Sendense, which removes it. No backup is in it."
TAKE_SECONDS_MAX = 1800.0  # quiescing a Windows guest with databases takes up to 15 minutes
REMOVE_SECONDS_MAX = 6 * 3600.0  # hours of writes flow back into the disk
RECONFIGURE_SECONDS_MAX = 300.0
CONSOLIDATE_ATTEMPTS_MAX = 4
CONSOLIDATE_PAUSE_SECONDS = 10.0  # another product's lock goes within a minute
_SNAPSHOT_DEVICES = "config.hardware.device"
TREE = "snapshot.rootSnapshotList"
_CONNECTED = "connected"
# Faults that mean "the guest did not come to rest", where the same without it may work.
_QUIESCE_FAULTS = (
    vim.fault.ApplicationQuiesceFault,
    vim.fault.FilesystemQuiesceFault,
    vim.fault.ToolsUnavailable,
    vim.fault.SnapshotFault,
    vmodl.fault.SystemError,
)


@dataclass(frozen=True, slots=True)
class Held:
    """A snapshot of ours as the tree of its VM shows it."""

    moref: str
    name: str
    created_at: datetime
    quiesced: bool


@dataclass(frozen=True, slots=True)
class FrozenDisk:
    """A disk in the configuration of a snapshot.

    Attributes:
        path: `[datastore1] folder/disk.vmdk`.
        change_id: None where nothing is tracked.
    """

    key: int
    uuid: str
    size_bytes: int
    path: str
    change_id: str | None


@dataclass(frozen=True, slots=True)
class Taken:
    """What `take` brought about."""

    held: Held
    consistency: Consistency
    warnings: tuple[str, ...]


def name_of(owner: str, name: str) -> str:
    """Return the name on the platform: product, hub and job (rule 14)."""
    full = f"{PREFIX} {owner} {name}"
    if len(full) <= NAME_LENGTH_MAX:
        return full
    return f"{PREFIX} {owner} {hashlib.sha256(name.encode()).hexdigest()[:32]}"


def read_vm(session: Session, vm_moref: str) -> Mapping[str, Any]:
    """Return what is needed to know of a VM before a snapshot, or before it is written."""
    paths = [*readiness.PATHS, inventory.DEVICES, inventory.HOST, TREE]
    return properties.read_one(session, vim.VirtualMachine, vm_moref, paths, doing="look at the VM")


def require_ready(told: Mapping[str, Any], keys: Sequence[int]) -> None:
    """Raise Conflict or NotFound where no snapshot of these disks can be taken. Rules 7 and 17."""
    if told.get(readiness.TEMPLATE):
        raise Conflict(inventory.TEMPLATE_REASON, kind="vm-is-template")
    state = str(told.get(readiness.CONNECTION, _CONNECTED))
    if state != _CONNECTED:
        raise Unavailable(
            f"the host of the VM does not answer to vCenter: the VM is {state}",
            kind="vsphere-unreachable",
            hint="look at the host's state in vCenter",
        )
    devices = told.get(inventory.DEVICES, ())
    disks = {disk.key: disk for disk in inventory.list_disks(devices)}
    for key in keys:
        if key not in disks:
            raise NotFound(f"the VM has no disk with key {key}", kind="disk-unknown")
        reason = inventory.explain_exclusion(disks[key], devices)
        if reason is not None:
            raise Conflict(f"disk {key} cannot be backed up: {reason}", kind="disk-unsupported")


def ensure_tracking(
    session: Session, vm_moref: str, told: Mapping[str, Any], *, clock: Clock
) -> str | None:
    """Switch change tracking on where it is off and may be; return what a person should know.

    Rule 8: only without snapshots, and looked at anew for each backup. A running VM begins to track
    with the snapshot that follows.
    """
    if told.get(readiness.TRACKING_ENABLED):
        return None
    off = "change tracking is off, so the next backup reads everything too"
    if told.get(readiness.TRACKING_SUPPORTED) is False:
        return f"{off}: the VM's virtual hardware is older than version 7"
    if told.get(TREE) or told.get(readiness.SNAPSHOTS):
        return f"{off}: it can only be switched on while the VM has no snapshot"
    try:
        switch_tracking(session, vm_moref, enabled=True, clock=clock)
    except SendenseError as error:
        return f"{off}: {error.message}"  # a backup that reads everything is worth having
    return None


def switch_tracking(session: Session, vm_moref: str, *, enabled: bool, clock: Clock) -> None:
    """Switch change tracking on or off. Raises what `tasks.run` does."""

    def reconfigure(login: Login) -> Any:
        wanted = vim.vm.ConfigSpec(changeTrackingEnabled=enabled)
        return login.bind(vim.VirtualMachine, vm_moref).ReconfigVM_Task(spec=wanted)

    doing = f"switch change tracking {'on' if enabled else 'off'}"
    tasks.run(session, doing, reconfigure, seconds_max=RECONFIGURE_SECONDS_MAX, clock=clock)


def take(
    session: Session,
    vm_moref: str,
    full_name: str,
    told: Mapping[str, Any],
    wish: ConsistencyWish,
    *,
    clock: Clock,
) -> Taken:
    """Take a snapshot without memory, as consistent as wished and possible. Rule 16.

    Where it raises, no snapshot of that name is left, as far as vCenter answers.
    """
    try:
        return _take(session, vm_moref, full_name, told, wish, clock=clock)
    except SendenseError:
        _withdraw(session, vm_moref, full_name, clock=clock)
        raise


def _take(
    session: Session,
    vm_moref: str,
    full_name: str,
    told: Mapping[str, Any],
    wish: ConsistencyWish,
    *,
    clock: Clock,
) -> Taken:
    reason = _explain_no_quiesce(told)
    if wish is not ConsistencyWish.OFF and reason is None and not is_off(told):
        try:
            _create(session, vm_moref, full_name, quiesce=True, clock=clock)
        except SendenseError as error:
            if not isinstance(error.__cause__, _QUIESCE_FAULTS):
                raise
            reason = f"the guest did not come to rest: {failure.describe(error.__cause__)}"
            _withdraw(session, vm_moref, full_name, clock=clock)
        else:
            return Taken(_get(session, vm_moref, full_name), Consistency.FILESYSTEM, ())
    if wish is ConsistencyWish.REQUIRE and reason is not None:
        raise Unavailable(
            f"file-system consistency is required, but {reason}",
            kind="guest-not-quiesced",
            hint="start VMware Tools in the guest, or ask for consistency `prefer`",
        )
    _create(session, vm_moref, full_name, quiesce=False, clock=clock)
    is_wished = wish is not ConsistencyWish.OFF and reason is not None
    warnings = (f"only crash-consistent: {reason}",) if is_wished else ()
    # Nothing writes to the disks of a VM that is off, if it was so before and after.
    was_off = is_off(told) and is_off(read_vm(session, vm_moref))
    consistency = Consistency.FILESYSTEM if was_off else Consistency.CRASH
    return Taken(_get(session, vm_moref, full_name), consistency, warnings)


def found_again(held: Held, told: Mapping[str, Any]) -> Taken:
    """Return what is known of a snapshot that another process took for the same job."""
    is_consistent = held.quiesced or is_off(told)
    return Taken(held, Consistency.FILESYSTEM if is_consistent else Consistency.CRASH, ())


def is_off(told: Mapping[str, Any]) -> bool:
    """Whether a VM is off, as `read_vm` told."""
    return str(told.get(readiness.POWER)) == "poweredOff"


def _explain_no_quiesce(told: Mapping[str, Any]) -> str | None:
    if is_off(told):
        return None
    if str(told.get(readiness.POWER)) == "suspended":
        return "the VM is suspended: what its memory holds is not on its disks"
    if str(told.get(readiness.TOOLS)) != "guestToolsRunning":
        return "VMware Tools do not run in the guest"
    return None


def _create(
    session: Session, vm_moref: str, full_name: str, *, quiesce: bool, clock: Clock
) -> None:
    doing = "take a snapshot"

    def create(login: Login) -> Any:
        return login.bind(vim.VirtualMachine, vm_moref).CreateSnapshot_Task(
            name=full_name, description=DESCRIPTION, memory=False, quiesce=quiesce
        )

    tasks.run(session, doing, create, seconds_max=TAKE_SECONDS_MAX, clock=clock)


def _withdraw(session: Session, vm_moref: str, full_name: str, *, clock: Clock) -> None:
    """Remove what a failed attempt may have left; a sweep looks again later."""
    try:
        remove(session, vm_moref, full_name, clock=clock)
    except SendenseError as error:
        _log.warning("a failed snapshot may be left on %s: %s", vm_moref, error.message)


def list_held(session: Session, vm_moref: str) -> list[Held]:
    """Return all snapshots of a VM, whoever took them. Raises NotFound, kind `vm-gone`."""
    told = properties.read_one(
        session, vim.VirtualMachine, vm_moref, [TREE], doing="list the VM's snapshots"
    )
    return list(flatten(told.get(TREE, ())))


def flatten(tree: Sequence[Any]) -> Iterator[Held]:
    """Yield the snapshots of a tree; a stack instead of recursion, since chains may be long."""
    waiting = list(tree)
    while waiting:
        node = waiting.pop()
        waiting.extend(node.childSnapshotList or ())
        yield Held(moref_of(node.snapshot), node.name, node.createTime, bool(node.quiesced))


def find(session: Session, vm_moref: str, full_name: str) -> Held | None:
    """Return the snapshot of that name, or None."""
    return pick(list_held(session, vm_moref), full_name)


def pick(held: Iterable[Held], full_name: str) -> Held | None:
    """Return the oldest snapshot of that name, or None."""
    named = [one for one in held if one.name == full_name]
    return min(named, key=lambda one: one.created_at, default=None)


def _get(session: Session, vm_moref: str, full_name: str) -> Held:
    held = find(session, vm_moref, full_name)
    if held is None:
        raise NotFound(
            "the snapshot is gone as soon as it was taken: somebody removed it",
            kind="snapshot-lost",
            hint="look at the VM's recent tasks, then run the backup again",
        )
    return held


def read_disks(session: Session, snapshot_moref: str) -> dict[int, FrozenDisk]:
    """Return the disks as the configuration of a snapshot tells, by key. Rule 9."""
    told = properties.read_one(
        session,
        vim.vm.Snapshot,
        snapshot_moref,
        [_SNAPSHOT_DEVICES],
        doing="look at the snapshot's disks",
    )
    return {
        disk.key: FrozenDisk(
            key=disk.key,
            uuid=inventory.uuid_of(disk),
            size_bytes=inventory.size_of(disk) or 0,
            path=str(disk.backing.fileName),
            change_id=getattr(disk.backing, "changeId", None) or None,
        )
        for disk in inventory.list_disks(told.get(_SNAPSHOT_DEVICES, ()))
    }


def remove(session: Session, vm_moref: str, full_name: str, *, clock: Clock) -> int:
    """Remove every snapshot of exactly this name; return how many there were."""
    named = [one for one in list_held(session, vm_moref) if one.name == full_name]
    for held in named:
        try:
            _remove_one(session, held.moref, clock=clock)
        except SendenseError as error:
            if not failure.find_fault(error, vmodl.fault.ManagedObjectNotFound):
                raise
    return len(named)


def _remove_one(session: Session, moref: str, *, clock: Clock) -> None:
    def start(login: Login) -> Any:
        snapshot = login.bind(vim.vm.Snapshot, moref)
        return snapshot.RemoveSnapshot_Task(removeChildren=False, consolidate=True)

    tasks.run(session, "remove the snapshot", start, seconds_max=REMOVE_SECONDS_MAX, clock=clock)


def consolidate(session: Session, vm_moref: str, *, clock: Clock) -> None:
    """Merge what a removed snapshot has left of its disks. Rule 15.

    Raises Unavailable, kind `consolidation-needed`, where that does not succeed in a few tries.
    """
    doing = "consolidate the VM's disks"
    last: SendenseError | None = None

    def start(login: Login) -> Any:
        return login.bind(vim.VirtualMachine, vm_moref).ConsolidateVMDisks_Task()

    for attempt in range(CONSOLIDATE_ATTEMPTS_MAX):
        if not _needs_consolidation(session, vm_moref):
            return
        if attempt:
            clock.sleep(CONSOLIDATE_PAUSE_SECONDS)
        try:
            tasks.run(session, doing, start, seconds_max=REMOVE_SECONDS_MAX, clock=clock)
        except SendenseError as error:
            last = error
    if not _needs_consolidation(session, vm_moref):
        return
    why = f": {last.message}" if last is not None else ""
    raise Unavailable(
        f"the snapshot was removed, but the VM's disks need consolidation{why}",
        kind="consolidation-needed",
        hint="something holds a disk's file, often another backup product: see who, then"
        " consolidate in vCenter",
    ) from last


def _needs_consolidation(session: Session, vm_moref: str) -> bool:
    told = properties.read_one(
        session,
        vim.VirtualMachine,
        vm_moref,
        [readiness.CONSOLIDATION],
        doing="see whether disks need consolidation",
    )
    return bool(told.get(readiness.CONSOLIDATION))
