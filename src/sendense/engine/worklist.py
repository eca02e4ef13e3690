"""Which chunks of a disk must be read, which are zero, which stay as the parent has them.

One byte for each chunk, in memory that the system gives only where it is written: a sparse or a
little changed disk of any size costs next to nothing, 2 TiB full of data cost 4 MiB.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from sendense.core import extent, units
from sendense.core.extent import Extent

SCAN_CHUNKS = 1 << 20  # runs are searched in blocks of this many chunks: bounds temporary arrays
BATCH_BYTES = 2 * units.MIB  # enough chunks to look up together, small against the bytes in flight
BATCH_RUNS_MAX = 256  # a batch of scattered runs stays small too


class Action(IntEnum):
    """What to do about a chunk. The first is what an untouched entry means."""

    DEFAULT = 0  # incremental: keep the parent's; full: zero
    READ = 1
    ZERO = 2


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring chunks with the same action."""

    first: int
    count: int
    action: Action

    @property
    def end(self) -> int:
        """Index of the first chunk behind the run."""
        return self.first + self.count


@dataclass(frozen=True, slots=True)
class Batch:
    """Runs that are read and worked on together, in ascending order."""

    runs: tuple[Run, ...]
    bytes_to_read: int


class Worklist:
    """The actions for all chunks of one disk. Filled once, in one thread, then only read."""

    def __init__(self, *, size_bytes: int, chunk_size: int) -> None:
        self.size_bytes = size_bytes
        self.chunk_size = chunk_size
        self.chunk_count = -(-size_bytes // chunk_size)
        self._actions: NDArray[np.uint8] = np.zeros(self.chunk_count, dtype=np.uint8)

    def mark_allocated(self, extents: Iterable[Extent]) -> Iterator[int]:
        """Take a full disk's extents; yield the position reached, so that the caller can stop.

        What no extent mentions is read: only what the source calls zero is taken as zero.
        """
        position = 0
        for run in extent.merge(extent.clip(extents, size=self.size_bytes)):
            if run.start > position:
                self._mark_read(position, run.start)
            if not run.zero:
                self._mark_read(run.start, run.end)
            position = run.end
            yield position
        if position < self.size_bytes:
            self._mark_read(position, self.size_bytes)

    def mark_changed(self, extents: Iterable[Extent]) -> Iterator[int]:
        """Take the extents changed since the parent; yield the position reached.

        A chunk that was trimmed as a whole is zero; one that was trimmed in part is read.
        """
        for run in extent.merge(extent.clip(extents, size=self.size_bytes)):
            if run.zero:
                self._mark_trimmed(run)
            else:
                self._mark_read(run.start, run.end)
            yield run.end

    def bytes_to_read(self, *, first: int = 0) -> int:
        """Return the bytes of all chunks to read from chunk `first` on."""
        count = int(np.count_nonzero(self._actions[first:] == Action.READ))
        last = self.chunk_count - 1
        if count and first <= last and self._actions[last] == Action.READ:
            return count * self.chunk_size - (self.chunk_count * self.chunk_size - self.size_bytes)
        return count * self.chunk_size

    def chunk_length(self, index: int) -> int:
        """Return the bytes of a chunk; only the last one may be short."""
        return min(self.chunk_size, self.size_bytes - index * self.chunk_size)

    def is_untouched(self, index: int) -> bool:
        """Whether nothing was said about a chunk."""
        return bool(self._actions[index] == Action.DEFAULT)

    def list_untouched(self, *, first: int, end: int) -> NDArray[np.int64]:
        """Return the indexes in [first, end) of chunks without an action, in order."""
        found = np.flatnonzero(self._actions[first:end] == Action.DEFAULT)
        return found.astype(np.int64) + first

    def list_runs(self, *, first: int = 0) -> Iterator[Run]:
        """Yield all runs in order from chunk `first` on, those without an action too."""
        for start in range(first, self.chunk_count, SCAN_CHUNKS):
            block = self._actions[start : start + SCAN_CHUNKS]
            cuts = np.flatnonzero(np.diff(block)) + 1
            begin = 0
            for cut in [*cuts.tolist(), len(block)]:
                yield Run(start + begin, cut - begin, Action(int(block[begin])))
                begin = cut

    def list_blocks(self, width: int, *, first: int = 0) -> Iterator[int]:
        """Yield which blocks of `width` chunks have some to read, in order, from that of `first`.

        `width` divides `SCAN_CHUNKS`.
        """
        for start in range(first - first % width, self.chunk_count, SCAN_CHUNKS):
            wanted = self._actions[start : start + SCAN_CHUNKS] == Action.READ
            padded = np.pad(wanted, (0, -len(wanted) % width))
            blocks = np.flatnonzero(padded.reshape(-1, width).any(axis=1))
            yield from (blocks + start // width).tolist()

    def list_batches(self, *, first: int = 0) -> Iterator[Batch]:
        """Yield the runs from chunk `first` on, cut into batches of at most `BATCH_BYTES` to read.

        A batch holds at least one chunk, however large chunks are.
        """
        room = chunks_max = max(1, BATCH_BYTES // self.chunk_size)
        runs: list[Run] = []
        for run in self.list_runs(first=first):
            for piece in _cut(run, room, chunks_max):
                runs.append(piece)
                room -= piece.count if piece.action is Action.READ else 0
                if room == 0 or len(runs) == BATCH_RUNS_MAX:
                    yield self._batch(runs)
                    runs, room = [], chunks_max
        if runs:
            yield self._batch(runs)

    def _batch(self, runs: list[Run]) -> Batch:
        length = sum(
            min(run.end * self.chunk_size, self.size_bytes) - run.first * self.chunk_size
            for run in runs
            if run.action is Action.READ
        )
        return Batch(tuple(runs), length)

    def _mark_read(self, start: int, end: int) -> None:
        self._actions[start // self.chunk_size : -(-end // self.chunk_size)] = Action.READ

    def _mark_trimmed(self, run: Extent) -> None:
        first = -(-run.start // self.chunk_size)
        at_end = run.end == self.size_bytes
        end = self.chunk_count if at_end else run.end // self.chunk_size
        if first > run.start // self.chunk_size:  # the chunk it starts in is trimmed in part
            self._mark_read(run.start, run.start + 1)
        if end < self.chunk_count and run.end > end * self.chunk_size and end >= first:
            self._mark_read(run.end - 1, run.end)
        if end > first:
            self._actions[first:end] = Action.ZERO


def _cut(run: Run, room: int, chunks_max: int) -> Iterator[Run]:
    """Cut a run to read so that the first piece fits `room` and the others `chunks_max`."""
    if run.action is not Action.READ:
        yield run
        return
    first = run.first
    while first < run.end:
        count = min(room, run.end - first)
        yield Run(first, count, run.action)
        first += count
        room = chunks_max
