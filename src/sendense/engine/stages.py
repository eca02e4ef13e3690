"""The workers of a backup's pipelines: one reads and identifies chunks, one compresses them.

Between the two the writer's thread decides what each chunk becomes.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from sendense.connectors.base import DiskView
from sendense.core import units
from sendense.engine.ledger import Judged, Loaded, Verdict
from sendense.engine.worklist import Action, Batch, Run
from sendense.nbd.client import Client
from sendense.repository import chunk
from sendense.repository.storage.base import Buffer

REQUEST_BYTES = units.MIB  # measured: larger requests are not faster, and slower on qemu-nbd
REQUESTS_IN_FLIGHT = 4  # of one connection: a whole batch


class Reader:
    """Reads batches over a connection of its own, and identifies their chunks."""

    def __init__(
        self, view: DiskView, *, chunk_size: int, identify: Callable[[Buffer], bytes]
    ) -> None:
        self._identify = identify
        self._size_bytes = view.size_bytes
        self._chunk_size = chunk_size
        self._client = Client.connect(view.address)

    def process(self, batch: Batch) -> Loaded:
        """Read all chunks of a batch. Raises Unavailable where the source fails."""
        chunks: list[memoryview] = []
        for run in batch.runs:
            if run.action is Action.READ:
                chunks.extend(self._read(run))
        return Loaded(batch, chunks, [self._identify_chunk(data) for data in chunks])

    def interrupt(self) -> None:
        """Shut the connection, which makes a blocked `process` raise."""
        self._client.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _identify_chunk(self, data: memoryview) -> bytes:
        return chunk.ZERO_ID if chunk.is_zero(data) else self._identify(data)

    def _read(self, run: Run) -> Iterator[memoryview]:
        start = run.first * self._chunk_size
        end = min(run.end * self._chunk_size, self._size_bytes)
        if self._chunk_size > REQUEST_BYTES:
            for begin in range(start, end, self._chunk_size):
                yield self._read_large(begin, min(begin + self._chunk_size, end))
            return
        parts = dict(self._client.read_many(_requests(start, end), depth=REQUESTS_IN_FLIGHT))
        for begin in range(start, end, REQUEST_BYTES):
            part = memoryview(parts[begin])
            for within in range(0, len(part), self._chunk_size):
                yield part[within : within + self._chunk_size]

    def _read_large(self, start: int, end: int) -> memoryview:
        """Read a chunk that takes several requests."""
        data = memoryview(bytearray(end - start))
        requests = _requests(start, end)
        for offset, part in self._client.read_many(requests, depth=REQUESTS_IN_FLIGHT):
            data[offset - start : offset - start + len(part)] = part
        return data


class Compressor:
    """Encodes the new chunks of a batch."""

    def __init__(self, *, level: int) -> None:
        self._level = level

    def process(self, verdict: Verdict) -> Verdict:
        """Return the same verdict with `stored` instead of `data`."""
        return Verdict(verdict.batch, [self._encode(one) for one in verdict.chunks])

    def interrupt(self) -> None:
        """Do nothing: no batch takes long."""

    def close(self) -> None:
        """Do nothing: it holds nothing."""

    def _encode(self, one: Judged) -> Judged:
        if one.data is None:
            return one
        codec, stored = chunk.encode(one.data, self._level)
        return replace(one, data=None, codec=codec, stored=stored)


def _requests(start: int, end: int) -> list[tuple[int, int]]:
    return [(begin, min(REQUEST_BYTES, end - begin)) for begin in range(start, end, REQUEST_BYTES)]
