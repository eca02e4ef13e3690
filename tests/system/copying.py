"""A backup reduced to plain copying, to test the connector without engine and repository."""

import filecmp
from collections.abc import Iterable
from pathlib import Path

from demo.guest import disk as disks
from demo.guest.vm import Guest
from sendense.connectors.base import (
    ConsistencyWish,
    DiskRequest,
    DiskView,
    Snapshot,
    SnapshotOutcome,
    SnapshotRequest,
)
from sendense.connectors.qemu.source import QemuSource
from sendense.core.extent import Extent, split
from sendense.core.units import MIB
from sendense.nbd.client import Client

LINEAGE = "chain1"


def request(
    guest: Guest,
    name: str,
    bases: dict[int, str | None],
    *,
    consistency: ConsistencyWish = ConsistencyWish.OFF,
    lineage: str = LINEAGE,
) -> SnapshotRequest:
    """Return a request for the disks in `bases`, each with the change id to build on."""
    return SnapshotRequest(
        vm_uuid=guest.uuid,
        name=name,
        disks=tuple(
            DiskRequest(key=key, lineage=lineage, base_change_id=base)
            for key, base in bases.items()
        ),
        consistency=consistency,
    )


def copy(view: DiskView, extents: Iterable[Extent], target: Path) -> int:
    """Bring extents of a snapshot's disk into a file and return the bytes that were read."""
    target.touch()
    copied = 0
    with Client.connect(view.address) as client, target.open("r+b") as file:
        file.truncate(view.size_bytes)
        for extent in extents:
            for piece in split(extent, unit=MIB):
                file.seek(piece.start)
                if piece.zero:
                    file.write(bytes(piece.length))
                else:
                    file.write(client.read(piece.start, piece.length))
                    copied += piece.length
    return copied


class Chain:
    """The copies of a guest's disks, brought up to date by one snapshot after the other."""

    def __init__(self, source: QemuSource, guest: Guest, folder: Path) -> None:
        self.source = source
        self.guest = guest
        self.folder = folder
        self.change_ids: dict[int, str | None] = {2000: None, 2001: None}
        self.snapshot: Snapshot | None = None
        self._count = 0

    def copy_of(self, key: int) -> Path:
        """Return the file that holds a disk's copy."""
        return self.folder / f"copy-{key}.raw"

    def truth_of(self, key: int) -> Path:
        """Return the file that holds what the disk really was at the last moment."""
        return self.folder / f"truth-{key}.raw"

    def take(self, name: str | None = None) -> Snapshot:
        """Take a snapshot with the guest paused, and the truth beside it."""
        self._count += 1
        self.guest.pause()
        try:
            self.snapshot = self.source.take_snapshot(
                request(self.guest, name or f"job-{self._count}", self.change_ids)
            )
            for key, disk in zip(self.change_ids, self.guest.disks, strict=True):
                disks.copy_truth(disk.path, self.truth_of(key), image_format=disk.image_format)
        finally:
            self.guest.resume()
        return self.snapshot

    def transfer(self) -> dict[int, int]:
        """Read what the snapshot says is needed and return the bytes read per disk."""
        assert self.snapshot is not None
        read = {}
        for disk in self.snapshot.disks:
            full = self.change_ids[disk.key] is None or disk.base_lost_reason is not None
            with self.source.open_disk(self.snapshot.reference, disk.key) as view:
                extents = view.list_allocated() if full else view.list_changed()
                if full:
                    self.copy_of(disk.key).unlink(missing_ok=True)
                read[disk.key] = copy(view, extents, self.copy_of(disk.key))
        return read

    def settle(self, outcome: SnapshotOutcome = SnapshotOutcome.COMMITTED) -> None:
        """Remove the snapshot and remember its change ids where it was committed."""
        assert self.snapshot is not None
        if outcome is SnapshotOutcome.COMMITTED:
            self.change_ids |= {disk.key: disk.change_id for disk in self.snapshot.disks}
        live = frozenset(change_id for change_id in self.change_ids.values() if change_id)
        self.source.remove_snapshot(self.snapshot.reference, outcome, live)

    def back_up(self) -> dict[int, int]:
        """Snapshot, transfer, compare, settle; returns the bytes read per disk."""
        self.take()
        read = self.transfer()
        self.compare()
        self.settle()
        return read

    def compare(self) -> None:
        """Assert that every byte of every copy is what the disk really held."""
        for key in self.change_ids:
            assert self.is_equal(key), f"disk {key} differs from the truth"

    def is_equal(self, key: int) -> bool:
        """Whether a disk's copy equals the truth."""
        return filecmp.cmp(self.copy_of(key), self.truth_of(key), shallow=False)

    def list_reasons(self) -> list[str | None]:
        """Return why each disk of the last snapshot had to be read in full, or None."""
        assert self.snapshot is not None
        return [disk.base_lost_reason for disk in self.snapshot.disks]
