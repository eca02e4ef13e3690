"""Locks in a directory: the immutable attribute of files, which ext4, XFS and btrfs have.

A file with it is not written, renamed, linked or removed by anybody, root included, until the
attribute is taken away. That needs the capability CAP_LINUX_IMMUTABLE, which this program needs
too. Until when a file is locked stands in an extended attribute of the file.
"""

import errno
import fcntl
import os
import secrets
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime

from sendense.core import clock
from sendense.core.errors import Invalid
from sendense.repository.storage.locks import LockMode, cannot_lock

# linux/fs.h: _IOR('f', 1, long), _IOW('f', 2, long), and the flag; the kernel reads an int.
GET_FLAGS, SET_FLAGS = 0x80086601, 0x40086602
IMMUTABLE = 0x00000010
UNTIL = "user.sendense.until"
FOREVER = datetime(9999, 12, 31, tzinfo=UTC)  # of a file that somebody else has made immutable
LONG_AGO = datetime.fromtimestamp(0, tz=UTC)
_FLAGS = struct.Struct("@i")


class AttributeLocks:
    """Locks files of a directory; see Locks.

    Args:
        root: a descriptor of the directory. open_file: opens an object for reading, by its name.
    """

    def __init__(self, root: int, open_file: Callable[[str], AbstractContextManager[int]]) -> None:
        self._root = root
        self._open_file = open_file

    def require(self, mode: LockMode) -> None:
        """Try it with a file; see Locks."""
        if mode is not LockMode.ATTRIBUTE:
            raise cannot_lock(mode, "it is a directory", "directories can be locked by `attribute`")
        name = f".tmp-{secrets.token_hex(8)}"
        file = os.open(
            name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._root
        )
        try:
            set_until(file, LONG_AGO)
            set_flags(file, get_flags(file) & ~IMMUTABLE)
        except OSError as error:
            raise _explain(error) from error
        finally:
            os.close(file)
            os.unlink(name, dir_fd=self._root)

    def lock(self, name: str, mode: LockMode, until: datetime) -> None:
        """Lock a file; see Locks."""
        del mode
        with self._open_file(name) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # or of two who lengthen it the shorter could win
            current = find_until(file)
            if current is None or current < until:
                set_until(file, until)

    def locked_until(self, name: str) -> datetime | None:
        """Return until when a file is locked; see Locks."""
        with self._open_file(name) as file:
            return find_until(file)


def find_until(file: int) -> datetime | None:
    """Return until when a file is locked, None where its attribute is not set: that counts."""
    if not get_flags(file) & IMMUTABLE:
        return None
    try:
        return clock.parse_utc(os.getxattr(file, UNTIL).decode())
    except (OSError, ValueError):
        return FOREVER


def set_until(file: int, until: datetime) -> None:
    """Lock a file until a date.

    The date cannot be changed while the attribute is set. A crash in between leaves a file that is
    not locked, which `find_until` tells, so that the next who looks locks it.
    """
    flags = get_flags(file)
    if flags & IMMUTABLE:
        set_flags(file, flags & ~IMMUTABLE)
    os.setxattr(file, UNTIL, clock.format_utc(until).encode())
    os.fsync(file)
    set_flags(file, flags | IMMUTABLE)
    os.fsync(file)


def get_flags(file: int) -> int:
    """Return a file's attributes."""
    return int(_FLAGS.unpack(fcntl.ioctl(file, GET_FLAGS, bytes(_FLAGS.size)))[0])


def set_flags(file: int, flags: int) -> None:
    """Set a file's attributes."""
    fcntl.ioctl(file, SET_FLAGS, _FLAGS.pack(flags))


def _explain(error: OSError) -> Invalid:
    if error.errno == errno.EPERM:
        return cannot_lock(
            LockMode.ATTRIBUTE,
            "this program may not set the immutable attribute",
            "give it the capability CAP_LINUX_IMMUTABLE: AmbientCapabilities= of the systemd units",
        )
    return cannot_lock(
        LockMode.ATTRIBUTE,
        f"its file system has no immutable attribute ({os.strerror(error.errno or 0).lower()})",
        "ext4, XFS and btrfs have it; shares and tmpfs have not",
    )
