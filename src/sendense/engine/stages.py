"""The workers of a backup's pipeline: one reads chunks over NBD, one decides what each becomes."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from sendense.connectors.base import DiskView
from sendense.core import units
from sendense.engine.worklist import Action, Batch, Run
from sendense.nbd.client import Client
from sendense.repository import chunk
from sendense.repository.chunk import Codec
from sendense.repository.session import DiskWriter

REQUEST_BYTES = units.MIB  # measured: larger requests are not faster, and slower on qemu-nbd
REQUESTS_IN_FLIGHT = 4  # of one connection: a whole batch


class Fate(Enum):
    """What becomes of a chunk that was read."""

    ZERO = auto()
    SAME = auto()  # as the parent's at this place
    KNOWN = auto()  # the repository holds it already
    NEW = auto()


@dataclass(frozen=True, slots=True)
class Sifted:
    """A chunk that was read. `codec` and `stored` are set only where it is NEW."""

    index: int
    length: int
    fate: Fate
    chunk_id: bytes
    codec: Codec | None = None
    stored: bytes = b""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A batch with the bytes of all its chunks to read, in order."""

    batch: Batch
    chunks: list[memoryview]


@dataclass(frozen=True, slots=True)
class Answer:
    """A batch with what becomes of each of its chunks that were read, in order."""

    batch: Batch
    chunks: list[Sifted]


class Reader:
    """Reads batches over a connection of its own."""

    def __init__(self, view: DiskView, *, chunk_size: int) -> None:
        self._size_bytes = view.size_bytes
        self._chunk_size = chunk_size
        self._client = Client.connect(view.address)

    def process(self, batch: Batch) -> Loaded:
        """Read all chunks of a batch. Raises Unavailable where the source fails."""
        chunks: list[memoryview] = []
        for run in batch.runs:
            if run.action is Action.READ:
                chunks.extend(self._read(run))
        return Loaded(batch, chunks)

    def interrupt(self) -> None:
        """Shut the connection, which makes a blocked `process` raise."""
        self._client.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _read(self, run: Run) -> Iterator[memoryview]:
        start = run.first * self._chunk_size
        length = min(run.end * self._chunk_size, self._size_bytes) - start
        data = memoryview(bytearray(length))
        requests = [
            (start + begin, min(REQUEST_BYTES, length - begin))
            for begin in range(0, length, REQUEST_BYTES)
        ]
        for offset, part in self._client.read_many(requests, depth=REQUESTS_IN_FLIGHT):
            data[offset - start : offset - start + len(part)] = part
        for begin in range(0, length, self._chunk_size):
            yield data[begin : begin + self._chunk_size]


class Sifter:
    """Decides what becomes of the chunks of a batch, and compresses those that are new."""

    def __init__(self, writer: DiskWriter, *, level: int) -> None:
        self._writer = writer
        self._level = level

    def process(self, loaded: Loaded) -> Answer:
        """Sift all chunks of a batch; the look-ups are one call."""
        sifted = [
            self._sift(index, data)
            for index, data in zip(_indexes(loaded.batch), loaded.chunks, strict=True)
        ]
        places = [place for place, one in enumerate(sifted) if one.fate is Fate.NEW]
        known = self._writer.find_known([sifted[place].chunk_id for place in places])
        for place, is_known in zip(places, known, strict=True):
            one = sifted[place]
            if is_known:
                sifted[place] = Sifted(one.index, one.length, Fate.KNOWN, one.chunk_id)
            else:
                codec, stored = chunk.encode(loaded.chunks[place], self._level)
                sifted[place] = Sifted(one.index, one.length, Fate.NEW, one.chunk_id, codec, stored)
        return Answer(loaded.batch, sifted)

    def interrupt(self) -> None:
        """Do nothing: no batch takes long."""

    def close(self) -> None:
        """Do nothing: it holds nothing."""

    def _sift(self, index: int, data: memoryview) -> Sifted:
        if chunk.is_zero(data):
            return Sifted(index, len(data), Fate.ZERO, chunk.ZERO_ID)
        chunk_id = chunk.identify(data)
        same = chunk_id == self._writer.parent_id(index)
        return Sifted(index, len(data), Fate.SAME if same else Fate.NEW, chunk_id)


class Comparer:
    """Compares chunks with the parent's: what sampling needs."""

    def __init__(self, writer: DiskWriter) -> None:
        self._writer = writer

    def process(self, loaded: Loaded) -> list[int]:
        """Return the indexes of the chunks that are not as in the parent."""
        return [
            index
            for index, data in zip(_indexes(loaded.batch), loaded.chunks, strict=True)
            if _identify(data) != self._writer.parent_id(index)
        ]

    def interrupt(self) -> None:
        """Do nothing: no batch takes long."""

    def close(self) -> None:
        """Do nothing: it holds nothing."""


def _identify(data: memoryview) -> bytes:
    return chunk.ZERO_ID if chunk.is_zero(data) else chunk.identify(data)


def _indexes(batch: Batch) -> Iterator[int]:
    for run in batch.runs:
        if run.action is Action.READ:
            yield from range(run.first, run.end)
