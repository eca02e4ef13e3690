"""The map of the disk that a new backup builds on or compares with, and what of it is lost."""

from collections import deque
from collections.abc import Callable, Iterator

from sendense.core.errors import Corrupt
from sendense.core.extent import Extent
from sendense.repository.diskmap import LoadNode, LoadNodes, MapReader
from sendense.repository.manifest import DiskRecord


class ParentMap:
    """A parent's map. Cheap when asked in ascending order.

    Args:
        disk: the parent's disk.
        load, load_many: see MapReader.
        lost: ids of chunks and nodes that lie only in packs that were found bad.

    Attributes:
        map: reads it; a node that is lost raises Corrupt, kind `parent-damaged`.
    """

    def __init__(
        self, disk: DiskRecord, *, load: LoadNode, load_many: LoadNodes, lost: frozenset[bytes]
    ) -> None:
        self._disk = disk
        self._lost = lost
        self.map = MapReader(
            disk.root,
            chunk_count=disk.chunk_count,
            load=_sound_only(load, lost) if lost else load,
            load_many=lambda ids: load_many([one for one in ids if one not in lost]),
        )

    def get(self, index: int) -> bytes:
        """Return the id of a chunk; the zero id for zeros and beyond the end of the disk."""
        return self.map.get(index)

    def is_whole(self) -> bool:
        """Return whether no node is lost. Reads the map where anything is lost, else nothing."""
        try:
            deque(self.list_lost(), maxlen=0)
        except Corrupt:
            return False
        return True

    def list_lost(self) -> Iterator[Extent]:
        """Yield the bytes of the disk whose chunks are lost, chunk by chunk.

        Raises Corrupt, kind `parent-damaged`, where nodes are: then nobody knows what is.
        """
        if not self._lost:
            return
        size = self._disk.chunk_size
        for run in self.map.list_runs():
            for number, chunk_id in enumerate(run.ids, run.start):
                if chunk_id in self._lost:
                    yield Extent(number * size, self._disk.chunk_length(number))


def _sound_only(load: LoadNode, lost: frozenset[bytes]) -> Callable[[bytes], bytes]:
    def load_sound(node_id: bytes) -> bytes:
        if node_id in lost:
            raise Corrupt(
                f"node {node_id.hex()} of the parent's map lies in a pack that was found bad",
                hint="the disk has to be read in full",
                kind="parent-damaged",
            )
        return load(node_id)

    return load_sound
