"""Writing large files past the page cache.

What a backup or a restore writes is not read again soon. Copying it into the page cache costs the
processor more than sealing it, pushes out what others read, and makes the sync at the end wait for
all of it (measured: docs/decisions/0160-large-files-pass-the-page-cache-by.md). The kernel takes
only aligned pieces of memory for aligned places, so bytes are gathered in such pieces first, and
while some are being written the next are gathered. Where a file system knows no such writes
(EINVAL), and for what is not aligned, they are ordinary ones.
"""

import errno
import fcntl
import mmap
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np

from sendense.core import units
from sendense.repository.storage.base import Buffer

ALIGNMENT = 4096  # what the strictest of usual disks and file systems ask for
STAGE_BYTES = 2 * units.MIB  # one write; measured: 1 MiB and 4 MiB are slower
WRITES_AHEAD = 3  # in flight at once; measured: one leaves the disk idle, four are no faster
STAGES = WRITES_AHEAD + 1  # of a writer

# Memory of writers that are closed, for the next ones: a backup writes a file for each 32 MiB, and
# the kernel takes as long to give it fresh memory as to write. Two writers' worth is kept.
_spare: deque[mmap.mmap] = deque(maxlen=2 * STAGES)


class DirectWriter:
    """Writes runs of bytes to an open file, which it does not close. Use as a context manager.

    Used by one thread; the descriptor must not be written by anybody else meanwhile. What was
    written is in the file once `flush` has returned, and durable after a sync of the file. Any
    method may raise the OSError of an earlier write; then what the file holds is undefined.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        self._direct_flags = fcntl.fcntl(file, fcntl.F_GETFL) | os.O_DIRECT
        self._is_direct = self._set_direct(wanted=True)
        self._stages = [_take_stage() for _ in range(STAGES)]
        self._start = 0  # where in the file the stage's first byte belongs
        self._filled = 0
        self._executor = ThreadPoolExecutor(WRITES_AHEAD, thread_name_prefix="write")
        self._writes: deque[Future[None]] = deque()

    def write(self, offset: int, data: Buffer) -> None:
        """Write bytes at a place, which costs least right behind those before."""
        view = memoryview(data)
        if offset != self._start + self._filled:
            self._put_stage()
            self._start = offset
        while view:
            part = view[: STAGE_BYTES - self._filled]
            _copy(part, self._stages[0], self._filled)
            self._filled += len(part)
            view = view[len(part) :]
            if self._filled == STAGE_BYTES:
                self._put_stage()

    def flush(self) -> None:
        """Write all that is gathered, and wait until it is in the file."""
        self._put_stage()
        self._await_writes(0)

    def close(self) -> None:
        """Drop what is gathered, let go of memory and threads, and leave the file as it came."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        _spare.extend(self._stages)  # nobody writes them any more
        self._stages.clear()
        self._set_direct(wanted=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _put_stage(self) -> None:
        """Send the stage on its way, and begin to gather in another one."""
        size, self._filled = self._filled, 0
        aligned = size - size % ALIGNMENT if self._start % ALIGNMENT == 0 else 0
        stage, start = self._stages[0], self._start
        self._start += size
        if aligned:
            # The others but one are being written at most: this one comes last, the next is free.
            self._await_writes(WRITES_AHEAD - 1)
            self._stages.append(self._stages.pop(0))
            self._writes.append(self._executor.submit(self._write, stage, 0, aligned, start))
        if aligned < size:
            self._await_writes(0)  # the flag is the file's, not the write's
            self._set_direct(wanted=False)
            self._write(stage, aligned, size, start)
            self._set_direct(wanted=self._is_direct)

    def _write(self, stage: mmap.mmap, begin: int, end: int, start: int) -> None:
        """Write bytes `begin` to `end` of a stage whose first byte belongs at `start`."""
        with memoryview(stage) as view:
            while begin < end:
                was_direct = self._is_direct  # other writes may be refused at the same time
                try:
                    begin += os.pwrite(self._file, view[begin:end], start + begin)
                except OSError as error:
                    if error.errno != errno.EINVAL or not was_direct:
                        raise
                    # It was promised when the flag was set, and is refused now.
                    self._set_direct(wanted=False)
                    self._is_direct = False  # last: until then another may still be refused

    def _await_writes(self, count: int) -> None:
        """Wait until at most so many writes are in flight."""
        while len(self._writes) > count:
            self._writes.popleft().result()

    def _set_direct(self, *, wanted: bool) -> bool:
        """Set or clear the file's flag; return whether it is set."""
        flags = self._direct_flags if wanted else self._direct_flags & ~os.O_DIRECT
        try:
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return wanted


def _copy(part: memoryview, stage: mmap.mmap, place: int) -> None:
    """Copy bytes into a stage, many of them without the interpreter's lock: numpy lets go of it."""
    with memoryview(stage) as whole, whole[place : place + len(part)] as target:
        if len(part) < ALIGNMENT:
            target[:] = part
        else:
            np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(part, np.uint8))


def _take_stage() -> mmap.mmap:
    try:
        return _spare.pop()
    except IndexError:
        # Shared: private memory must not be written past the page cache while the process forks
        # (open(2), notes).
        return mmap.mmap(-1, STAGE_BYTES)


os.register_at_fork(after_in_child=_spare.clear)  # or a child would write into its parent's
