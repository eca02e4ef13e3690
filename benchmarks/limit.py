"""The limits: what every core can do at most with the same data, writing nothing.

    python -m benchmarks.limit compress SOCKET [CHANGES]   read over NBD, hash, compress
    python -m benchmarks.limit hash SOCKET                 read over NBD, hash
    python -m benchmarks.limit store SOCKET FILE           prepares the next; not a limit
    python -m benchmarks.limit decompress FILE             read, decompress, hash

A process for each core and a connection for each process, so that the interpreter's lock costs
nothing; what the source calls zero is left out, as in a backup.
"""

import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import blake3
import zstandard

from sendense.core import extent
from sendense.core.extent import Extent
from sendense.engine.stages import REQUEST_BYTES
from sendense.nbd.address import Address
from sendense.nbd.client import Client
from sendense.repository import chunk

REQUESTS_IN_FLIGHT = 8
CHUNK_BYTES = chunk.SIZE_DEFAULT
LEVEL = 1

Place = tuple[int, int]  # offset and length


def read_hash_compress(socket: Path, changes: Path | None = None) -> int:
    """Return the bytes read of all that is allocated, or of the chunks that changes touch."""
    address = Address(socket_path=str(socket))
    requests = list(_list_requests(address, changes))
    return _on_all_cores(lambda core, cores: _compress(address, requests[core::cores]))


def read_hash(socket: Path) -> int:
    """Return the bytes read of all that is allocated."""
    address = Address(socket_path=str(socket))
    requests = list(_list_requests(address, None))
    return _on_all_cores(lambda core, cores: _hash(address, requests[core::cores], lambda _: None))


def store(socket: Path, target: Path) -> int:
    """Write all that is allocated to a file, compressed by chunks; their places beside it."""
    address = Address(socket_path=str(socket))
    places: list[Place] = []
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    read = 0
    with Client.connect(address) as client, target.open("wb") as file:
        for _, data in client.read_many(_list_requests(address, None), depth=REQUESTS_IN_FLIGHT):
            for piece in _chunks(data):
                packed = compressor.compress(piece)
                places.append((file.tell(), len(packed)))
                file.write(packed)
                read += len(piece)
    _places_of(target).write_text(json.dumps(places))
    return read


def decompress_hash(source: Path) -> int:
    """Return the plain bytes of what `store` wrote."""
    places = json.loads(_places_of(source).read_text())
    return _on_all_cores(lambda core, cores: _decompress(source, places[core::cores]))


def _list_requests(address: Address, changes: Path | None) -> Iterator[Place]:
    if changes is not None:
        listed = (Extent(start, length) for start, length in json.loads(changes.read_text()))
        touched = sorted({one.start // CHUNK_BYTES for one in extent.merge(listed)})
        yield from ((index * CHUNK_BYTES, CHUNK_BYTES) for index in touched)
        return
    with Client.connect(address, contexts=["base:allocation"]) as client:
        for run in extent.merge(client.list_allocated()):
            if not run.zero:
                for piece in extent.split(run, unit=REQUEST_BYTES):
                    yield piece.start, piece.length


def _on_all_cores(work: Callable[[int, int], int]) -> int:
    """Run `work(core, cores)` in a process for each core and return the sum."""
    cores = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("fork")
    results: SimpleQueue[int] = context.SimpleQueue()

    def answer(core: int) -> None:
        results.put(work(core, cores))

    workers = [context.Process(target=answer, args=(core,)) for core in range(cores)]
    for worker in workers:
        worker.start()
    totals = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return sum(totals)


def _compress(address: Address, requests: Sequence[Place]) -> int:
    return _hash(address, requests, zstandard.ZstdCompressor(level=LEVEL).compress)


def _hash(
    address: Address, requests: Sequence[Place], and_then: Callable[[memoryview], object]
) -> int:
    read = 0
    with Client.connect(address) as client:
        for _, data in client.read_many(requests, depth=REQUESTS_IN_FLIGHT):
            for piece in _chunks(data):
                blake3.blake3(piece).digest()
                and_then(piece)
            read += len(data)
    return read


def _decompress(source: Path, places: Sequence[Place]) -> int:
    decompressor = zstandard.ZstdDecompressor()
    plain = 0
    with source.open("rb") as file:
        for offset, length in places:
            file.seek(offset)
            data = decompressor.decompress(file.read(length))
            blake3.blake3(data).digest()
            plain += len(data)
    return plain


def _chunks(data: bytes | bytearray | memoryview) -> Iterator[memoryview]:
    view = memoryview(data)
    for start in range(0, len(view), CHUNK_BYTES):
        yield view[start : start + CHUNK_BYTES]


def _places_of(target: Path) -> Path:
    return target.with_suffix(".json")


def main() -> None:
    """Measure one run and print JSON figures."""
    action, *paths = sys.argv[1:]
    works: dict[str, Callable[..., int]] = {
        "compress": read_hash_compress,
        "hash": read_hash,
        "store": store,
        "decompress": decompress_hash,
    }
    started = time.perf_counter()
    read = works[action](*(Path(path) for path in paths))
    seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime
    print(json.dumps({"began": started, "seconds": seconds, "cpu": cpu, "bytes_read": read}))


if __name__ == "__main__":
    main()
