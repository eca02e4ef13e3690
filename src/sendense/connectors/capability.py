"""What only some platforms can tell; asked for by `isinstance`, never by the platform's type."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

from sendense.nbd.address import Address


@dataclass(frozen=True, slots=True)
class Assessment:
    """What a platform says about backing up one VM now, beyond what discovery keeps.

    Attributes:
        obstacles: why no backup of the VM is possible, each with what to do; empty where it is.
        incremental_obstacles: why no incremental of any of its disks is possible.
        consistent: whether its file systems can be frozen at the moment of a snapshot.
        consistent_reason: why not, or None.
        missing_privileges: what the user that logs in lacks, by the platform's own names.
        notes: what a backup will do or meet that a person may want to know before.
    """

    obstacles: tuple[str, ...] = ()
    incremental_obstacles: tuple[str, ...] = ()
    consistent: bool = False
    consistent_reason: str | None = None
    missing_privileges: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@runtime_checkable
class Assessing(Protocol):
    """A source that can say whether a VM can be backed up."""

    def assess(self, vm_uuid: str) -> Assessment:
        """Ask the platform, in seconds and without changing anything.

        Raises Unavailable, Denied, or NotFound, kind `vm-missing`.
        """
        ...


@runtime_checkable
class Identified(Protocol):
    """A source whose platform has an identity of its own, whatever its address."""

    def identify(self) -> str:
        """Return the identity. Raises Unavailable or Denied."""
        ...


@runtime_checkable
class Noticing(Protocol):
    """A source whose listing may have to leave something out."""

    def list_notices(self) -> tuple[str, ...]:
        """Return, after `list_vms`, what a person should know about it."""
        ...


@dataclass(frozen=True, slots=True)
class LeftSnapshot:
    """A snapshot of this hub that the platform holds.

    Attributes:
        name: the request's; see SnapshotRequest.
        reference: by which it can be removed.
    """

    vm_uuid: str
    name: str
    created_at: datetime
    reference: dict[str, Any]


@runtime_checkable
class Sweepable(Protocol):
    """A source on which snapshots can outlive everybody who knows of them."""

    def list_left(self) -> list[LeftSnapshot]:
        """Return all snapshots of this hub, those of running jobs too. Raises Unavailable."""
        ...


@runtime_checkable
class Measuring(Protocol):
    """A view of a disk whose platform can tell what the backup costs the guest."""

    def measure_write_latency(self) -> float | None:
        """Return the mean seconds that the guest's writes to the disk took since the last call.

        None at the first call, and where the guest wrote nothing. Flushes count as a part of the
        writes that they make durable. Raises Unavailable, Denied or NotFound where nobody can tell.
        """
        ...


@runtime_checkable
class Receiving(Protocol):
    """A source that takes disks back."""

    def open_for_restore(
        self, vm_uuid: str, key: int, *, size_bytes: int, disk_uuid: str
    ) -> AbstractContextManager[Address]:
        """Give the address at which a disk of a VM that is off can be overwritten.

        Nothing has been written where entering raises. Raises Conflict or NotFound where the VM or
        its disk is not as it must be; leaving raises Conflict where the VM was started meanwhile.
        """
        ...
