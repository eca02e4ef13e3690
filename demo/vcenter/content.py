"""The bytes of the simulated disks, and what changed in them: raw, sparse files.

`<folder>/<VM>/<key>.raw` is what a guest writes; `<folder>/<snapshot>/<key>.raw` what a snapshot
holds, which is where the reader `file` looks.
"""

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import RLock

BLOCK = 64 * 1024  # the grain of vCenter's change tracking, or a fraction of it
AREAS_MAX = 2000  # in one answer, as vCenter's
_COPY_BYTES = 1 << 20


def _make_uuid() -> str:
    """Return a uuid in VMware's spelling: `52 de … 8e-0c … 5a`."""
    pairs = uuid.uuid4().bytes.hex(" ").split(" ")
    return " ".join(pairs[:8]) + "-" + " ".join(pairs[8:])


@dataclass(frozen=True)
class Frozen:
    """A disk as a snapshot holds it."""

    key: int
    path: Path
    size_bytes: int
    change_id: str | None
    vm: str


@dataclass
class Tracked:
    """The change tracking of one disk: `uuid/sequence`."""

    uuid: str = field(default_factory=_make_uuid)
    sequence: int = 0

    def next(self) -> str:
        """Return the change id of a new moment."""
        self.sequence += 1
        return f"{self.uuid}/{self.sequence}"


class Unknown(Exception):
    """There is no such snapshot, disk or change id."""


class OutOfRange(Exception):
    """What was asked about is behind the end of the disk."""


class Content:
    """The disks of all VMs. Writing and freezing exclude each other: a snapshot is one moment.

    Attributes:
        span_bytes_max: how much of a disk one answer about changes is about, or None for all; a
            small one makes empty answers.
        skipped: by disk key, how many of the next blocks that changed are not told: a tracking
            that lies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = RLock()
        self.span_bytes_max: int | None = None
        self.skipped: dict[int, int] = {}
        self._tracked: dict[tuple[str, int], Tracked] = {}
        self._frozen: dict[str, dict[int, Frozen]] = {}

    def live(self, vm: str, key: int, size_bytes: int) -> Path:
        """Return the file that a guest writes, made or grown where it must be."""
        path = self.folder / vm / f"{key}.raw"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            if file.tell() != size_bytes:
                file.truncate(size_bytes)
        return path

    def write(self, path: Path, offset: int, data: bytes) -> None:
        """Write as a guest does."""
        with self.lock, path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def freeze(self, vm: str, snapshot: str, sizes: dict[int, int], *, tracks: bool) -> None:
        """Hold the disks of a VM for a snapshot, at one moment."""
        with self.lock:
            held = {}
            for key, size_bytes in sizes.items():
                path = self.folder / snapshot / f"{key}.raw"
                path.parent.mkdir(parents=True, exist_ok=True)
                copy_sparse(self.live(vm, key, size_bytes), path)
                change_id = self._track(vm, key).next() if tracks else None
                held[key] = Frozen(key, path, size_bytes, change_id, vm)
            self._frozen[snapshot] = held

    def drop(self, snapshot: str) -> None:
        """Take a snapshot's files away; its moments can still be compared with."""
        with self.lock:
            held = self._frozen.get(snapshot)
            if held is None or not (self.folder / snapshot).exists():
                return
            gone = self.folder / ".removed" / snapshot
            gone.parent.mkdir(exist_ok=True)
            (self.folder / snapshot).rename(gone)
            self._frozen[snapshot] = {
                key: replace(disk, path=gone / f"{key}.raw") for key, disk in held.items()
            }

    def detach(self, vm: str, key: int) -> None:
        """Forget a disk that is no longer the VM's; the next one under its key is another."""
        with self.lock:
            (self.folder / vm / f"{key}.raw").unlink(missing_ok=True)
            self._tracked.pop((vm, key), None)

    def move(self, vm: str, other: str) -> None:
        """Give the disks of a VM, and what was tracked of them, to another reference."""
        with self.lock:
            if (self.folder / vm).exists():
                (self.folder / vm).rename(self.folder / other)
            for old, key in [place for place in self._tracked if place[0] == vm]:
                self._tracked[other, key] = self._tracked.pop((old, key))

    def reset(self, vm: str, key: int) -> None:
        """Forget what was tracked, as a hard power-off does."""
        with self.lock:
            self._tracked[vm, key] = Tracked()

    def forget(self, vm: str) -> None:
        """Do what switching change tracking off does: what was tracked means nothing any more."""
        with self.lock:
            for place in [one for one in self._tracked if one[0] == vm]:
                self._tracked[place] = Tracked()

    def revert(self, vm: str, snapshot: str) -> None:
        """Put a VM's disks back to what a snapshot holds, and the tracking with them."""
        with self.lock:
            for key, disk in self._frozen[snapshot].items():
                copy_sparse(disk.path, self.live(vm, key, disk.size_bytes))
                if disk.change_id is not None:
                    tracked = self._track(vm, key)
                    tracked.sequence = int(disk.change_id.rpartition("/")[2])

    @property
    def snapshots(self) -> list[str]:
        """The snapshots that were ever taken, oldest first."""
        with self.lock:
            return list(self._frozen)

    def find_change_ids(self, snapshot: str) -> dict[int, str]:
        """Return the change ids of a snapshot's disks that have one, by key."""
        with self.lock:
            held = self._frozen.get(snapshot, {})
            return {key: disk.change_id for key, disk in held.items() if disk.change_id}

    def get_owner(self, snapshot: str) -> str:
        """Return the VM that a snapshot is of. Raises Unknown."""
        with self.lock:
            for disk in self._frozen.get(snapshot, {}).values():
                return disk.vm
        raise Unknown(snapshot)

    def get_frozen(self, snapshot: str, key: int) -> Frozen:
        """Return a disk of a snapshot, also of one that was removed. Raises Unknown."""
        with self.lock:
            try:
                return self._frozen[snapshot][key]
            except KeyError:
                raise Unknown(f"disk {key} of {snapshot}") from None

    def list_changed(
        self, snapshot: str, key: int, start: int, change_id: str
    ) -> tuple[int, list[tuple[int, int]]]:
        """Return the length of what is told about, and changed areas in it, start and length.

        Raises Unknown and OutOfRange.
        """
        with self.lock:  # a snapshot that is removed takes its file elsewhere
            return self._list_changed(self.get_frozen(snapshot, key), start, change_id)

    def _list_changed(
        self, disk: Frozen, start: int, change_id: str
    ) -> tuple[int, list[tuple[int, int]]]:
        if not 0 <= start < disk.size_bytes:
            raise OutOfRange(f"{start} of {disk.size_bytes}")
        key = disk.key
        base = None if change_id == "*" else self._find_moment(key, change_id)
        end = disk.size_bytes
        if self.span_bytes_max is not None:
            end = min(end, start + self.span_bytes_max)
        areas: list[tuple[int, int]] = []
        for first, last in _list_differences(
            disk.path, None if base is None else base.path, start, end
        ):
            if self.skipped.get(key):
                self.skipped[key] -= 1
                continue
            if areas and sum(areas[-1]) == first:
                areas[-1] = (areas[-1][0], areas[-1][1] + last - first)
            elif len(areas) == AREAS_MAX:
                return first - start, areas
            else:
                areas.append((first, last - first))
        return end - start, areas

    def _find_moment(self, key: int, change_id: str) -> Frozen:
        uuid, _, sequence = change_id.rpartition("/")
        now = {one.uuid: one.sequence for one in self._tracked.values()}
        if uuid not in now or not sequence.isdecimal() or int(sequence) > now[uuid]:
            raise Unknown(change_id)  # the tracking was reset since, or went back
        # After a revert the numbers come again, and mean what they meant last.
        for held in reversed(self._frozen.values()):
            if key in held and held[key].change_id == change_id:
                return held[key]
        raise Unknown(change_id)

    def _track(self, vm: str, key: int) -> Tracked:
        return self._tracked.setdefault((vm, key), Tracked())


def is_equal(left: Path, right: Path) -> bool:
    """Whether two files hold the same bytes; holes are not read."""
    size = left.stat().st_size
    if size != right.stat().st_size:
        return False
    return not any(True for _ in _list_differences(left, right, 0, size))


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file, its holes as holes."""
    with source.open("rb") as reading, target.open("wb") as writing:
        size = os.fstat(reading.fileno()).st_size
        writing.truncate(size)
        for first, last in _list_data(reading.fileno(), 0, size):
            reading.seek(first)
            writing.seek(first)
            for at in range(first, last, _COPY_BYTES):
                writing.write(reading.read(min(_COPY_BYTES, last - at)))


def _list_data(descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the runs between two offsets that are no holes."""
    position = start
    while position < end:
        try:
            first = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole behind it
            return
        if first >= end:
            return
        last = min(os.lseek(descriptor, first, os.SEEK_HOLE), end)
        yield first, last
        position = last


def _list_blocks(descriptor: int, start: int, end: int) -> Iterator[int]:
    last = -1
    for first, behind in _list_data(descriptor, start - start % BLOCK, end):
        for number in range(first // BLOCK, (behind + BLOCK - 1) // BLOCK):
            if number > last:
                last = number
                yield number


def _list_differences(
    new: Path, old: Path | None, start: int, end: int
) -> Iterator[tuple[int, int]]:
    """Yield the blocks that differ, cut to the range; without `old`, those that are in use."""
    with new.open("rb") as now, (old or Path(os.devnull)).open("rb") as before:
        behind = end + -end % BLOCK  # a block that is told in two answers is whole in both
        numbers = set(_list_blocks(now.fileno(), start, behind))
        if old is not None:
            numbers |= set(_list_blocks(before.fileno(), start, behind))
        for number in sorted(numbers):
            now.seek(number * BLOCK)
            before.seek(number * BLOCK)
            data = now.read(BLOCK)
            if old is None or data != before.read(BLOCK).ljust(len(data), b"\0"):
                first = max(start, number * BLOCK)
                last = min(end, number * BLOCK + len(data))
                if first < last:
                    yield first, last
