"""Reading one disk of a backup: planned in disk order, coalesced by pack, decoded in threads.

Never returns wrong bytes: every chunk is hashed and compared with its id.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from sendense.core import extent, units
from sendense.core.cores import count_cores
from sendense.core.errors import Corrupt, NotFound, SendenseError
from sendense.core.extent import Extent
from sendense.repository import format, pack, ranges
from sendense.repository.chunk import ZERO_ID
from sendense.repository.diskmap import LoadNode, MapReader
from sendense.repository.index import Place
from sendense.repository.keyed import KeyedStorage
from sendense.repository.manifest import DiskRecord
from sendense.repository.salvage import Salvage
from sendense.repository.segments import Segments, nowhere

READS_IN_FLIGHT_MAX = 16  # ranged reads: what an object store needs to fill a fast link
AHEAD = 2  # for each thread: one read in work, one waiting or done
BYTES_IN_FLIGHT_MAX = 64 * units.MIB  # plain bytes decoded or about to be, and not yet consumed
WINDOW_CHUNKS = 1 << 10  # chunks planned together: 256 MiB of disk
CACHE_BYTES = 16 * units.MIB  # of decoded chunks, for small reads nearby

Piece = tuple[int, int, int]  # offset in the disk, first byte within the chunk, length


@dataclass(slots=True)
class _Wanted:
    """A chunk, where it lies, and the pieces of the disk that it fills."""

    id: bytes
    place: Place
    pieces: list[Piece]


class DiskReader:
    """One disk of one backup. `read_chunks` for much in order, `read` for little anywhere.

    Safe for one thread at a time. Use as a context manager: closing ends the reader's session.
    """

    def __init__(
        self,
        disk: DiskRecord,
        *,
        storage: KeyedStorage,
        segments: Segments,
        load_node: LoadNode,
        salvage: Salvage | None = None,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.disk = disk
        self._storage = storage
        self._segments = segments
        self._salvage = salvage
        self._map = MapReader(
            disk.root,
            chunk_count=disk.chunk_count,
            load=load_node,
            on_lost=self._lose_chunks if salvage else None,
        )
        self._cache: OrderedDict[bytes, bytes] = OrderedDict()
        self._on_close = on_close

    @property
    def size_bytes(self) -> int:
        """Size of the disk."""
        return self.disk.size_bytes

    def list_extents(self) -> Iterator[Extent]:
        """Yield extents that cover the disk in order; zero chunks and subtrees are `zero`."""
        return extent.merge(self._list_runs())

    def _list_runs(self) -> Iterator[Extent]:
        size = self.disk.chunk_size
        for run in self._map.list_runs():
            start = run.start * size
            end = min(start + run.count * size, self.size_bytes)
            yield Extent(start, end - start, zero=not run.ids)

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the disk. Raises Corrupt rather than return a wrong one."""
        assert 0 <= offset <= offset + length <= self.size_bytes, f"{offset}+{length}"
        parts = []
        for piece in (
            extent.split(Extent(offset, length), unit=self.disk.chunk_size) if length else ()
        ):
            index, within = divmod(piece.start, self.disk.chunk_size)
            chunk_id = self._map.get(index)
            if chunk_id == ZERO_ID:
                parts.append(bytes(piece.length))
            else:
                data = self._get_chunk(chunk_id, self.disk.chunk_length(index))
                parts.append(data[within : within + piece.length])
        return b"".join(parts)

    def read_chunks(
        self, extents: Iterable[Extent] | None = None, *, threads: int | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, bytes) that fill the extents; without any, the whole disk.

        Zeros are left out: what nothing is yielded for reads as zeros, and so do extents marked
        `zero`. Offsets come roughly, not exactly, in ascending order. Bounded in bytes whatever
        the size; reading goes on while the caller works. Raises Corrupt.
        """
        workers = _count_threads(self._storage) if threads is None else threads
        executor = ThreadPoolExecutor(workers, thread_name_prefix="read")
        jobs: deque[tuple[int, Future[list[tuple[int, bytes]]]]] = deque()
        in_flight = 0
        try:
            for group in self._plan(self.list_extents() if extents is None else extents):
                size = sum(wanted.place.plain_length for wanted in group)
                while jobs and (
                    in_flight + size > BYTES_IN_FLIGHT_MAX or len(jobs) >= AHEAD * workers
                ):
                    done_size, job = jobs.popleft()
                    yield from job.result()
                    in_flight -= done_size
                jobs.append((size, executor.submit(self._read_group, group)))
                in_flight += size
            while jobs:
                yield from jobs.popleft()[1].result()
        finally:
            executor.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """End the reader's session; the disk must not be read any more."""
        self._cache.clear()
        self._on_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _plan(self, extents: Iterable[Extent]) -> Iterator[list[_Wanted]]:
        """Yield groups of chunks that lie near each other in one pack."""
        window: dict[bytes, list[Piece]] = {}
        for chunk_id, piece in self._pieces(extents):
            window.setdefault(chunk_id, []).append(piece)
            if len(window) >= WINDOW_CHUNKS:
                yield from self._groups(window)
                window = {}
        yield from self._groups(window)

    def _pieces(self, extents: Iterable[Extent]) -> Iterator[tuple[bytes, Piece]]:
        size = self.disk.chunk_size
        for wanted in extents:
            if wanted.zero:
                continue
            first, end = wanted.start // size, -(-wanted.end // size)
            for run in self._map.list_runs(first, end):
                for number, chunk_id in enumerate(run.ids):
                    begin = (run.start + number) * size
                    start = max(begin, wanted.start)
                    length = min(begin + size, wanted.end) - start
                    yield chunk_id, (start, start - begin, length)

    def _groups(self, window: dict[bytes, list[Piece]]) -> Iterator[list[_Wanted]]:
        """Return the chunks of a window as ranged reads, in order of first use of each pack."""
        places = zip(window.items(), self._locate(window), strict=True)
        return ranges.group(
            _Wanted(chunk_id, place, pieces)
            for (chunk_id, pieces), place in places
            if place is not None
        )

    def _locate(self, window: dict[bytes, list[Piece]]) -> Sequence[Place | None]:
        """Return where chunks lie; None, after telling, for one that is nowhere in a salvage."""
        ids = list(window)
        if self._salvage is None:
            return self._segments.locate(ids)
        places = self._segments.find(ids)
        for chunk_id, place in zip(ids, places, strict=True):
            if place is None:
                self._lose(window[chunk_id], nowhere(chunk_id))
        return places

    def _read_group(self, group: list[_Wanted]) -> list[tuple[int, bytes]]:
        """Read one range and decode its chunks; on a reading thread."""
        try:
            return self._read_together(group)
        except NotFound:
            # A collector may have moved the chunks since the index was read: look again, once.
            self._segments.refresh()
        except Corrupt:
            pass  # one of them, or the only place of one of them, or not: look at each
        return [filled for one in group for filled in self._read_anywhere(one)]

    def _read_anywhere(self, one: _Wanted) -> list[tuple[int, bytes]]:
        """Read one chunk wherever it lies."""

        def read(place: Place) -> list[tuple[int, bytes]]:
            return self._read_together([_Wanted(one.id, place, one.pieces)])

        try:
            return self._segments.read_anywhere(one.id, read)
        except Corrupt as error:
            if self._salvage is None:
                raise
            self._lose(one.pieces, error)
            return []

    def _read_together(self, group: list[_Wanted]) -> list[tuple[int, bytes]]:
        return [
            filled
            for one, blob in ranges.read(self._storage, group)
            for filled in self._fill(one, blob)
        ]

    def _lose(self, pieces: Iterable[Piece], error: SendenseError) -> None:
        assert self._salvage is not None, "otherwise the error is raised"
        for offset, _, length in pieces:
            self._salvage.add(offset, length, error)

    def _lose_chunks(self, start: int, count: int, error: SendenseError) -> None:
        size = self.disk.chunk_size
        begin, end = start * size, min((start + count) * size, self.size_bytes)
        self._lose([(begin, 0, end - begin)], error)

    def _fill(self, one: _Wanted, blob: memoryview) -> Iterator[tuple[int, bytes]]:
        place = one.place
        plain = pack.open_blob(self._storage.keys, place.pack, place.offset, blob, one.id)
        for offset, within, length in one.pieces:
            if within + length > len(plain):
                raise format.corrupt(
                    one.place.pack.name, f"chunk {one.id.hex()} has only {len(plain)} bytes"
                )
            yield offset, plain if length == len(plain) else plain[within : within + length]

    def _get_chunk(self, chunk_id: bytes, length: int) -> bytes:
        if chunk_id in self._cache:
            self._cache.move_to_end(chunk_id)
            return self._cache[chunk_id]
        place = self._segments.locate([chunk_id])[0]
        found = self._read_group([_Wanted(chunk_id, place, [(0, 0, length)])])
        data = found[0][1]
        self._cache[chunk_id] = data
        while len(self._cache) * self.disk.chunk_size > CACHE_BYTES:
            self._cache.popitem(last=False)
        return data


def _count_threads(storage: KeyedStorage) -> int:
    """Return how many ranged reads to have in flight."""
    if storage.capacity() is None:  # an object store: what counts is to keep the line to it full
        return READS_IN_FLIGHT_MAX
    # Decoding counts; while one waits for the disk, every core has another.
    return count_cores(most=READS_IN_FLIGHT_MAX - 1) + 1
