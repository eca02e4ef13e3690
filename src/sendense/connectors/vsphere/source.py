"""The `Source` over a vCenter or an ESXi host; see docs/operations/vsphere.md."""

import contextlib
import random
from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyVmomi import vim, vmodl

from sendense.connectors.base import (
    DiskSnapshot,
    DiskView,
    Snapshot,
    SnapshotOutcome,
    SnapshotRequest,
    VmDescription,
)
from sendense.connectors.capability import Assessment, LeftSnapshot
from sendense.connectors.vsphere import (
    changes,
    config,
    inventory,
    licence,
    properties,
    readiness,
    snapshots,
)
from sendense.connectors.vsphere import session as sessions
from sendense.connectors.vsphere import target as targets
from sendense.connectors.vsphere.config import VsphereConfig
from sendense.connectors.vsphere.reader.base import Reader, ReadTask
from sendense.connectors.vsphere.reader.file import FileReader
from sendense.connectors.vsphere.reader.limits import Slots
from sendense.connectors.vsphere.reader.vddk import VddkReader
from sendense.connectors.vsphere.session import Login, Session
from sendense.core import extent
from sendense.core.clock import Clock, SystemClock
from sendense.core.errors import Invalid, NotFound, SendenseError, Unavailable
from sendense.core.extent import Extent
from sendense.nbd.address import Address
from sendense.nbd.client import Client
from sendense.nbd.protocol import ALLOCATION

REFERENCE_VERSION = 1


def create_reader(settings: VsphereConfig, scratch: Path, clock: Clock) -> Reader:
    """Return the way to disks that the configuration chose."""
    if settings.reader == config.FILE:
        assert settings.file_dir is not None, "checked with the configuration"
        return FileReader(settings.file_dir)
    chance = random.SystemRandom()
    slots = Slots(scratch / "slots", clock, chance)  # one folder: the limits are of this machine
    return VddkReader(
        settings.vddk_libdir, slots, clock, chance, disks_per_host=settings.disks_per_host
    )


@dataclass(frozen=True, slots=True)
class VsphereDiskView:
    """A disk of a snapshot, as `DiskView` promises."""

    address: Address
    session: Session
    reference: Mapping[str, Any]
    disk: Mapping[str, Any]
    connections_max: int

    @property
    def size_bytes(self) -> int:
        """Size of the disk at the moment of the snapshot."""
        return int(self.disk["size_bytes"])

    def list_allocated(self) -> Generator[Extent, None, None]:
        """Yield extents that cover the disk, as the server of the disk tells them.

        vCenter's own list of areas in use ("*") is not asked for: it is a hint at best (rule 13).
        """
        with Client.connect(self.address, contexts=[ALLOCATION]) as client:
            yield from extent.merge(client.list_allocated())

    def list_changed(self) -> Iterator[Extent]:
        """Yield the extents changed since the base change id; what reads as zeros is `zero`."""
        base = self.disk["base_change_id"]
        if base is None:
            raise Unavailable(
                "the snapshot was taken without a base to compare with", kind="tracking-lost"
            )
        changed = changes.list_changed(
            self.session,
            vm_moref=self.reference["vm_moref"],
            snapshot_moref=self.reference["snapshot"],
            key=self.disk["key"],
            base_change_id=base,
            size_bytes=self.size_bytes,
        )
        # Closed at once, also where vCenter refuses: the reader ends only after its last client.
        with contextlib.closing(self.list_allocated()) as allocated:
            yield from extent.mark_zeros(extent.merge(changed), allocated)


class VsphereSource:
    """VMs of a vCenter; see `Source` for what each method promises.

    Args:
        settings: where, who and how.
        scratch: a private folder for locks.
        owner: the hub's name: only snapshots that carry it are ever touched.
        reader: other than the configuration's, for tests.
    """

    def __init__(
        self,
        settings: VsphereConfig,
        scratch: Path,
        owner: str,
        *,
        clock: Clock | None = None,
        reader: Reader | None = None,
    ) -> None:
        self._settings = settings
        self._owner = owner
        self._clock = clock or SystemClock()
        self._session = Session(settings)
        self._reader = reader or create_reader(settings, scratch, self._clock)
        self._notices: tuple[str, ...] = ()

    def probe(self) -> str:
        """Log in, count the VMs, and see that disks could be opened from this machine."""
        product = self._session.describe()
        licence.require_changes_allowed(self._session)
        found = properties.read(
            self._session, vim.VirtualMachine, None, [inventory.NAME], doing="count the VMs"
        )
        reading = self._reader.probe()
        return f"{product}: {len(found.values)} VMs; disks are read by {reading}"

    def identify(self) -> str:
        """Return the vCenter's instance uuid."""
        return inventory.identify(self._session)

    def list_vms(self) -> list[VmDescription]:
        """Return all VMs with their disks; `list_notices` tells what was left out."""
        found = inventory.read(self._session)
        self._notices = found.notices
        return list(found.vms)

    def list_notices(self) -> tuple[str, ...]:
        """Return what a person should know about the last listing."""
        return self._notices

    def confirm_gone(self, vm_uuids: Collection[str]) -> frozenset[str]:
        """Return those VMs that the vCenter certainly does not have."""
        return inventory.confirm_gone(self._session, vm_uuids)

    def assess(self, vm_uuid: str) -> Assessment:
        """Say whether a VM can be backed up now."""
        moref = inventory.get_moref(self._session, vm_uuid)
        told = properties.read_one(
            self._session, vim.VirtualMachine, moref, readiness.PATHS, doing="look at the VM"
        )
        return readiness.decide(told, self._list_privileges(moref))

    def _list_privileges(self, vm_moref: str) -> frozenset[str] | None:
        """Return what the user may do with a VM; None where nobody can tell."""

        def ask(login: Login) -> frozenset[str] | None:
            manager = login.content.authorizationManager
            current = login.content.sessionManager.currentSession
            if manager is None or current is None:
                return None
            vm = login.bind(vim.VirtualMachine, vm_moref)
            wanted = list(readiness.WANTED)
            granted = manager.HasPrivilegeOnEntity(vm, current.key, wanted)
            return frozenset(one for one, is_held in zip(wanted, granted, strict=True) if is_held)

        try:
            return self._session.run("look at privileges", ask)
        except SendenseError as error:
            # To look at one's own privileges is itself one, and some hosts do not know the call.
            if isinstance(error.__cause__, vmodl.MethodFault):
                return None
            raise

    def take_snapshot(self, request: SnapshotRequest) -> Snapshot:
        """Take a snapshot of the VM and remember its disks as the snapshot tells them. Rule 9.

        Not where this machine could not read it: a plugin or library that is missing does not come
        while the snapshot grows.
        """
        self._reader.probe()
        vm_moref = inventory.get_moref(self._session, request.vm_uuid)
        full_name = snapshots.name_of(self._owner, request.name)
        told = snapshots.read_vm(self._session, vm_moref)
        snapshots.require_ready(told, [disk.key for disk in request.disks])
        held = snapshots.pick(snapshots.flatten(told.get(snapshots.TREE, ())), full_name)
        if held is not None:
            taken = snapshots.found_again(held, told)
            hint = None
        else:
            hint = snapshots.ensure_tracking(self._session, vm_moref, told, clock=self._clock)
            taken = snapshots.take(
                self._session,
                vm_moref,
                full_name,
                told,
                request.consistency,
                clock=self._clock,
            )
        try:
            return self._describe(request, vm_moref, taken, told, hint)
        except SendenseError:
            snapshots.remove(self._session, vm_moref, full_name, clock=self._clock)
            raise

    def _describe(
        self,
        request: SnapshotRequest,
        vm_moref: str,
        taken: snapshots.Taken,
        told: Mapping[str, Any],
        hint: str | None,
    ) -> Snapshot:
        frozen = snapshots.read_disks(self._session, taken.held.moref)
        disks, records = [], []
        for wanted in request.disks:
            disk = frozen.get(wanted.key)
            if disk is None:
                raise NotFound(
                    f"the snapshot holds no disk with key {wanted.key}",
                    kind="disk-unknown",
                    hint="it was removed meanwhile, or snapshots leave it out; discover again",
                )
            base = wanted.base_change_id
            lost = None if base is None else changes.explain_lost(base, disk.change_id)
            disks.append(DiskSnapshot(disk.key, disk.size_bytes, disk.uuid, disk.change_id, lost))
            records.append(
                {
                    "key": disk.key,
                    "size_bytes": disk.size_bytes,
                    "path": disk.path,
                    "base_change_id": None if lost is not None else base,
                }
            )
        warnings = [*taken.warnings, *([] if hint is None else [hint])]
        if self._reader.warning is not None:
            warnings.append(self._reader.warning)
        return Snapshot(
            reference={
                **_refer(request.vm_uuid, vm_moref, taken.held),
                "host_moref": inventory.host_of(told),
                "disks": records,
            },
            moment=f"{taken.held.moref}@{taken.held.created_at.isoformat()}",
            consistency=taken.consistency,
            disks=tuple(disks),
            warnings=tuple(warnings),
        )

    def open_disk(self, reference: dict[str, Any], key: int) -> AbstractContextManager[DiskView]:
        """Open a disk of a snapshot through the reader."""
        _check_reference(reference)
        return self._open_disk(reference, key)

    @contextlib.contextmanager
    def _open_disk(self, reference: dict[str, Any], key: int) -> Iterator[VsphereDiskView]:
        disk = next((one for one in reference["disks"] if one["key"] == key), None)
        if disk is None:
            raise NotFound(f"the snapshot holds no disk with key {key}", kind="disk-unknown")
        self._require_snapshot(reference)
        task = self._create_task(
            vm_moref=reference["vm_moref"],
            snapshot_moref=reference["snapshot"],
            disk_path=disk["path"],
            key=key,
            size_bytes=disk["size_bytes"],
            host_moref=reference["host_moref"],
        )
        try:
            with self._reader.open(task) as address:
                yield VsphereDiskView(
                    address, self._session, reference, disk, self._reader.connections_max
                )
        except (Unavailable, NotFound) as error:
            if error.kind in {"tracking-lost", "vsphere-slots-taken", "snapshot-lost"}:
                raise
            # Nothing comes back by trying again where somebody removed the snapshot.
            self._require_snapshot(reference, cause=error)
            raise

    def _create_task(self, **disk: Any) -> ReadTask:
        settings = self._settings
        return ReadTask(
            server=settings.host,
            thumbprint=sessions.find_thumbprint(settings),
            username=settings.username,
            password=settings.password,
            port=settings.port,
            **disk,
        )

    @contextlib.contextmanager
    def open_for_restore(
        self, vm_uuid: str, key: int, *, size_bytes: int, disk_uuid: str
    ) -> Iterator[Address]:
        """Give the address at which a disk of a powered-off VM can be overwritten. Rule 22."""
        vm_moref = inventory.get_moref(self._session, vm_uuid)
        told = snapshots.read_vm(self._session, vm_moref)
        found = targets.require_writable(told, key, size_bytes=size_bytes, disk_uuid=disk_uuid)
        targets.stop_tracking(self._session, vm_moref, told, clock=self._clock)
        task = self._create_task(
            vm_moref=vm_moref,
            snapshot_moref=None,
            disk_path=found.path,
            key=key,
            size_bytes=size_bytes,
            host_moref=found.host_moref,
            writable=True,
        )
        with self._reader.open(task) as address:
            yield address
        targets.require_at_rest(snapshots.read_vm(self._session, vm_moref))

    def _require_snapshot(
        self, reference: Mapping[str, Any], *, cause: SendenseError | None = None
    ) -> None:
        """Raise NotFound, kind `snapshot-lost`, where vCenter says that the snapshot is gone."""
        try:
            held = snapshots.list_held(self._session, reference["vm_moref"])
        except NotFound as error:
            raise _lost("the VM is gone") from (cause or error)
        except SendenseError:
            if cause is not None:
                return  # nobody can tell now: the first failure says more
            raise
        if all(one.moref != reference["snapshot"] for one in held):
            raise _lost("somebody removed it") from cause

    def remove_snapshot(
        self,
        reference: dict[str, Any],
        outcome: SnapshotOutcome,
        live_change_ids: frozenset[str],
    ) -> None:
        """Remove the snapshot, and see that its disks are whole again.

        Change ids of vSphere hold no state: there is nothing to settle.
        """
        del outcome, live_change_ids
        _check_reference(reference)
        vm_moref = self._find_vm(reference["vm_uuid"])
        if vm_moref is None:
            return
        snapshots.remove(self._session, vm_moref, reference["name"], clock=self._clock)
        snapshots.consolidate(self._session, vm_moref, clock=self._clock)

    def find_snapshot(self, vm_uuid: str, name: str) -> dict[str, Any] | None:
        """Return a reference by which the snapshot can be removed, or None."""
        vm_moref = self._find_vm(vm_uuid)
        if vm_moref is None:
            return None
        full_name = snapshots.name_of(self._owner, name)
        held = snapshots.find(self._session, vm_moref, full_name)
        return None if held is None else _refer(vm_uuid, vm_moref, held)

    def list_left(self) -> list[LeftSnapshot]:
        """Return all snapshots of this hub, on all VMs."""
        paths = [inventory.INSTANCE_UUID, snapshots.TREE]
        found = properties.read(
            self._session, vim.VirtualMachine, None, paths, doing="list snapshots"
        )
        prefix = snapshots.name_of(self._owner, "")
        return [
            LeftSnapshot(
                vm_uuid=str(told[inventory.INSTANCE_UUID]),
                name=held.name.removeprefix(prefix),
                created_at=held.created_at,
                reference=_refer(str(told[inventory.INSTANCE_UUID]), vm_moref, held),
            )
            for vm_moref, told in found.values.items()
            if told.get(inventory.INSTANCE_UUID)
            for held in snapshots.flatten(told.get(snapshots.TREE, ()))
            if held.name.startswith(prefix)
        ]

    def _find_vm(self, vm_uuid: str) -> str | None:
        """Return a VM's reference, or None where it is certain that there is none."""
        try:
            return inventory.get_moref(self._session, vm_uuid)
        except NotFound:
            if vm_uuid in inventory.confirm_gone(self._session, [vm_uuid]):
                return None
            raise

    def close(self) -> None:
        """Log out."""
        self._session.close()


def _refer(vm_uuid: str, vm_moref: str, held: snapshots.Held) -> dict[str, Any]:
    return {
        "version": REFERENCE_VERSION,
        "vm_uuid": vm_uuid,
        "vm_moref": vm_moref,
        "snapshot": held.moref,
        "name": held.name,
        "host_moref": "",
        "disks": [],
    }


def _check_reference(reference: Mapping[str, Any]) -> None:
    if reference.get("version") != REFERENCE_VERSION or "snapshot" not in reference:
        raise Invalid("the reference is not one of a vSphere snapshot", kind="reference-invalid")


def _lost(why: str) -> NotFound:
    return NotFound(
        f"the snapshot is gone: {why}", kind="snapshot-lost", hint="run the backup again"
    )
