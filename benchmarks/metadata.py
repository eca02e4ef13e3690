"""What an incremental backup adds to the metadata, where the disk's map is as large as it can be.

A sparse disk's map is small whatever its size, so the disk here is full: 1 TiB, of which an earlier
backup holds every chunk. What is read of it and how is not looked at, only what is put.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import contenders, counted, garbage, millions, ours
from benchmarks.content import CHUNK_BYTES
from benchmarks.counted import CountedStorage
from sendense.core import units
from sendense.repository.chunk import ID_LENGTH
from sendense.repository.diskmap import FAN_OUT

SIZE = units.TIB


@dataclass(frozen=True)
class Added:
    """Bytes that one incremental put.

    Attributes:
        leaves: of the disk's map, in which something changed.
        nodes: bytes of disk maps. every: all that is not chunks of the disk.
    """

    leaves: int
    nodes: int
    every: int


def flat_list_bytes(size: int) -> int:
    """Return what a list of the ids of all chunks of a disk takes."""
    return ID_LENGTH * (size // CHUNK_BYTES)


def measure(cache: Path, work: Path, *, places: int, within: int, chunks: int) -> Added:
    """Return what an incremental puts of so many chunks scattered over the disk's first bytes."""
    repository = work / "full-disk"
    contenders.link(millions.make_full_disk(cache, chunks=chunks, size=SIZE), repository)
    changed = sorted(random.Random(1).sample(range(within // CHUNK_BYTES), places))
    added = _back_up(repository, changed)
    contenders.remove(repository)
    return added


def _back_up(repository: Path, changed: Sequence[int]) -> Added:
    storage = CountedStorage(repository)
    with ours.open_repository(repository, storage) as place:
        garbage.write(place, 0, 1, changed, size=SIZE // CHUNK_BYTES)
    found = counted.count_metadata(storage.put)
    leaves = len({one // FAN_OUT for one in changed})
    return Added(leaves, found["bytes_nodes"], found["bytes_metadata"])
