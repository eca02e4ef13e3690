"""Restores a disk of a backup to a file, raw or qcow2, whole or not at all; or into another disk.

The file is written under a hidden name in the target's folder, synced, and only then given its
name. Holes stay holes. Every chunk is verified by the reader before it is written.
"""

import contextvars
import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from sendense.core import extent
from sendense.core.errors import Conflict
from sendense.core.extent import Extent
from sendense.engine import publish
from sendense.engine.control import POLL_SECONDS, Control
from sendense.engine.progress import Phase, Progress
from sendense.engine.qcow2 import Qcow2File
from sendense.engine.rawfile import RawFile
from sendense.nbd.address import Address
from sendense.nbd.client import Client
from sendense.nbd.protocol import ALLOCATION

AHEAD_HANDFULS = 2  # verified and waiting to be written
HANDFUL_BYTES = 4 << 20  # that go from thread to thread at once: one by one costs more
JOIN_SECONDS_MAX = 1.0  # a reader that blocks is left to end by itself
CLEAR_BYTES = 64 << 20  # a server without a quick way writes them all: seconds, then a look


class Format(StrEnum):
    """What kind of file to write."""

    RAW = "raw"
    QCOW2 = "qcow2"


class Reader(Protocol):
    """What a restore needs of a repository's disk reader."""

    @property
    def size_bytes(self) -> int:
        """Size of the disk."""
        ...

    def list_extents(self) -> Iterator[Extent]:
        """Yield extents that cover the disk in order; holes are `zero`."""
        ...

    def read_chunks(self, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, verified bytes) for all of the extents."""
        ...


class Writable(Protocol):
    """What can be written at any place."""

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes at their place."""
        ...


class Target(Writable, Protocol):
    """A file being written."""

    def finish(self, control: Control) -> None:
        """Make all of it durable and check its length."""
        ...

    def close(self) -> None:
        """Release what it holds; the file stays."""
        ...


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """What to restore where.

    Attributes:
        path: the target; its folder exists, and it does not unless `overwrite`.
        tag: names the attempt's hidden file: the job's id, so that a second attempt of the same job
            clears away what a killed one left, or finds that it was done; call `publish.forget`
            when the job is over. Letters, digits and hyphens; "" for a random one.
    """

    path: Path
    format: Format = Format.RAW
    overwrite: bool = False
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore wrote: no bytes where an earlier attempt of the same tag had done it all."""

    path: Path
    size_bytes: int
    bytes_written: int


def restore_disk_to_file(
    reader: Reader, request: RestoreRequest, *, control: Control, progress: Progress
) -> Restored:
    """Write a disk to a file and return what was written, durably.

    Raises NotFound (no folder), Exists kind `target-exists`, NoSpace, Denied, Invalid; Corrupt and
    whatever else the reader raises; Cancelled. Then no new file is left, and an old one is as it
    was.
    """
    path = request.path.absolute()
    if publish.is_named(path, tag=request.tag):
        return Restored(path=path, size_bytes=reader.size_bytes, bytes_written=0)
    control.check()
    publish.forget(path, tag=request.tag)  # a killed attempt may have reserved the name
    publish.check_target(path, overwrite=request.overwrite)
    progress.enter(Phase.LISTING)
    size = reader.size_bytes
    total = control.run_apart(lambda: _count(reader, control), name="list-extents")
    publish.check_space(path, bytes_needed=total)
    progress.start(bytes_total=total)
    progress.enter(Phase.TRANSFERRING)
    with publish.unnamed(path, overwrite=request.overwrite, tag=request.tag) as (hidden, name):
        target = _open_target(hidden, request.format, size_bytes=size)
        with closing(target):
            _copy(reader, target, control=control, progress=progress)
            progress.enter(Phase.FINISHING)
            target.finish(control)
        control.check()
        name()
    return Restored(path=path, size_bytes=size, bytes_written=total)


def restore_disk_to_export(
    reader: Reader, address: Address, *, control: Control, progress: Progress
) -> int:
    """Make the disk that an NBD server serves equal to a disk, durably; return the bytes written.

    All of it is overwritten: where the backup has a hole and the server tells of data, with zeros.
    Raises Conflict, kind `target-size-differs`, before anything is written; what the client and the
    reader raise, and Cancelled: then the disk is half written.
    """
    control.check()
    progress.enter(Phase.LISTING)
    total = control.run_apart(lambda: _count(reader, control), name="list-extents")
    with Client.connect(address) as client:
        if client.size_bytes != reader.size_bytes:
            raise Conflict(
                f"the disk to write is {client.size_bytes} bytes long, the backup's"
                f" {reader.size_bytes}",
                kind="target-size-differs",
                hint="give the VM a disk of the very same size",
            )
        progress.start(bytes_total=total)
        progress.enter(Phase.TRANSFERRING)
        _clear(reader, client, address, control)
        _copy(reader, client, control=control, progress=progress)
        progress.enter(Phase.FINISHING)
        control.run_apart(client.flush, name="sync-target")
    return total


def _clear(reader: Reader, client: Client, address: Address, control: Control) -> None:
    """Write zeros where the backup has holes and the server tells of data."""
    with Client.connect(address, contexts=[ALLOCATION]) as lister:
        used = (run for run in lister.list_allocated() if not run.zero)
        for run in extent.mark_zeros(used, reader.list_extents()):
            if run.zero:
                for piece in extent.split(run, unit=CLEAR_BYTES):
                    control.check()
                    client.zero(piece.start, piece.length)


def _open_target(hidden: Path, kind: Format, *, size_bytes: int) -> Target:
    if kind is Format.QCOW2:
        return Qcow2File(hidden, size_bytes=size_bytes)
    return RawFile(hidden, size_bytes=size_bytes)


def _count(reader: Reader, control: Control) -> int:
    total = 0
    for run in _data_extents(reader):
        control.check()
        total += run.length
    return total


def _data_extents(reader: Reader) -> Iterator[Extent]:
    runs = extent.clip(reader.list_extents(), size=reader.size_bytes)
    return (run for run in runs if not run.zero)


def _copy(reader: Reader, target: Writable, *, control: Control, progress: Progress) -> None:
    ahead = _ReadAhead(reader)
    try:
        for offset, data in ahead.take(control):
            target.write(offset, data)
            progress.add(read=len(data), new=len(data))
    finally:
        ahead.stop()


class _ReadAhead:
    """Takes chunks from a reader in a thread of its own, so that cancelling need not wait."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._ready: queue.Queue[list[tuple[int, bytes]] | BaseException | None] = queue.Queue(
            AHEAD_HANDFULS
        )
        self._stopped = threading.Event()
        # In the caller's context, so that what it logs names the job.
        within = contextvars.copy_context()
        self._thread = threading.Thread(
            target=within.run, args=(self._fetch,), name="restore-fetch", daemon=True
        )
        self._thread.start()

    def take(self, control: Control) -> Iterator[tuple[int, bytes]]:
        """Yield what the reader yields; raise what it raises, or Cancelled."""
        while True:
            control.check()
            try:
                item = self._ready.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            for one in item:
                control.check()
                yield one

    def stop(self) -> None:
        """End the thread; one that blocks in the storage is left to end by itself."""
        self._stopped.set()
        self._thread.join(JOIN_SECONDS_MAX)

    def _fetch(self) -> None:
        chunks = self._reader.read_chunks(_data_extents(self._reader))
        handful: list[tuple[int, bytes]] = []
        size = 0
        try:
            for chunk in chunks:
                handful.append(chunk)
                size += len(chunk[1])
                if size >= HANDFUL_BYTES:
                    if not self._offer(handful):
                        return
                    handful, size = [], 0
        except BaseException as error:  # noqa: BLE001 - raised again where chunks are taken
            self._offer(error)
        else:
            self._offer(handful)
            self._offer(None)

    def _offer(self, item: list[tuple[int, bytes]] | BaseException | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._ready.put(item, timeout=POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False
