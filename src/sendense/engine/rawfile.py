"""Writes a raw image: sparse, in place, durable before it gets its name."""

import os
import threading
from pathlib import Path

from sendense.core.errors import Unavailable
from sendense.engine.control import Control
from sendense.repository.storage.direct import DirectWriter

FILE_MODE = 0o600  # a disk holds all secrets of its guest


class RawFile:
    """A raw image being written. Close it whatever happens; `finish` makes it durable."""

    def __init__(self, path: Path, *, size_bytes: int) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        self._path = path
        self._size_bytes = size_bytes
        self._writing = threading.Lock()  # `close` may come while `_sync` is left behind
        self._handle = os.open(path, flags, FILE_MODE)
        try:
            os.truncate(self._handle, size_bytes)
            self._writer = DirectWriter(self._handle)
        except BaseException:
            os.close(self._handle)
            raise

    def fileno(self) -> int:
        """The file's descriptor, valid until `close`."""
        return self._handle

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes at their place. Raises OSError."""
        self._writer.write(offset, data)

    def finish(self, control: Control) -> None:
        """Make all of it durable and check its length."""
        control.run_apart(self._sync, name="sync-target")
        found = os.fstat(self._handle).st_size
        if found != self._size_bytes:
            raise Unavailable(
                f"{self._path} has {found} bytes after the restore, the disk {self._size_bytes}",
                kind="target-failed",
            )

    def close(self) -> None:
        """Close the file."""
        with self._writing:
            try:
                self._writer.close()
            finally:
                os.close(self._handle)
                self._handle = -1

    def _sync(self) -> None:
        with self._writing:
            self._writer.flush()
        os.fsync(self._handle)
