"""The index: which pack holds a chunk or node, and where. See docs/format.md.

An index is a set of tables. A table is four sorted columns, searched with numpy: in memory for what
a session has just written, or mapped from a segment's object. There is never an object of Python
for each chunk of a repository.
"""

import hmac
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from sendense.repository import chunk, format
from sendense.repository.keys import Keys
from sendense.repository.pack import Entry, Kind, PackRef

MAGIC = b"SENDINDX"
HEADER = struct.Struct("<8sHHI16s64sIIQ8s8s")
PACK = struct.Struct("<32sQB7s40s8s")
assert (HEADER.size, PACK.size) == (128, 96)

ENTRIES_MAX = 1 << 20  # a writer's segment: 50 MiB
ENTRIES_LIMIT = 1 << 23  # a parser's: what a later collector may write
PACKS_LIMIT = 1 << 22
FAN_OUT = 256
FILTER_BITS_PER_ENTRY = 8  # one probe of one bit: one in nine strangers passes
FILTER_LOG2_MIN = 6
FILTER_LOG2_MAX = 27
CHECK_BLOCK = 1 << 16  # entries looked at together when a segment is opened: bounds memory

RECENT_MAX = 1 << 15  # entries of a session held as Python objects before they become a table
RUNS_MAX = 8  # tables of a session before they are merged into one

U32: TypeAlias = npt.NDArray[np.uint32]
U64: TypeAlias = npt.NDArray[np.uint64]
Positions: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a blob lies."""

    pack: PackRef
    offset: int
    stored_length: int
    plain_length: int


@dataclass(frozen=True, slots=True)
class Ids:
    """Many ids as columns: the first 8 bytes as a big-endian number, and the other 24."""

    prefix: U64
    rest: U64  # (n, 3)

    @classmethod
    def of(cls, ids: Sequence[bytes]) -> "Ids":
        """Return columns for ids of 32 bytes each."""
        return cls.from_bytes(b"".join(ids))

    @classmethod
    def from_bytes(cls, ids: bytes) -> "Ids":
        """Return columns for ids one behind the other."""
        raw = np.frombuffer(ids, dtype="<u8").reshape(-1, 4)
        return cls(raw[:, 0].byteswap(), raw[:, 1:])

    def __len__(self) -> int:
        return len(self.prefix)

    def take(self, positions: Positions) -> "Ids":
        """Return the ids at some positions."""
        return Ids(self.prefix[positions], self.rest[positions])

    def to_bytes(self) -> bytes:
        """Return the ids one behind the other."""
        return np.column_stack([self.prefix.byteswap(), self.rest]).astype("<u8").tobytes()

    def order(self) -> Positions:
        """Return the positions of the ids in ascending order of their bytes."""
        low, middle, high = (self.rest[:, column].byteswap() for column in (2, 1, 0))
        return np.lexsort((low, middle, high, self.prefix))


@dataclass(frozen=True, slots=True)
class Table:
    """Sorted entries. `places` has columns pack (ordinal), offset, stored and plain length."""

    ids: Ids
    places: U32  # (n, 4)

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, wanted: Ids) -> Positions:
        """Return for each wanted id its position in the table, or -1.

        A dozen ids are asked for at a time, so what costs is the number of calls of numpy.
        """
        if not len(self):
            return np.full(len(wanted), -1, dtype=np.int64)
        at = np.searchsorted(self.ids.prefix, wanted.prefix, side="left")
        here = np.minimum(at, len(self) - 1)  # behind the end: the last, which is smaller
        is_near = self.ids.prefix[here] == wanted.prefix
        is_equal = is_near & (self.ids.rest[here] == wanted.rest).all(axis=1)
        if is_equal.all():
            return here
        found = np.where(is_equal, here, -1)
        for number in np.flatnonzero(is_near & ~is_equal):
            found[number] = self._find_behind(int(here[number]), wanted, int(number))
        return found

    def _find_behind(self, position: int, wanted: Ids, number: int) -> int:
        """Return where an id lies behind another that shares its first 8 bytes, or -1.

        Two such ids are a freak or an attack.
        """
        prefix, rest = wanted.prefix[number], wanted.rest[number]
        while position < len(self) and self.ids.prefix[position] == prefix:
            if (self.ids.rest[position] == rest).all():
                return position
            position += 1
        return -1


def build_table(entries: Sequence[tuple[int, Entry]]) -> Table:
    """Return a table of (ordinal of the pack, entry); of equal ids the first counts."""
    ids = Ids.of([entry.id for _, entry in entries])
    places = np.array(
        [(pack, e.offset, e.stored_length, e.plain_length) for pack, e in entries],
        dtype=np.uint32,
    ).reshape(len(entries), 4)
    return _sorted_table(ids, places)


def merge_tables(tables: Sequence[Table]) -> Table:
    """Return one table of several that number their packs alike; of equal ids the first counts."""
    ids = Ids(
        np.concatenate([table.ids.prefix for table in tables]),
        np.concatenate([table.ids.rest for table in tables]),
    )
    return _sorted_table(ids, np.concatenate([table.places for table in tables]))


def _sorted_table(ids: Ids, places: U32) -> Table:
    order = ids.order()
    ids, places = ids.take(order), places[order]
    repeated = (ids.prefix[1:] == ids.prefix[:-1]) & (ids.rest[1:] == ids.rest[:-1]).all(axis=1)
    keep = np.concatenate([np.ones(min(1, len(ids)), dtype=bool), ~repeated])
    positions = np.flatnonzero(keep)
    return Table(ids.take(positions), np.ascontiguousarray(places[positions]))


class Segment:
    """An index segment: a table with its packs and a filter, mapped from its object."""

    def __init__(self, data: memoryview, *, keys: Keys, name: str) -> None:
        """Check the whole segment, then keep only views of it. Raises Corrupt."""
        self.name = name
        self._data = data
        count, pack_count, filter_log2, self.session_id = _parse_header(data, keys=keys, name=name)
        start = HEADER.size
        self._packs = data[start : start + pack_count * PACK.size]
        start += pack_count * PACK.size
        self._fan_out = np.frombuffer(data, "<u4", FAN_OUT, start)
        start += FAN_OUT * 4
        self._filter = np.frombuffer(data, np.uint8, (1 << filter_log2) // 8, start)
        self._filter_mask = np.uint64((1 << filter_log2) - 1)
        start += len(self._filter)
        prefix = np.frombuffer(data, "<u8", count, start)
        start += count * 8
        rest = np.frombuffer(data, "<u8", count * 3, start).reshape(count, 3)
        start += count * 24
        places = np.frombuffer(data, "<u4", count * 4, start).reshape(count, 4)
        self.table = Table(Ids(prefix, rest), places)
        self._check(pack_count)

    def __len__(self) -> int:
        return len(self.table)

    def find(self, wanted: Ids) -> Positions:
        """Return for each wanted id its position in the segment, or -1."""
        bits = wanted.rest[:, 0] & self._filter_mask
        marks = self._filter[bits >> np.uint64(3)] >> (bits & np.uint64(7)).astype(np.uint8) & 1
        if marks.all():
            return self.table.find(wanted)
        found = np.full(len(wanted), -1, dtype=np.int64)
        passed = np.flatnonzero(marks)
        if len(passed):
            found[passed] = self.table.find(wanted.take(passed))
        return found

    def place(self, position: int) -> Place:
        """Return where the blob at a position lies."""
        pack, offset, stored, plain = (int(value) for value in self.table.places[position])
        return Place(self.pack(pack), offset, stored, plain)

    def pack(self, ordinal: int) -> PackRef:
        """Return a pack of this segment by its ordinal."""
        pack_id, size, kind, _, wrapped, _ = PACK.unpack_from(self._packs, ordinal * PACK.size)
        return PackRef(pack_id, Kind(kind), size, wrapped)

    def packs(self) -> list[PackRef]:
        """Return all packs that the segment names."""
        return [self.pack(ordinal) for ordinal in range(len(self._packs) // PACK.size)]

    def chunk_bytes(self) -> int:
        """Return the plain bytes of the chunks, disk maps' nodes left out."""
        is_data = np.array([ref.kind is Kind.DATA for ref in self.packs()], dtype=bool)
        total = 0
        for start in range(0, len(self), CHECK_BLOCK):
            block = self.table.places[start : start + CHECK_BLOCK]
            total += int(block[is_data[block[:, 0]], 3].sum(dtype=np.uint64))
        return total

    def _check(self, pack_count: int) -> None:
        """Check order and bounds, block by block, so that no look-up can leave the tracks."""
        for _, _, kind, reserved, _, spare in PACK.iter_unpack(self._packs):
            if kind not in set(Kind) or any(reserved) or any(spare):
                raise format.corrupt(self.name, f"it names a pack of unknown kind {kind}")
        prefix, places = self.table.ids.prefix, self.table.places
        sizes = np.array([ref.size for ref in self.packs()], dtype=np.uint64)
        for start in range(0, len(self), CHECK_BLOCK):
            block = places[start : start + CHECK_BLOCK]
            keys = prefix[max(0, start - 1) : start + CHECK_BLOCK]
            if int(block[:, 0].max()) >= pack_count or (keys[1:] < keys[:-1]).any():
                raise format.corrupt(self.name, "its entries are out of order or bounds")
            ends = block[:, 1].astype(np.uint64) + block[:, 2]
            if (ends > sizes[block[:, 0]]).any() or (block[:, 3] > chunk.SIZE_MAX).any():
                raise format.corrupt(self.name, "an entry leads out of its pack")
        counted = np.searchsorted(prefix >> np.uint64(56), np.arange(FAN_OUT), side="right")
        if (counted != self._fan_out).any():
            raise format.corrupt(self.name, "its fan-out table does not match its entries")


def _parse_header(data: memoryview, *, keys: Keys, name: str) -> tuple[int, int, int, str]:
    """Return entry count, pack count, filter size and session; all lengths and the MAC match."""
    if len(data) < HEADER.size + format.MAC_LENGTH:
        raise format.corrupt(name, f"{len(data)} bytes are too few for an index segment")
    fields = HEADER.unpack_from(data)
    magic, version, flags, epoch, domain, session, packs, filter_log2, count, spare, check = fields
    if magic != MAGIC or format.check_of(data[: HEADER.size - format.CHECK_LENGTH]) != check:
        raise format.corrupt(name, "its header is not an index segment's")
    if version != format.VERSION or flags or any(spare):
        raise format.corrupt(name, f"version {version} or flags {flags} are unknown here")
    if (epoch, domain) != (keys.epoch, keys.domain):
        raise format.corrupt(name, "it was written with a key that is not known here")
    if (
        count > ENTRIES_LIMIT
        or packs > PACKS_LIMIT
        or not FILTER_LOG2_MIN <= filter_log2 <= FILTER_LOG2_MAX
        or len(data) != _segment_size(count, packs, filter_log2)
    ):
        raise format.corrupt(name, f"{len(data)} bytes do not hold {count} entries")
    mac = keys.start_mac().update(data[: -format.MAC_LENGTH]).digest()
    if not hmac.compare_digest(mac, data[-format.MAC_LENGTH :]):
        raise format.corrupt(name, "its MAC does not match")
    return count, packs, filter_log2, format.unpack_session(session, name=name)


def _segment_size(count: int, packs: int, filter_log2: int) -> int:
    fixed = HEADER.size + FAN_OUT * 4 + (1 << filter_log2) // 8 + format.MAC_LENGTH
    return fixed + packs * PACK.size + count * 48


def seal_segment(
    table: Table, packs: Sequence[PackRef], *, session_id: str, keys: Keys
) -> list[bytes]:
    """Return an index segment as buffers; only the packs that its entries use are named."""
    used, ordinals = np.unique(table.places[:, 0], return_inverse=True)
    places = np.array(table.places, dtype="<u4")
    places[:, 0] = ordinals
    filter_log2 = max(
        FILTER_LOG2_MIN, (max(1, len(table)) * FILTER_BITS_PER_ENTRY - 1).bit_length()
    )
    bits = table.ids.rest[:, 0] & np.uint64((1 << filter_log2) - 1)
    seen = np.zeros((1 << filter_log2) // 8, dtype=np.uint8)
    np.bitwise_or.at(seen, bits >> np.uint64(3), np.uint8(1) << (bits & np.uint64(7)).astype("u1"))
    counted = np.searchsorted(
        table.ids.prefix >> np.uint64(56), np.arange(FAN_OUT), side="right"
    ).astype("<u4")
    head = HEADER.pack(
        MAGIC, format.VERSION, 0, keys.epoch, keys.domain,
        format.pack_session(session_id), len(used), filter_log2, len(table), bytes(8), b"",
    )[: -format.CHECK_LENGTH]  # fmt: skip
    refs = [packs[ordinal] for ordinal in used]
    buffers = [
        head + format.check_of(head),
        b"".join(
            PACK.pack(ref.id, ref.size, ref.kind, bytes(7), ref.wrapped, bytes(8)) for ref in refs
        ),
        counted.tobytes(),
        seen.tobytes(),
        table.ids.prefix.astype("<u8").tobytes(),
        np.ascontiguousarray(table.ids.rest).tobytes(),
        places.tobytes(),
    ]
    hasher = keys.start_mac()
    for buffer in buffers:
        hasher.update(buffer)
    return [*buffers, hasher.digest()]


class SessionIndex:
    """What one disk's writer has stored so far, before a segment tells others.

    At most `ENTRIES_MAX` entries, 50 MiB; then the writer turns them into a segment.
    """

    def __init__(self) -> None:
        self.packs: list[PackRef | None] = []  # by ordinal; None until the pack is sealed
        self._recent: dict[bytes, tuple[int, Entry]] = {}
        self._runs: list[Table] = []

    def __len__(self) -> int:
        return len(self._recent) + sum(len(run) for run in self._runs)

    def add(self, pack_ordinal: int, entry: Entry) -> None:
        """Remember a blob."""
        self._recent[entry.id] = (pack_ordinal, entry)
        if len(self._recent) >= RECENT_MAX:
            self._settle()

    def is_recent(self, blob_id: bytes) -> bool:
        """Return whether the blob is among the latest, at least one and at most `RECENT_MAX`."""
        return blob_id in self._recent

    def find_known(self, ids: Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """Return for each id whether this writer has stored it."""
        known = np.fromiter((blob_id in self._recent for blob_id in ids), bool, len(ids))
        if self._runs and len(ids):
            wanted = Ids.of(ids)
            for run in self._runs:
                known |= run.find(wanted) >= 0
        return known

    def table(self) -> Table:
        """Return all entries as one table."""
        self._settle()
        self._runs = [merge_tables(self._runs)] if self._runs else [build_table([])]
        return self._runs[0]

    def clear(self) -> None:
        """Forget the entries, which a segment holds now; ordinals of packs go on."""
        self._recent.clear()
        self._runs.clear()

    def _settle(self) -> None:
        if self._recent:
            self._runs.append(build_table(list(self._recent.values())))
            self._recent.clear()
        if len(self._runs) > RUNS_MAX:
            self._runs = [merge_tables(self._runs)]
