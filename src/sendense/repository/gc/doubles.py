"""Bad packs, and what of theirs lies in other packs besides.

A bad pack goes only after those were read whole: until then nobody knows which can be decoded.
"""

from collections.abc import Collection, Sequence

import numpy as np

from sendense.core.errors import Corrupt, NotFound
from sendense.repository import pack
from sendense.repository.gc.catalog import Catalog, Flags
from sendense.repository.index import Segment
from sendense.repository.keyed import KeyedStorage
from sendense.repository.pack import PackRef


def list_unproven(
    storage: KeyedStorage,
    segments: Sequence[Segment],
    catalog: Catalog,
    live: Flags,
    bad: Collection[bytes],
) -> frozenset[bytes]:
    """Return the bad packs that have to stay: something live of theirs is in no pack that is whole.

    Reads the packs that hold it; without bad packs, nothing.
    """
    needs: dict[bytes, set[int]] = {}
    for segment in segments if bad else ():
        for ordinal, ref in enumerate(segment.packs()):
            if ref.id in bad:
                held = np.flatnonzero(segment.table.places[:, 0] == ordinal)
                numbers = catalog.table.find(segment.table.ids.take(held))
                numbers = numbers[live[numbers]]
                packs = np.unique(catalog.table.places[numbers, 0])
                needs.setdefault(ref.id, set()).update(packs.tolist())
    read = {number for numbers in needs.values() for number in numbers}
    sound = {number for number in read if _is_sound(storage, catalog.packs[number])}
    return frozenset(pack_id for pack_id, numbers in needs.items() if numbers - sound)


def _is_sound(storage: KeyedStorage, ref: PackRef) -> bool:
    try:
        pack.verify_stored(storage.get(ref.name), ref)
    except (Corrupt, NotFound):
        return False
    return True
