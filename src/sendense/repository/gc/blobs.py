"""Reads many blobs of a catalog in as few reads as their places allow."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sendense.core.errors import NotFound
from sendense.repository import format, pack
from sendense.repository.chunk import ID_LENGTH
from sendense.repository.gc.catalog import Catalog
from sendense.repository.index import Positions
from sendense.repository.keyed import KeyedStorage
from sendense.repository.pack import PackRef
from sendense.repository.ranges import GAP_BYTES_MAX, READ_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob as it is stored: header and bytes, not opened yet."""

    id: bytes
    pack: PackRef
    offset: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class _Row:
    id: bytes
    pack: int
    offset: int
    end: int


def read(catalog: Catalog, storage: KeyedStorage, numbers: Positions) -> Iterator[Blob]:
    """Yield some blobs, at least one, by pack and offset. Raises Corrupt where a pack is gone."""
    places = catalog.table.places[numbers]
    ids = catalog.table.ids.take(numbers).to_bytes()
    rows = []
    for at in np.lexsort((places[:, 1], places[:, 0])):
        ordinal, offset, stored, _ = (int(value) for value in places[at])
        blob_id = ids[at * ID_LENGTH : (at + 1) * ID_LENGTH]
        rows.append(_Row(blob_id, ordinal, offset, offset + pack.BLOB.size + stored))
    for group in _groups(rows):
        ref = catalog.packs[group[0].pack]
        start, end = group[0].offset, group[-1].end
        try:
            data = memoryview(storage.get_range(ref.name, start, end - start))
        except NotFound as error:
            raise format.corrupt(ref.name, "the index names it, and it is gone") from error
        for row in group:
            yield Blob(row.id, ref, row.offset, data[row.offset - start : row.end - start])


def _groups(rows: Sequence[_Row]) -> Iterator[list[_Row]]:
    """Yield rows that one read brings together; there is at least one."""
    group: list[_Row] = []
    for row in rows:
        if group and (
            row.pack != group[0].pack
            or row.offset - group[-1].end > GAP_BYTES_MAX
            or row.end - group[0].offset > READ_BYTES_MAX
        ):
            yield group
            group = []
        group.append(row)
    yield group
