"""What the engine needs from a platform, and nothing more.

A connector gives a `Source`: it lists VMs with their disks, takes one consistent snapshot of chosen
disks, and for each disk of the snapshot gives an NBD address and the extents worth reading. It
answers capability questions instead of being asked for its type.

Order, part of the contract: contexts (`with`) close local handles only. A snapshot outlives the
process that took it and is removed by `remove_snapshot`, by reference, whatever happened since.
"""

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from sendense.core.extent import Extent
from sendense.nbd.address import Address

DISK_KEY_FIRST = 2000  # as on vSphere; disk n of a VM without keys of its own has key 2000 + n


def disk_id(key: int) -> str:
    """Return the name of a disk in API and catalog: `2000` → `"disk-2000"`."""
    return f"disk-{key}"


class Consistency(StrEnum):
    """How consistent the state in a snapshot is."""

    FILESYSTEM = "filesystem"  # the guest's file systems were frozen at that moment
    CRASH = "crash"  # as after pulling the plug: one moment, nothing flushed
    NONE = "none"  # no moment at all: the disk was read while somebody could write it


class ConsistencyWish(StrEnum):
    """What the user asked for."""

    REQUIRE = "require"  # file-system consistent, or the backup fails
    PREFER = "prefer"  # file-system consistent where the guest answers, else crash-consistent
    OFF = "off"  # do not disturb the guest


class Tracking(StrEnum):
    """Whether the platform can tell what changed on a disk since a change id."""

    SUPPORTED = "supported"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True, slots=True)
class DiskDescription:
    """A disk as discovery sees it.

    Attributes:
        key: stable within the VM, `DISK_KEY_FIRST` + n; see `disk_id`.
        index: position within the VM from 0.
        uuid: identity of the disk on its platform; another uuid under the same key is another disk.
        capacity_bytes: None where the source could not tell; such a disk cannot be backed up.
        excluded_reason: why the disk cannot be backed up, or None.
    """

    key: int
    index: int
    label: str
    uuid: str
    capacity_bytes: int | None
    tracking: Tracking
    datastore: str | None = None
    excluded_reason: str | None = None


@dataclass(frozen=True, slots=True)
class VmDescription:
    """A VM as discovery sees it. `uuid` is its identity within the source; names may repeat."""

    uuid: str
    name: str
    power_state: str  # "on", "off", "paused" or "unknown"
    disks: tuple[DiskDescription, ...]
    path: str | None = None
    guest_os: str | None = None
    cpu_count: int | None = None
    memory_bytes: int | None = None
    networks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DiskRequest:
    """A disk that a snapshot must hold, and what the next change id shall build on.

    Attributes:
        key: see DiskDescription.
        lineage: names the chain (disk and repository) whose tracking this is, `[a-z0-9-]{1,32}`.
            Platforms with stateful tracking (QEMU bitmaps) keep one record per lineage.
        base_change_id: change id of the parent backup, or None for a full read.
    """

    key: int
    lineage: str
    base_change_id: str | None = None


@dataclass(frozen=True, slots=True)
class SnapshotRequest:
    """One consistent moment of some disks of a VM.

    Attributes:
        name: unique and stable for the job, `[a-z0-9-]{1,100}`; taking it twice finds the first.
    """

    vm_uuid: str
    name: str
    disks: tuple[DiskRequest, ...]
    consistency: ConsistencyWish = ConsistencyWish.PREFER


@dataclass(frozen=True, slots=True)
class DiskSnapshot:
    """One disk as it stands in a snapshot.

    Attributes:
        size_bytes: size at that moment.
        uuid: identity of the disk, as in DiskDescription.
        change_id: token to remember with the commit, or None where nothing is tracked.
        base_lost_reason: None where the requested base change id can be used (or none was asked
            for); else why it cannot, in words for the user: the disk must be read in full.
    """

    key: int
    size_bytes: int
    uuid: str
    change_id: str | None
    base_lost_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What `take_snapshot` made.

    Attributes:
        reference: everything needed to find the snapshot again from another process, as JSON
            values without secrets. Opaque to all but the connector.
        moment: identity of the moment; differs between any two snapshots. Data read at another
            moment must never be mixed with this one's.
        warnings: what the user should know, e.g. that the guest agent did not answer.
    """

    reference: dict[str, Any]
    moment: str
    consistency: Consistency
    disks: tuple[DiskSnapshot, ...]
    warnings: tuple[str, ...] = ()


class DiskView(Protocol):
    """A disk of a snapshot, opened for reading. Valid while its context is open."""

    @property
    def address(self) -> Address:
        """Where any number of NBD clients up to `connections_max` may read the disk."""
        ...

    @property
    def size_bytes(self) -> int:
        """Size of the disk."""
        ...

    @property
    def connections_max(self) -> int:
        """How many connections the platform bears for this disk."""
        ...

    def list_allocated(self) -> Iterator[Extent]:
        """Yield extents that cover the whole disk in order; `zero` ones need no reading."""
        ...

    def list_changed(self) -> Iterator[Extent]:
        """Yield, in order, the extents changed since the base change id; `zero` marks trims.

        Raises Unavailable, kind `tracking-lost`, where the platform cannot tell after all: the
        disk must then be read in full. Only valid where the snapshot kept the base.
        """
        ...


class SnapshotOutcome(StrEnum):
    """What became of the backup that a snapshot was taken for."""

    COMMITTED = "committed"
    DISCARDED = "discarded"


class Source(Protocol):
    """A platform to read VMs from. Methods block; Unavailable means try again later."""

    def probe(self) -> str:
        """Contact the platform and return one line on what answered.

        Raises Unavailable, Denied or Invalid with a hint.
        """
        ...

    def list_vms(self) -> list[VmDescription]:
        """Return all VMs with their disks. Raises Unavailable rather than return a part."""
        ...

    def confirm_gone(self, vm_uuids: Collection[str]) -> frozenset[str]:
        """Return those of VMs that were not listed of which it is certain that they are gone.

        A platform that may leave something out of a list looks for each. Raises Unavailable.
        """
        ...

    def take_snapshot(self, request: SnapshotRequest) -> Snapshot:
        """Hold all requested disks at one moment, with new change ids in the same transaction.

        Idempotent by `request.name`. Where it raises, nothing is left behind.
        """
        ...

    def open_disk(self, reference: dict[str, Any], key: int) -> AbstractContextManager[DiskView]:
        """Open a disk of a snapshot for reading. Closing leaves the snapshot alone."""
        ...

    def remove_snapshot(
        self,
        reference: dict[str, Any],
        outcome: SnapshotOutcome,
        live_change_ids: frozenset[str],
    ) -> None:
        """Remove the snapshot and settle tracking. Idempotent; a vanished snapshot is success.

        COMMITTED keeps the new change ids. DISCARDED gives what the new ones recorded back to the
        old ones. Then every change id of ours on the snapshot's disks that is neither in
        `live_change_ids` (those named by the newest live backups of every repository) nor just
        committed is forgotten.
        """
        ...

    def find_snapshot(self, vm_uuid: str, name: str) -> dict[str, Any] | None:
        """Return the reference of a snapshot by the request's name, or None: for clean-up."""
        ...

    def close(self) -> None:
        """Release connections to the platform. Snapshots stay."""
        ...
