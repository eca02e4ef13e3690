"""Copies the live blobs of sparse packs into new packs, and the index into new segments.

What is copied counts only once a `final` names its segments; until then a crash costs nothing but
the space, which a later generation frees.
"""

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from sendense.repository import index, pack, segments
from sendense.repository.gc import blobs, catalog, records
from sendense.repository.gc.catalog import Catalog, Flags
from sendense.repository.index import Segment, Table
from sendense.repository.pack import BlobType, Entry, Kind, PackBuilder, PackRef
from sendense.repository.repository import Repository

NAME_TOKEN_LENGTH = 8  # tells apart the segments of several collectors of one generation
BATCH = 1 << 12  # blobs planned together
SMALL_ENTRIES = 1 << 16  # a segment of fewer entries is worth merging with others
SMALL_MAX = 16  # so many small segments may be: each costs a look-up for every batch of ids


class Copier:
    """Writes packs and segments of one generation. Use for one run."""

    def __init__(self, repository: Repository, generation: int) -> None:
        self._repository = repository
        self._generation = generation
        self._token = repository.ids.token(NAME_TOKEN_LENGTH)
        self._count = 0
        self._refs: list[PackRef] = []
        self._entries: list[tuple[int, Entry]] = []

    def copy(self, whole: Catalog, live: Flags, sparse: Collection[PackRef]) -> list[str]:
        """Copy the live blobs of sparse packs; return the names of the segments of the copies.

        Raises NoSpace where the reserve would be touched, and Corrupt for a damaged blob.
        """
        chosen = np.zeros(len(whole.packs), dtype=bool)
        chosen[[whole.ordinals[ref.id] for ref in sparse]] = True
        numbers = np.flatnonzero(live & chosen[whole.table.places[:, 0]])
        for kind in Kind:
            is_kind = np.array([ref.kind is kind for ref in whole.packs], dtype=bool)
            mine = numbers[is_kind[whole.table.places[numbers, 0]]]
            # In the order of their packs, which is the order they were written in.
            mine = mine[np.lexsort((whole.table.places[mine, 1], whole.table.places[mine, 0]))]
            self._copy_kind(kind, self._read(whole, mine))
        return self.put_segments(index.build_table(self._entries), self._refs)

    def _read(self, whole: Catalog, numbers: index.Positions) -> Iterator[blobs.Blob]:
        for start in range(0, len(numbers), BATCH):
            yield from blobs.read(whole, self._repository.storage, numbers[start : start + BATCH])

    def _copy_kind(self, kind: Kind, found: Iterator[blobs.Blob]) -> None:
        target = pack.TARGET_BYTES if kind is Kind.DATA else pack.META_TARGET_BYTES
        builder: PackBuilder | None = None
        for blob in found:
            if builder is None:
                builder = self._begin(kind)
            keys = self._repository.storage.keys
            head, stored = pack.unseal_blob(keys, blob.pack, blob.offset, blob.data)
            entry = builder.add(
                BlobType(head.type), head.codec, blob.id, stored, plain_length=head.plain_length
            )
            self._entries.append((len(self._refs), entry))
            if builder.size >= target or len(builder) >= pack.ENTRIES_MAX:
                self._put(builder)
                builder = None
        if builder is not None:
            self._put(builder)

    def _begin(self, kind: Kind) -> PackBuilder:
        return PackBuilder(
            kind,
            session_id=records.session_of(self._generation),
            salt=self._repository.ids.random_bytes(pack.SALT_LENGTH),
            keys=self._repository.storage.keys,
        )

    def _put(self, builder: PackBuilder) -> None:
        sealed = builder.seal()  # opens every blob: damage is not copied
        self._repository.require_room(sealed.ref.size)
        pack.put(self._repository.storage, sealed)
        self._refs.append(sealed.ref)

    def put_segments(self, table: Table, refs: Sequence[PackRef]) -> list[str]:
        """Put a table as segments of at most `ENTRIES_MAX` entries; return their names."""
        names = []
        for start in range(0, len(table), index.ENTRIES_MAX):
            part = Table(
                table.ids.take(np.arange(start, min(start + index.ENTRIES_MAX, len(table)))),
                table.places[start : start + index.ENTRIES_MAX],
            )
            self._count += 1
            name = segments.segment_name(
                records.session_of(self._generation), self._count, self._token
            )
            buffers = index.seal_segment(
                part,
                refs,
                session_id=records.session_of(self._generation),
                keys=self._repository.storage.keys,
            )
            self._repository.storage.put_if_absent(name, buffers)
            names.append(name)
        return names

    def compact(self, old: Sequence[Segment], gone: Collection[bytes]) -> list[str]:
        """Put new segments that hold what the old ones do, but for packs that go."""
        names: list[str] = []
        group: list[Segment] = []
        for segment in old:
            if group and sum(map(len, group)) + len(segment) > index.ENTRIES_MAX:
                names += self._compact_group(group, gone)
                group = []
            group.append(segment)
        if group:
            names += self._compact_group(group, gone)
        return names

    def _compact_group(self, group: Sequence[Segment], gone: Collection[bytes]) -> list[str]:
        refs: list[PackRef] = []
        ordinals: dict[bytes, int] = {}
        tables = [index.build_table([])]
        for segment in group:
            own = segment.packs()
            for ref in own:
                if ref.id not in ordinals:
                    ordinals[ref.id] = len(refs)
                    refs.append(ref)
            numbers = np.array([ordinals[ref.id] for ref in own], dtype=np.uint32)
            stays = np.array([ref.id not in gone for ref in own], dtype=bool)
            table = catalog.renumber(segment.table, numbers)
            tables.append(catalog.select(table, stays[segment.table.places[:, 0]]))
        return self.put_segments(index.merge_tables(tables), refs)


def choose_segments(counted: Sequence[Segment], gone: Collection[bytes]) -> list[Segment]:
    """Return the segments to replace: those that name a pack that goes, and many small ones."""
    touched = [one for one in counted if any(ref.id in gone for ref in one.packs())]
    small = [one for one in counted if one not in touched and len(one) < SMALL_ENTRIES]
    return touched + (small if len(small) > SMALL_MAX else [])
