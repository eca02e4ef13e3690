"""Marking: which blobs the roots need. A node of a disk map is read once, however many share it.

Level by level from the top, so that nodes that lie near each other in a pack are read together.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from sendense.core.errors import Corrupt
from sendense.repository import diskmap, pack
from sendense.repository.chunk import ID_LENGTH, ZERO_ID
from sendense.repository.gc import blobs
from sendense.repository.gc.catalog import Catalog, Flags
from sendense.repository.index import Ids, Positions
from sendense.repository.keyed import KeyedStorage
from sendense.repository.manifest import Manifest

NODES_PER_BATCH = 1 << 11  # at most 17 MiB of nodes, and half a million ids to look up together

Progress = Callable[[int], None]  # nodes read so far


@dataclass(frozen=True, slots=True)
class Root:
    """The root of a disk's map."""

    id: bytes
    level: int


def roots_of(manifests: Iterable[Manifest]) -> set[Root]:
    """Return the roots of the disks of some backups."""
    return {
        Root(disk.root, diskmap.level_of(disk.chunk_count))
        for one in manifests
        for disk in one.disks
        if disk.root != ZERO_ID
    }


def mark(
    catalog: Catalog,
    storage: KeyedStorage,
    roots: Iterable[Root],
    *,
    progress: Progress = lambda _count: None,
) -> Flags:
    """Return for each blob of the catalog whether a root needs it.

    Raises Corrupt where a node cannot be read or a blob is nowhere: then nothing may be deleted.
    """
    live = np.zeros(len(catalog), dtype=bool)
    by_level: dict[int, list[bytes]] = {}
    for root in roots:
        by_level.setdefault(root.level, []).append(root.id)
    count = 0
    below: list[Positions] = []
    for level in range(diskmap.LEVEL_MAX, -1, -1):
        wanted = [*below, _find(catalog, b"".join(by_level.get(level, [])))]
        nodes = _new(live, np.unique(np.concatenate(wanted)))
        live[nodes] = True
        below = []
        for start in range(0, len(nodes), NODES_PER_BATCH):
            batch = nodes[start : start + NODES_PER_BATCH]
            ids = b"".join(
                _children(plain, level) for plain in _read_nodes(catalog, storage, batch)
            )
            found = _new(live, np.unique(_find(catalog, ids)))
            if level:
                below.append(found)
            else:
                live[found] = True
            count += len(batch)
            progress(count)
    return live


def _read_nodes(catalog: Catalog, storage: KeyedStorage, nodes: Positions) -> Iterator[bytes]:
    for blob in blobs.read(catalog, storage, nodes):
        yield pack.open_blob(storage.keys, blob.pack, blob.offset, blob.data, blob.id)


def find_held(catalog: Catalog, ids: bytes) -> Positions:
    """Return the numbers of the blobs, of some ids one behind the other, that the catalog holds."""
    found = catalog.table.find(Ids.from_bytes(ids))
    return found[found >= 0]


def _new(live: Flags, positions: Positions) -> Positions:
    return positions[~live[positions]]


def _find(catalog: Catalog, ids: bytes) -> Positions:
    found = catalog.table.find(Ids.from_bytes(ids))
    if (found < 0).any():
        at = int(np.argmin(found)) * ID_LENGTH
        missing = ids[at : at + ID_LENGTH].hex()
        raise Corrupt(
            f"a backup needs {missing}, and no index segment says where it lies",
            kind="chunk-missing",
            hint="`sendense repository check` names the backup; nothing is collected meanwhile",
            chunk_id=missing,
        )
    return found


def _children(data: bytes, level: int) -> bytes:
    """Return the ids in a node, one behind the other, after checking all of it."""
    diskmap.decode_node(data, level=level)
    return data[diskmap.NODE_HEAD.size :]
