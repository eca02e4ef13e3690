"""Decides what becomes of each chunk that was read, and enters it into the writer, in order."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from sendense.engine.plan import Mode
from sendense.engine.progress import Progress
from sendense.engine.worklist import Action, Batch
from sendense.repository.chunk import ZERO_ID, Codec
from sendense.repository.writer import DiskWriter


class Fate(Enum):
    """What becomes of a chunk that was read."""

    ZERO = auto()
    SAME = auto()  # as the parent's at this place
    KNOWN = auto()  # the repository holds it already, or will once what comes before it is put
    NEW = auto()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A batch with the bytes and ids of all its chunks to read, in order."""

    batch: Batch
    chunks: list[memoryview]
    ids: list[bytes]


@dataclass(slots=True)
class Judged:
    """A chunk that was read. `data` only where it is NEW, `stored` only once it is encoded."""

    index: int
    length: int
    fate: Fate
    chunk_id: bytes
    data: memoryview | None = None
    codec: Codec = Codec.RAW
    stored: bytes = b""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A batch with what becomes of each of its chunks that were read, in order."""

    batch: Batch
    chunks: list[Judged]


class Ledger:
    """The one hand that touches the writer, from any thread. Batches are put in order.

    `judge` runs ahead of `put`, in nearly that order: what was judged new and is not put yet is
    remembered, so that equal chunks near each other are compressed once. A batch counts on none
    that is put after it, for a checkpoint may lie between the two.
    """

    def __init__(self, writer: DiskWriter, progress: Progress, *, mode: Mode) -> None:
        self._writer = writer
        self._progress = progress
        self._mode = mode
        self._pending: dict[bytes, int] = {}  # the first chunk of the batch that brings it
        self._hand = threading.Lock()

    def judge(self, loaded: Loaded) -> Verdict:
        """Decide what becomes of each chunk of a batch. The look-ups are one call."""
        with self._hand:
            known = self._find_known(loaded.ids)
            chunks = zip(_indexes(loaded.batch), loaded.chunks, loaded.ids, strict=True)
            judged = [
                self._judge(index, data, chunk_id, is_known=chunk_id in known, batch=loaded.batch)
                for index, data, chunk_id in chunks
            ]
        return Verdict(loaded.batch, judged)

    def put(self, verdict: Verdict) -> None:
        """Enter a batch whose new chunks are encoded, and count it."""
        with self._hand:
            chunks = iter(verdict.chunks)
            for run in verdict.batch.runs:
                if run.action is Action.READ:
                    for _ in range(run.count):
                        self._put(next(chunks))
                elif run.action is Action.ZERO or self._mode is Mode.FULL:
                    self._writer.put_zero(run.first, run.count)

    def _find_known(self, ids: list[bytes]) -> set[bytes]:
        wanted = [chunk_id for chunk_id in ids if chunk_id != ZERO_ID]
        found = self._writer.find_known(wanted)
        return {chunk_id for chunk_id, is_known in zip(wanted, found, strict=True) if is_known}

    def _judge(
        self, index: int, data: memoryview, chunk_id: bytes, *, is_known: bool, batch: Batch
    ) -> Judged:
        first = batch.runs[0].first
        if chunk_id == ZERO_ID:
            fate = Fate.ZERO
        elif is_known:
            # A chunk of the parent counts only where the index has it: else it is stored again.
            same = self._writer.parent_id(index) == chunk_id
            fate = Fate.SAME if same else Fate.KNOWN
        elif self._pending.get(chunk_id, first + 1) <= first:
            fate = Fate.KNOWN
        else:
            self._pending[chunk_id] = first
            return Judged(index, len(data), Fate.NEW, chunk_id, data)
        return Judged(index, len(data), fate, chunk_id)

    def _put(self, one: Judged) -> None:
        if one.fate is Fate.ZERO:
            self._writer.put_zero(one.index)
            self._progress.add(read=one.length, zero=one.length)
        elif one.fate is Fate.NEW:
            is_new = self._writer.put_chunk(
                one.index, one.chunk_id, one.codec, one.stored, one.length
            )
            self._pending.pop(one.chunk_id, None)
            if is_new:
                self._progress.add(read=one.length, new=one.length, stored=len(one.stored))
            else:  # two batches at once brought the same
                self._progress.add(read=one.length, deduplicated=one.length)
        else:
            # An incremental keeps the parent's id where nothing is said.
            if one.fate is Fate.KNOWN or self._mode is Mode.FULL:
                self._writer.put_known(one.index, one.chunk_id)
            self._progress.add(read=one.length, deduplicated=one.length)


def _indexes(batch: Batch) -> Iterator[int]:
    for run in batch.runs:
        if run.action is Action.READ:
            yield from range(run.first, run.end)
