"""A worker's file on its machine: locked while the worker lives, it tells death before any clock.

The kernel drops the lock with the process, however that ended. The file holds the process's mark,
so that others on the machine can tell a frozen worker from a busy one, and end it.
"""

import fcntl
import os
from enum import Enum, auto
from pathlib import Path

from sendense.durable import process
from sendense.durable.process import Mark

_MARK_LENGTH_MAX = 4096
SUFFIX = ".worker"


class Presence(Enum):
    """What a worker's file says."""

    HELD = auto()  # the process exists, on this machine; it may be frozen
    FREE = auto()  # it is dead
    UNKNOWN = auto()  # it runs on another machine, if it runs: only the clock can tell


class Place:
    """The file of this process. Whoever takes it drops it, or ends."""

    def __init__(self, folder: Path, worker_id: str) -> None:
        self.path = path_of(folder, worker_id)
        self._handle: int | None = None

    def take(self) -> None:
        """Make the file and lock it."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def write(self, mark: Mark) -> None:
        """Say which process this is; until then nobody can end it."""
        assert self._handle is not None, "taken before"
        os.pwrite(self._handle, mark.to_bytes(), 0)

    def drop(self) -> None:
        """Remove the file. Does nothing where it is not taken."""
        if self._handle is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = None


def path_of(folder: Path, worker_id: str) -> Path:
    """Return the file of a worker of this machine."""
    return folder / f"{worker_id}{SUFFIX}"


def look(path: Path) -> tuple[Presence, Mark | None]:
    """Return what a worker's file says, and its mark where it can be read.

    A folder shared by several machines is no proof: a lock that is free here may be held there,
    and one that is held may be held there.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return Presence.UNKNOWN, None
    try:
        mark = process.parse(os.pread(handle, _MARK_LENGTH_MAX, 0))
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            ours = mark is not None and mark.boot == process.boot_id()
            return (Presence.HELD if ours else Presence.UNKNOWN), mark
    finally:
        os.close(handle)
    # Of an earlier boot of this machine, too: the clock need not be waited for after a restart.
    elsewhere = mark is not None and mark.boot != process.boot_id() and not mark.is_of_this_host
    return (Presence.UNKNOWN if elsewhere else Presence.FREE), mark


def count_here(folder: Path) -> int:
    """Return how many workers exist on this machine, frozen ones too."""
    return sum(look(path)[0] is Presence.HELD for path in folder.glob(f"*{SUFFIX}"))
