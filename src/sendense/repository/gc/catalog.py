"""The whole index as one table: every blob once, at the place that counts for garbage collection.

About 130 bytes of memory for each entry of the index while it is built, 50 afterwards.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sendense.repository import index
from sendense.repository.index import Segment, Table
from sendense.repository.pack import PackRef

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Catalog:
    """Packs, and for each blob one place. A blob's number is its position in the table.

    Attributes:
        packs: by ordinal; `ordinals` says it of an id.
    """

    packs: tuple[PackRef, ...]
    ordinals: dict[bytes, int]
    table: Table

    def __len__(self) -> int:
        return len(self.table)

    def live_bytes(self, live: Flags) -> npt.NDArray[np.int64]:
        """Return for each pack the stored bytes of the blobs that are live in it."""
        places = self.table.places[live]
        counted = np.bincount(places[:, 0], weights=places[:, 2], minlength=len(self.packs))
        return counted.astype(np.int64)


def build(segments: Sequence[Segment], *, avoid: Collection[bytes] = frozenset()) -> Catalog:
    """Return the catalog of some segments.

    Of a blob's places the first in a pack that is not to be avoided counts: a copy rather than a
    condemned original.
    """
    ordinals: dict[bytes, int] = {}
    packs: list[PackRef] = []
    good: list[Table] = [index.build_table([])]
    bad: list[Table] = []
    for segment in segments:
        refs = segment.packs()
        for ref in refs:
            if ref.id not in ordinals:
                ordinals[ref.id] = len(packs)
                packs.append(ref)
        numbers = np.array([ordinals[ref.id] for ref in refs], dtype=np.uint32)
        table = renumber(segment.table, numbers)
        avoided = np.array([ref.id in avoid for ref in refs], dtype=bool)
        if avoided.any():
            flags = avoided[segment.table.places[:, 0]]
            bad.append(select(table, flags))
            table = select(table, ~flags)
        good.append(table)
    return Catalog(tuple(packs), ordinals, index.merge_tables(good + bad))


def renumber(table: Table, numbers: npt.NDArray[np.uint32]) -> Table:
    """Return a table whose packs have other ordinals."""
    places = np.array(table.places, dtype=np.uint32)
    places[:, 0] = numbers[places[:, 0]]
    return Table(table.ids, places)


def select(table: Table, flags: Flags) -> Table:
    """Return the entries of a table whose flag is set; they stay in order."""
    positions = np.flatnonzero(flags)
    return Table(table.ids.take(positions), table.places[positions])
