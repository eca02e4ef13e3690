"""The fake platform and its `Source`. Holds for one process; snapshots die with it."""

import contextlib
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sendense.connectors.base import (
    DISK_KEY_FIRST,
    Consistency,
    DiskDescription,
    DiskSnapshot,
    DiskView,
    Snapshot,
    SnapshotOutcome,
    SnapshotRequest,
    Tracking,
    VmDescription,
)
from sendense.connectors.fake.disk import FakeDisk, FrozenDisk
from sendense.core.errors import NotFound, Unavailable
from sendense.core.extent import Extent
from sendense.nbd.address import Address
from sendense.nbd.client import Client
from sendense.nbd.protocol import ALLOCATION
from sendense.nbd.server import Server


@dataclass(frozen=True, slots=True)
class FakeView:
    """A frozen disk behind our NBD server; see DiskView."""

    address: Address
    disk: FrozenDisk
    write_latency: Callable[[], float | None]
    connections_max: int = 4

    @property
    def size_bytes(self) -> int:
        """Size of the disk."""
        return self.disk.size_bytes

    def list_allocated(self) -> Iterator[Extent]:
        """Yield what the server tells."""
        with Client.connect(self.address, contexts=[ALLOCATION]) as client:
            yield from client.list_allocated()

    def list_changed(self) -> Iterator[Extent]:
        """Yield what the tracking recorded, or less where it lies."""
        return self.disk.list_changed()

    def measure_write_latency(self) -> float | None:
        """Return what the test says."""
        return self.write_latency()


@dataclass
class _Held:
    """A snapshot that the platform holds."""

    snapshot: Snapshot
    disks: dict[int, FrozenDisk] = field(default_factory=dict)


class FakePlatform:
    """VMs in memory, and a `Source` of them. The attributes are its faults, switched by tests.

    Attributes:
        is_gone: nothing answers, not even disks that are open.
        is_lying: every list of changes leaves out its first block.
        tamper: makes of the changed extents of any disk what is told instead, in order.
        on_read: called with offset and length before each read of any disk; it raises OSError for
            a disk that cannot be read there, or waits for one that is slow.
        write_latency: what the guests' writes take, for every disk that is asked for it.
    """

    def __init__(self) -> None:
        self.is_gone = False
        self.is_lying = False
        self.tamper: Callable[[list[Extent]], list[Extent]] = lambda told: told
        self.on_read: Callable[[int, int], None] = lambda _offset, _length: None
        self.write_latency: Callable[[], float | None] = lambda: None
        self._vms: dict[str, list[FakeDisk]] = {}
        self._held: dict[str, _Held] = {}
        self._count = 0
        self._lock = threading.RLock()

    # What tests do to it.

    def add_vm(self, name: str, *sizes: int) -> list[FakeDisk]:
        """Add a VM and return its disks. Its uuid is `vm-` and the name."""
        disks = [
            FakeDisk(size, uuid=f"{name}-{index}", lock=self._lock)
            for index, size in enumerate(sizes)
        ]
        self._vms[f"vm-{name}"] = disks
        return disks

    def exchange_disk(self, name: str, index: int, disk: FakeDisk) -> FakeDisk:
        """Detach a VM's disk, put another one in its place, and return the detached one."""
        with self._lock:
            disks = self._vms[f"vm-{name}"]
            old, disks[index] = disks[index], disk
            return old

    def lose_tracking(self) -> None:
        """Forget every change id, as after a crash of a hypervisor."""
        with self._lock:
            for disks in self._vms.values():
                for disk in disks:
                    disk.tracked.clear()

    @property
    def snapshots(self) -> list[str]:
        """Names of the snapshots held: empty after a clean run."""
        return sorted(self._held)

    # Source.

    def probe(self) -> str:
        """Contact the platform."""
        self._answer()
        return f"a fake platform with {len(self._vms)} VMs"

    def list_vms(self) -> list[VmDescription]:
        """Return all VMs."""
        self._answer()
        return [
            VmDescription(
                uuid=uuid,
                name=uuid.removeprefix("vm-"),
                power_state="on",
                disks=tuple(
                    DiskDescription(
                        key=DISK_KEY_FIRST + index,
                        index=index,
                        label=f"Disk {index}",
                        uuid=disk.uuid,
                        capacity_bytes=disk.size_bytes,
                        tracking=Tracking.SUPPORTED,
                    )
                    for index, disk in enumerate(disks)
                ),
            )
            for uuid, disks in self._vms.items()
        ]

    def confirm_gone(self, vm_uuids: Collection[str]) -> frozenset[str]:
        """Return all: what is not listed is not there."""
        return frozenset(vm_uuids)

    def take_snapshot(self, request: SnapshotRequest) -> Snapshot:
        """Hold the disks at one moment: no guest writes between."""
        self._answer()
        with self._lock:
            held = self._held.get(request.name)
            if held is not None:
                return held.snapshot
            wanted = [(one, self._get_disk(request.vm_uuid, one.key)) for one in request.disks]
            self._count += 1
            frozen: dict[int, FrozenDisk] = {}
            described = []
            for one, disk in wanted:
                lost = self._explain_loss(disk, one.base_change_id)
                base = one.base_change_id if lost is None else None
                changed = sorted(disk.tracked[base]) if base is not None else []
                if self.is_lying:
                    del changed[:1]
                frozen[one.key] = FrozenDisk(disk.size_bytes, disk.freeze(), frozenset(changed))
                frozen[one.key].on_read = self._before_read
                frozen[one.key].tamper = self.tamper
                change_id = f"{one.lineage}/{disk.size_bytes}/{self._count}"
                disk.tracked[change_id] = set()
                described.append(DiskSnapshot(one.key, disk.size_bytes, disk.uuid, change_id, lost))
            reference = {
                "name": request.name,
                "vm_uuid": request.vm_uuid,
                "change_ids": {str(one.key): one.change_id for one in described},
            }
            moment = f"moment-{self._count}"
            snapshot = Snapshot(reference, moment, Consistency.CRASH, tuple(described))
            self._held[request.name] = _Held(snapshot, frozen)
            return snapshot

    @contextlib.contextmanager
    def open_disk(self, reference: dict[str, Any], key: int) -> Iterator[DiskView]:
        """Serve a disk of a snapshot on a socket of its own."""
        self._answer()
        held = self._held.get(reference["name"])
        if held is None:
            raise NotFound(f"snapshot {reference['name']} is gone", kind="snapshot-lost")
        disk = held.disks.get(key)
        if disk is None:
            raise NotFound(f"disk {key} is not in the snapshot", kind="disk-unknown")
        with tempfile.TemporaryDirectory(prefix="sendense-fake-") as folder:
            socket_path = str(Path(folder) / "nbd.sock")
            with Server({"": disk}, socket_path=socket_path):
                yield FakeView(Address(socket_path=socket_path), disk, self.write_latency)

    def remove_snapshot(
        self,
        reference: dict[str, Any],
        outcome: SnapshotOutcome,
        live_change_ids: frozenset[str],
    ) -> None:
        """Remove it. Every change id records from its own moment: the old ones missed nothing."""
        self._answer()
        with self._lock:
            self._held.pop(reference["name"], None)
            for key, change_id in reference["change_ids"].items():
                kept = set(live_change_ids)
                if outcome is SnapshotOutcome.COMMITTED:
                    kept.add(change_id)
                disk = self._get_disk(reference["vm_uuid"], int(key))
                for known in list(disk.tracked):
                    if known not in kept:
                        del disk.tracked[known]

    def find_snapshot(self, vm_uuid: str, name: str) -> dict[str, Any] | None:
        """Return the reference of a snapshot of a VM by its name."""
        self._answer()
        held = self._held.get(name)
        if held is None or held.snapshot.reference["vm_uuid"] != vm_uuid:
            return None
        return held.snapshot.reference

    def close(self) -> None:
        """Do nothing: the platform lives on."""

    def _get_disk(self, vm_uuid: str, key: int) -> FakeDisk:
        disks = self._vms.get(vm_uuid)
        if disks is None:
            raise NotFound(f"VM {vm_uuid} is not in the source any more", kind="vm-gone")
        index = key - DISK_KEY_FIRST
        if not 0 <= index < len(disks):
            raise NotFound(f"VM {vm_uuid} has no disk with key {key}", kind="disk-unknown")
        return disks[index]

    @staticmethod
    def _explain_loss(disk: FakeDisk, change_id: str | None) -> str | None:
        if change_id is None:
            return None
        if change_id not in disk.tracked:
            return "the platform does not know the last change id any more"
        if change_id.split("/")[1] != str(disk.size_bytes):
            return "the disk has another size"
        return None

    def _answer(self) -> None:
        if self.is_gone:
            raise Unavailable("the fake platform does not answer", kind="source-silent")

    def _before_read(self, offset: int, length: int) -> None:
        self._answer()
        self.on_read(offset, length)
