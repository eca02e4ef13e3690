"""A folder as storage that counts what is put into it."""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from sendense.repository.storage import base
from sendense.repository.storage.base import Buffer
from sendense.repository.storage.local import LocalStorage

DATA = "packs"  # all else is metadata
NODES = "meta"


class CountedStorage(LocalStorage):
    """As LocalStorage. What a session puts and removes again, such as checkpoints, counts too.

    Attributes:
        put: bytes by the first part of the objects' names.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.put: Counter[str] = Counter()
        self._counting = threading.Lock()

    def put_if_absent(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        """As Storage.put_if_absent."""
        super().put_if_absent(name, data)
        length = sum(len(buffer) for buffer in base.buffers_of(data))
        with self._counting:  # packs are put by a thread of their own
            self.put[name.partition("/")[0]] += length


def count_metadata(put: Mapping[str, int]) -> dict[str, int]:
    """Return the bytes of nodes of disk maps, and of all that is not chunks of disks."""
    every = sum(length for folder, length in put.items() if folder != DATA)
    return {"bytes_nodes": put.get(NODES, 0), "bytes_metadata": every}
