"""A sparse disk in memory that a guest writes, and frozen copies of it as exports."""

import threading
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from sendense.core import units
from sendense.core.extent import Extent
from sendense.nbd import protocol as p

BLOCK = 64 * units.KIB  # granularity of content and of change tracking, as QEMU's bitmaps
ZERO = bytes(BLOCK)
DIRTY = "qemu:dirty-bitmap:fake"
REPLY_BYTES_MAX = 512 * units.MIB  # of one answer about extents; the client asks on behind it


class FakeDisk:
    """A running VM's disk. Sparse: only written blocks take memory. Safe between threads."""

    def __init__(self, size_bytes: int, *, uuid: str, lock: threading.RLock) -> None:
        """Make an empty disk. The lock is the platform's: one moment of several disks holds it."""
        assert size_bytes > 0, f"a disk of {size_bytes} bytes"
        assert size_bytes % units.SECTOR == 0, f"a disk of {size_bytes} bytes"
        self.size_bytes = size_bytes
        self.uuid = uuid
        self.tracked: dict[str, set[int]] = {}  # blocks written since, by change id
        self._blocks: dict[int, bytes] = {}
        self._lock = lock

    def write(self, offset: int, data: bytes) -> None:
        """Write as the guest does; tracked under every change id."""
        assert 0 <= offset <= self.size_bytes - len(data), "outside the disk"
        with self._lock:
            done = 0
            while done < len(data):
                number, within = divmod(offset + done, BLOCK)
                part = data[done : done + BLOCK - within]
                old = self._blocks.get(number, ZERO)
                self._blocks[number] = old[:within] + part + old[within + len(part) :]
                for blocks in self.tracked.values():
                    blocks.add(number)
                done += len(part)

    def trim(self, offset: int, length: int) -> None:
        """Discard whole blocks, which read as zeros then; tracked too."""
        assert 0 <= offset <= self.size_bytes - length, "outside the disk"
        with self._lock:
            for number in range(-(-offset // BLOCK), (offset + length) // BLOCK):
                self._blocks.pop(number, None)
                for blocks in self.tracked.values():
                    blocks.add(number)

    def resize(self, size_bytes: int) -> None:
        """Grow, which is not tracked as on QEMU, or shrink, and lose what lay behind the end."""
        assert size_bytes > 0, f"a disk of {size_bytes} bytes"
        assert size_bytes % units.SECTOR == 0, f"a disk of {size_bytes} bytes"
        with self._lock:
            self.size_bytes = size_bytes
            last, within = divmod(size_bytes, BLOCK)
            for number in [number for number in self._blocks if number >= last]:
                data = self._blocks.pop(number)
                if number == last and within:
                    self._blocks[number] = data[:within].ljust(BLOCK, b"\0")

    def revert(self, blocks: Mapping[int, bytes], *, size_bytes: int) -> None:
        """Go back to what `freeze` returned; every change id is lost, as on real platforms."""
        with self._lock:
            self.size_bytes = size_bytes
            self._blocks = dict(blocks)
            self.tracked.clear()

    def freeze(self) -> Mapping[int, bytes]:
        """Return the content by block at this moment; later writes do not touch it."""
        with self._lock:
            return MappingProxyType(dict(self._blocks))


class FrozenDisk:
    """A disk at one moment, as our NBD server offers it.

    Attributes:
        changed: blocks changed since the base change id; empty where there is none.
        tamper: makes of the changed extents what is told instead; they stay in order.
        on_read: called with offset and length before each read; raises or waits to be a bad disk.
    """

    contexts = (p.ALLOCATION, DIRTY)

    def __init__(
        self, size_bytes: int, blocks: Mapping[int, bytes], changed: frozenset[int]
    ) -> None:
        self.size_bytes = size_bytes
        self.blocks = blocks
        self.changed = changed
        self.on_read: Callable[[int, int], None] = lambda _offset, _length: None
        self.tamper: Callable[[list[Extent]], list[Extent]] = lambda told: told

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes; zeros where nothing was written."""
        self.on_read(offset, length)
        first, last = offset // BLOCK, -(-(offset + length) // BLOCK)
        whole = b"".join(self.blocks.get(number, ZERO) for number in range(first, last))
        return whole[offset - first * BLOCK :][:length]

    def list_extents(self, context: str, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (length, flags) for the NBD server."""
        end = min(offset + length, offset + REPLY_BYTES_MAX)
        marked = sorted(self.blocks if context == p.ALLOCATION else self.changed)
        unmarked, mark = (p.ALLOCATION_HOLE | p.ALLOCATION_ZERO, 0)
        if context == DIRTY:
            unmarked, mark = 0, 1
        position = offset
        for number in marked:
            start, stop = max(number * BLOCK, offset), min((number + 1) * BLOCK, end)
            if start >= stop:
                continue
            if start > position:
                yield start - position, unmarked
            yield stop - start, mark
            position = stop
        if position < end:
            yield end - position, unmarked

    def list_changed(self) -> Iterator[Extent]:
        """Yield changed extents in order; zero ones where the block is unwritten or trimmed."""
        return iter(self.tamper(list(self._list_changed())))

    def _list_changed(self) -> Iterator[Extent]:
        for number in sorted(self.changed):
            start = number * BLOCK
            if start < self.size_bytes:
                length = min(BLOCK, self.size_bytes - start)
                yield Extent(start, length, zero=number not in self.blocks)
