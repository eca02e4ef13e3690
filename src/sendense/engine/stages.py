"""The workers of a backup's pipelines: one reads and identifies chunks, one compresses them.

Between the two the writer's thread decides what each chunk becomes.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import replace

from sendense.connectors.base import DiskView
from sendense.core import units
from sendense.engine.ledger import Judged, Loaded, Verdict
from sendense.engine.worklist import Action, Batch
from sendense.nbd.client import Client
from sendense.repository import chunk
from sendense.repository.storage.base import Buffer

REQUEST_BYTES = units.MIB  # measured: larger requests are not faster, and slower on qemu-nbd
REQUESTS_IN_FLIGHT = 4  # of one connection: a whole batch


class Buffers:
    """Memory for batches, used again and again: fresh memory costs as much as hashing does.

    Whoever takes a buffer fills it before anybody reads it. One that is never given back, as after
    an error, is collected like any other object. From any thread.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: deque[bytearray] = deque()

    def take(self) -> bytearray:
        """Return memory with anything in it."""
        try:
            return self._free.pop()
        except IndexError:
            return bytearray(self._size)

    def give(self, buffer: bytearray) -> None:
        """Give memory back that nobody will look at any more."""
        self._free.append(buffer)


class Reader:
    """Reads batches over a connection of its own, and identifies their chunks."""

    def __init__(
        self,
        view: DiskView,
        *,
        chunk_size: int,
        identify: Callable[[Buffer], bytes],
        buffers: Buffers,
    ) -> None:
        self._buffers = buffers
        self._identify = identify
        self._size_bytes = view.size_bytes
        self._chunk_size = chunk_size
        self._client = Client.connect(view.address)

    def process(self, batch: Batch) -> Loaded:
        """Read all chunks of a batch. Raises Unavailable where the source fails."""
        buffer = self._buffers.take()
        chunks: list[memoryview] = []
        requests: list[tuple[int, memoryview]] = []
        free = memoryview(buffer)
        for run in batch.runs:
            if run.action is Action.READ:
                start = run.first * self._chunk_size
                length = min(run.end * self._chunk_size, self._size_bytes) - start
                data, free = free[:length], free[length:]
                chunks += _cut(data, self._chunk_size)
                parts = _cut(data, REQUEST_BYTES)
                requests += zip(range(start, start + length, REQUEST_BYTES), parts, strict=True)
        self._client.read_into(requests, depth=REQUESTS_IN_FLIGHT)
        return Loaded(batch, buffer, chunks, [self._identify_chunk(data) for data in chunks])

    def interrupt(self) -> None:
        """Shut the connection, which makes a blocked `process` raise."""
        self._client.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _identify_chunk(self, data: memoryview) -> bytes:
        return chunk.ZERO_ID if chunk.is_zero(data) else self._identify(data)


class Compressor:
    """Encodes the new chunks of a batch."""

    def __init__(self, *, level: int, buffers: Buffers) -> None:
        self._level = level
        self._buffers = buffers

    def process(self, verdict: Verdict) -> Verdict:
        """Return the same verdict with `stored` instead of `data`, and give its memory back."""
        encoded = [self._encode(one) for one in verdict.chunks]
        self._buffers.give(verdict.buffer)
        return replace(verdict, chunks=encoded)

    def interrupt(self) -> None:
        """Do nothing: no batch takes long."""

    def close(self) -> None:
        """Do nothing: it holds nothing."""

    def _encode(self, one: Judged) -> Judged:
        if one.data is None:
            return one
        codec, stored = chunk.encode(one.data, self._level)
        return replace(one, data=None, codec=codec, stored=stored)


def _cut(data: memoryview, size: int) -> list[memoryview]:
    return [data[start : start + size] for start in range(0, len(data), size)]
