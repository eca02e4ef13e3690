"""What a backup's crew does with a batch: read it, identify its chunks, compress what is new.

In between the writer's one hand decides what each chunk becomes.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from sendense.connectors.base import DiskView
from sendense.core import units
from sendense.engine.ledger import Loaded, Verdict
from sendense.engine.worklist import Action, Batch
from sendense.nbd.client import Client
from sendense.repository import chunk
from sendense.repository.storage.base import Buffer

# Measured with qemu-nbd: it needs half as much of the processor again for requests of 1 MiB, which
# leave its cache, and as much for 128 KiB.
REQUEST_BYTES = 512 * units.KIB


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


@dataclass(frozen=True, slots=True)
class Brought:
    """A batch with the bytes of all its chunks to read, in order; they lie in `buffer`."""

    batch: Batch
    buffer: bytearray
    chunks: list[memoryview]


class Lane:
    """Reads batches over a connection of its own; see crew.Lane."""

    def __init__(self, view: DiskView, *, chunk_size: int, buffers: Buffers) -> None:
        self._size_bytes = view.size_bytes
        self._chunk_size = chunk_size
        self._buffers = buffers
        self._begun: Brought | None = None
        self._client = Client.connect(view.address)

    def begin(self, batch: Batch) -> None:
        """Ask for all chunks of a batch. Raises Unavailable where the source fails."""
        brought = Brought(batch, self._buffers.take(), [])
        free = memoryview(brought.buffer)
        requests: list[tuple[int, memoryview]] = []
        for run in batch.runs:
            if run.action is Action.READ:
                start = run.first * self._chunk_size
                length = min(run.end * self._chunk_size, self._size_bytes) - start
                data, free = free[:length], free[length:]
                brought.chunks.extend(_cut(data, self._chunk_size))
                parts = _cut(data, REQUEST_BYTES)
                requests += zip(range(start, start + length, REQUEST_BYTES), parts, strict=True)
        self._client.ask(requests)
        self._begun = brought

    def finish(self) -> Brought:
        """Wait for a batch. Raises Unavailable where the source fails."""
        self._client.receive()
        brought, self._begun = self._begun, None
        assert brought is not None, "begun before"
        return brought

    def interrupt(self) -> None:
        """Shut the connection, which makes a blocked `finish` raise."""
        self._client.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def identify(brought: Brought, *, by: Callable[[Buffer], bytes]) -> Loaded:
    """Return a batch with the ids of its chunks."""
    ids = [chunk.ZERO_ID if chunk.is_zero(data) else by(data) for data in brought.chunks]
    return Loaded(brought.batch, brought.chunks, ids)


def encode(verdict: Verdict, *, level: int) -> Verdict:
    """Return the verdict with `stored` instead of `data`."""
    for one in verdict.chunks:
        if one.data is not None:
            one.codec, one.stored = chunk.encode(one.data, level)
            one.data = None
    return verdict


def _cut(data: memoryview, size: int) -> list[memoryview]:
    return [data[start : start + size] for start in range(0, len(data), size)]
