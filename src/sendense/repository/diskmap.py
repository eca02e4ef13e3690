"""Disk maps: a radix tree of chunk ids for each disk. See docs/format.md.

A node at level 0 (a leaf) has 256 slots with the ids of chunks; a slot of a node at level n is the
id of a node at level n-1 and stands for 256**n chunks. The zero id stands for a chunk or a subtree
of zeros, so a sparse disk of any size costs nothing. Nodes are content-addressed: two maps share
every subtree in which they do not differ.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from sendense.core.errors import Corrupt, NotFound, SendenseError
from sendense.repository import format
from sendense.repository.chunk import ID_LENGTH, ZERO_ID

FAN_OUT = 256
FAN_OUT_BITS = 8
LEVEL_MAX = 6  # 2**56 chunks: more than any disk
NODE_MAGIC = b"NODE"
NODE_HEAD = struct.Struct("<4sBBH32s")
_FULL = bytes([0xFF]) * (FAN_OUT // 8)  # the bitmap of a node whose slots are all in use

LoadNode = Callable[[bytes], bytes]  # id → plain bytes that hash to it
LoadNodes = Callable[[Sequence[bytes]], dict[bytes, bytes]]  # of many what is read at once, by id
StoreNode = Callable[[bytes], bytes]  # plain bytes → id
OnLost = Callable[[int, int, SendenseError], None]  # first chunk, how many, why


def level_of(chunk_count: int) -> int:
    """Return the level of the root of a map for so many chunks: the smallest that suffices."""
    level = 0
    while chunk_count > FAN_OUT ** (level + 1):
        level += 1
    assert level <= LEVEL_MAX, f"{chunk_count} chunks"
    return level


def encode_node(level: int, slots: list[bytes]) -> bytes:
    """Return a node's only possible bytes: a bitmap of the slots in use, then their ids."""
    ids = b"".join(slots)
    assert len(slots) == FAN_OUT, f"{len(slots)} slots"
    assert len(ids) == FAN_OUT * ID_LENGTH, "an id is too short or too long"
    count = FAN_OUT - slots.count(ZERO_ID)
    if count == FAN_OUT:
        bitmap = _FULL
    else:
        rows = np.frombuffer(ids, np.uint64).reshape(FAN_OUT, ID_LENGTH // 8)
        used = rows.any(axis=1)
        bitmap, ids = np.packbits(used, bitorder="little").tobytes(), rows[used].tobytes()
    return NODE_HEAD.pack(NODE_MAGIC, format.VERSION, level, count, bitmap) + ids


def decode_node(data: bytes, *, level: int) -> list[bytes]:
    """Return the 256 slots of a node of the expected level, or raise Corrupt."""
    if len(data) < NODE_HEAD.size:
        raise format.corrupt("of a disk map", "a node is cut off", kind="map-corrupt")
    magic, version, found_level, count, bitmap = NODE_HEAD.unpack_from(data)
    if (
        magic != NODE_MAGIC
        or version != format.VERSION
        or found_level != level
        or count == 0
        or count != int.from_bytes(bitmap, "little").bit_count()
        or len(data) != NODE_HEAD.size + count * ID_LENGTH
    ):
        raise format.corrupt(
            "of a disk map", f"a node is not one of level {level}", kind="map-corrupt"
        )
    ids = _ids(count).unpack_from(data, NODE_HEAD.size)
    if ZERO_ID in ids:
        raise format.corrupt("of a disk map", "a node spells out a zero id", kind="map-corrupt")
    if count == FAN_OUT:
        return list(ids)
    slots = [ZERO_ID] * FAN_OUT
    used = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little").nonzero()[0]
    for slot, chunk_id in zip(used.tolist(), ids, strict=True):
        slots[slot] = chunk_id
    return slots


@cache
def _ids(count: int) -> struct.Struct:
    return struct.Struct(f"{ID_LENGTH}s" * count)


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring chunks: `count` zero ones where `ids` is empty, else those with the ids."""

    start: int
    count: int
    ids: tuple[bytes, ...] = ()


class MapReader:
    """Reads one disk's map. Holds one node for each level; cheap when asked in ascending order.

    Args:
        root: its id. chunk_count: of the disk.
        load: gives the bytes of a node.
        load_many: gives the bytes of many at once; what it leaves out `load` is asked for.
        on_lost: is told of a node that cannot be read, which is then taken for zeros; without it
            the error is raised.
    """

    def __init__(
        self,
        root: bytes,
        *,
        chunk_count: int,
        load: LoadNode,
        load_many: LoadNodes = lambda _: {},
        on_lost: OnLost | None = None,
    ) -> None:
        self.root = root
        self._on_lost = on_lost
        self.chunk_count = chunk_count
        self.level = level_of(chunk_count)
        self._load = load
        self._load_many = load_many
        self._expected: Iterator[int] = iter(())  # leaves that are not read ahead yet
        self._next_expected: int | None = None
        self._ahead: dict[bytes, bytes] = {}  # at most a node's leaves, 2 MiB
        self._cached: list[tuple[int, list[bytes]] | None] = [None] * (self.level + 1)

    def expect(self, leaves: Iterator[int]) -> None:
        """Say which leaves, `FAN_OUT` chunks each, will be asked for, in ascending order.

        So those below one node are read together. Nothing but time depends on it, and `leaves` is
        advanced only as they are asked for.
        """
        self._expected = leaves
        self._next_expected = next(leaves, None)

    def get(self, index: int) -> bytes:
        """Return the id of a chunk; the zero id for zeros and beyond the end of the disk."""
        if not 0 <= index < self.chunk_count:
            return ZERO_ID
        slots = self.slots(0, index >> FAN_OUT_BITS)
        return slots[index % FAN_OUT] if slots else ZERO_ID

    def slots(self, level: int, node_index: int) -> list[bytes] | None:
        """Return a node's slots, or None where the subtree is zero. Callers do not change them."""
        cached = self._cached[level]
        if cached is not None and cached[0] == node_index:
            return cached[1]
        if level == self.level:
            node_id = self.root if node_index == 0 else ZERO_ID
        else:
            parent = self.slots(level + 1, node_index >> FAN_OUT_BITS)
            node_id = parent[node_index % FAN_OUT] if parent else ZERO_ID
        if node_id == ZERO_ID:
            return None
        slots = self._get(level, node_index, node_id)
        self._cached[level] = (node_index, slots)
        return slots

    def _get(self, level: int, node_index: int, node_id: bytes) -> list[bytes]:
        if level == 0 and node_id not in self._ahead:
            expected = self._list_expected(node_index)
            if expected:  # else what was read before may still be asked for
                self._ahead = self._load_many(expected)
        try:
            return decode_node(self._ahead.get(node_id) or self._load(node_id), level=level)
        except (Corrupt, NotFound) as error:
            if self._on_lost is None:
                raise
            width = FAN_OUT ** (level + 1)
            start = node_index * width
            self._on_lost(start, min(width, self.chunk_count - start), error)
            return [ZERO_ID] * FAN_OUT

    def _list_expected(self, leaf: int) -> list[bytes]:
        """Return the ids of the expected leaves from one on, up to the last with its parent."""
        above = self.slots(1, leaf >> FAN_OUT_BITS) if self.level else None
        end = (leaf | FAN_OUT - 1) + 1
        ids = []
        while above and self._next_expected is not None and self._next_expected < end:
            if self._next_expected >= leaf:
                ids.append(above[self._next_expected % FAN_OUT])
            self._next_expected = next(self._expected, None)
        return [one for one in ids if one != ZERO_ID]

    def list_runs(self, start: int = 0, end: int | None = None) -> Iterator[Run]:
        """Yield runs that cover chunks `start` to `end` in order; at most a leaf's at a time.

        Subtrees of zeros are passed over in one run each, whatever their size.
        """
        index = start
        end = self.chunk_count if end is None else min(end, self.chunk_count)
        while index < end:
            run = self._run_at(index, end)
            yield run
            index += run.count

    def _run_at(self, index: int, end: int) -> Run:
        for level in range(self.level, -1, -1):
            slots = self.slots(level, index >> FAN_OUT_BITS * (level + 1))
            slot = index >> FAN_OUT_BITS * level
            if slots is None:  # only the root can be missing: slots above were looked at
                return Run(index, end - index)
            if slots[slot % FAN_OUT] == ZERO_ID:
                last = slot % FAN_OUT + 1
                while last < FAN_OUT and slots[last] == ZERO_ID:
                    last += 1
                until = (slot - slot % FAN_OUT + last) << FAN_OUT_BITS * level
                return Run(index, min(until, end) - index)
        leaf = self.slots(0, index >> FAN_OUT_BITS)
        assert leaf is not None, "its parent's slot is not zero"
        first = last = index % FAN_OUT
        limit = min(FAN_OUT, first + end - index)
        while last < limit and leaf[last] != ZERO_ID:
            last += 1
        return Run(index, last - first, tuple(leaf[first:last]))


@dataclass(slots=True)
class _OpenNode:
    index: int
    slots: list[bytes]


class MapBuilder:
    """Builds a disk's map from changes in ascending order, on nothing or on a parent's map.

    Holds one node for each level. What no change touches keeps the parent's nodes, unread.

    Args:
        chunk_count: of the disk now.
        store: takes the bytes of a new node and returns its id.
        parent: the map to build on; a smaller one is lifted.
    """

    def __init__(
        self,
        chunk_count: int,
        *,
        store: StoreNode,
        parent: MapReader | None = None,
    ) -> None:
        self._count = chunk_count
        self._store = store
        self._parent = parent
        self._level = level_of(chunk_count)
        self._open: list[_OpenNode | None] = [None] * (self._level + 1)
        self._base_root = parent.root if parent else ZERO_ID
        self._base_level = parent.level if parent else 0
        assert parent is None or parent.chunk_count <= chunk_count, "a map cannot shrink"
        self.position = 0  # the first chunk that may still be set
        if self._base_root != ZERO_ID and self._base_level < self._level:
            self._descend(self._base_level + 1, 0)  # or a change far behind would lose the parent

    def put(self, index: int, chunk_id: bytes) -> None:
        """Set one chunk's id."""
        assert self.position <= index < self._count, f"chunk {index} after {self.position}"
        self._assign(0, index, chunk_id)
        self.position = index + 1

    def put_zero(self, start: int, count: int) -> None:
        """Set neighbouring chunks to zero, in whole subtrees where it can."""
        end = start + count
        assert self.position <= start <= end <= self._count, f"chunks {start} to {end}"
        while start < end:
            level = 0
            while level < self._level and self._covers(start, end, level + 1):
                level += 1
            self._assign(level, start >> FAN_OUT_BITS * level, ZERO_ID)
            start += FAN_OUT**level
        self.position = end

    def _covers(self, start: int, end: int, level: int) -> bool:
        """Return whether the chunks hold all that the disk has of a subtree at a level."""
        width: int = FAN_OUT**level
        return start % width == 0 and min(start + width, self._count) <= end

    def finish(self) -> bytes:
        """Close all nodes and return the root's id."""
        if self._open[self._level] is None and self._base_level == self._level:
            return self._base_root
        self._descend(self._level, 0)
        root = ZERO_ID
        for level in range(self._level + 1):
            root = self._close(level)
        return root

    def _assign(self, level: int, slot: int, slot_id: bytes) -> None:
        node = self._descend(level, slot >> FAN_OUT_BITS)
        node.slots[slot % FAN_OUT] = slot_id
        # What is open in the subtree would be put back when it is closed: a smaller parent's map.
        for lower in range(level):
            below = self._open[lower]
            if below is not None and below.index >> FAN_OUT_BITS * (level - 1 - lower) == slot:
                self._open[lower] = None

    def _descend(self, level: int, node_index: int) -> _OpenNode:
        """Open the path from the root to a node, closing what lies before it."""
        for at in range(self._level, level - 1, -1):
            wanted = node_index >> FAN_OUT_BITS * (at - level)
            node = self._open[at]
            if node is None or node.index != wanted:
                for lower in range(at + 1):
                    self._close(lower)
                self._open[at] = self._opened(at, wanted)
        found = self._open[level]
        assert found is not None, "just opened"
        return found

    def _opened(self, level: int, index: int) -> _OpenNode:
        base = self._base_id(level, index)
        if base != ZERO_ID:
            assert self._parent is not None, "the node is the parent's"
            slots = self._parent.slots(level, index)
            assert slots is not None, "its slot above is not zero"
            return _OpenNode(index, list(slots))
        slots = [ZERO_ID] * FAN_OUT
        if index == 0 and level == self._base_level + 1:
            slots[0] = self._base_root  # a grown disk: the parent's whole map is its first subtree
        return _OpenNode(index, slots)

    def _base_id(self, level: int, index: int) -> bytes:
        if level == self._level or level > self._base_level:
            return self._base_root if level == self._base_level and index == 0 else ZERO_ID
        above = self._open[level + 1]
        assert above is not None, "opened from the root downwards"
        return above.slots[index % FAN_OUT]

    def _close(self, level: int) -> bytes:
        """Store an open node if it is new, and tell its parent's slot."""
        node = self._open[level]
        if node is None:
            return ZERO_ID
        node_id = ZERO_ID
        if node.slots.count(ZERO_ID) < FAN_OUT:
            data = encode_node(level, node.slots)
            node_id = self._store(data)
        if level < self._level:
            above = self._open[level + 1]
            assert above is not None, "a parent stays open longer than its children"
            above.slots[node.index % FAN_OUT] = node_id
        self._open[level] = None  # last: a node that could not be stored is closed again
        return node_id
