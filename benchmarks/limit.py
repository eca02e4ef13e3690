"""The limit: every core reads over NBD, hashes and compresses, and writes nothing.

A process for each core and a connection for each process, so that the interpreter's lock costs
nothing; what the source calls zero is left out, as in a backup.
"""

import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Sequence
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import blake3
import zstandard

from sendense.core import extent, units
from sendense.nbd.address import Address
from sendense.nbd.client import Client

REQUEST_BYTES = units.MIB
REQUESTS_IN_FLIGHT = 8
CHUNK_BYTES = 512 * units.KIB


def read_hash_compress(socket: Path, *, level: int = 1) -> tuple[int, int]:
    """Return (bytes read, bytes compressed) of all that is allocated in an export."""
    address = Address(socket_path=str(socket))
    with Client.connect(address, contexts=["base:allocation"]) as client:
        found = extent.merge(client.list_allocated())
        requests = [
            (piece.start, piece.length)
            for run in found
            if not run.zero
            for piece in extent.split(run, unit=REQUEST_BYTES)
        ]
    cores = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("fork")
    results: SimpleQueue[tuple[int, int]] = context.SimpleQueue()
    workers = [
        context.Process(target=_work, args=(address, requests[core::cores], level, results))
        for core in range(cores)
    ]
    for worker in workers:
        worker.start()
    totals = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return sum(read for read, _ in totals), sum(stored for _, stored in totals)


def _work(
    address: Address,
    requests: Sequence[tuple[int, int]],
    level: int,
    results: "SimpleQueue[tuple[int, int]]",
) -> None:
    compressor = zstandard.ZstdCompressor(level=level)
    read = stored = 0
    with Client.connect(address) as client:
        for _, data in client.read_many(requests, depth=REQUESTS_IN_FLIGHT):
            view = memoryview(data)
            for start in range(0, len(view), CHUNK_BYTES):
                piece = view[start : start + CHUNK_BYTES]
                blake3.blake3(piece).digest()
                stored += len(compressor.compress(piece))
            read += len(view)
    results.put((read, stored))


def main() -> None:
    """Measure one run and print JSON figures."""
    started = time.perf_counter()
    read, stored = read_hash_compress(Path(sys.argv[1]))
    seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures = {"seconds": seconds, "cpu": used.ru_utime + used.ru_stime}
    print(json.dumps({**figures, "bytes_read": read, "bytes_stored": stored}))


if __name__ == "__main__":
    main()
