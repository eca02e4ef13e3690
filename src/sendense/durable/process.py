"""Processes of this machine: which one is meant, whether it runs, and how it is ended for good.

A number is no identity: the kernel gives the numbers of dead processes to new ones. A `Mark` also
names the boot and the moment the process started, both of which no other process has.
"""

import contextlib
import json
import os
import select
import signal
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

GONE_SECONDS_MAX = 5.0  # a killed process ends at once, unless the kernel waits for a disk for it
_PROC = Path("/proc")
_BOOT = _PROC / "sys/kernel/random/boot_id"
_START_FIELD = 19  # of /proc/PID/stat behind the name: its 22nd field in all; see proc(5)
_MILLISECONDS = 1000


@dataclass(frozen=True, slots=True)
class Mark:
    """A process as it describes itself.

    Attributes:
        started: clock ticks between the boot and its start.
        boot: the kernel's id of this boot.
        thread: the thread that wakes regularly, whatever else the process does.
        wake_seconds: how long that thread sleeps at most.
    """

    pid: int
    started: int
    boot: str
    host: str
    thread: int
    wake_seconds: float

    @property
    def is_of_this_host(self) -> bool:
        """Whether it ran on a machine of this name, perhaps before its last restart."""
        return self.host == socket.gethostname()

    def to_bytes(self) -> bytes:
        """Return the mark as it is written."""
        return json.dumps(asdict(self)).encode()


def mark_self(*, thread: int, wake_seconds: float) -> Mark:
    """Return the mark of this process."""
    pid = os.getpid()
    started = _find_start(pid)
    assert started is not None, "this process runs"
    return Mark(pid, started, boot_id(), socket.gethostname(), thread, wake_seconds)


def parse(text: bytes) -> Mark | None:
    """Return the mark that was written, or None where it is none of ours."""
    try:
        return Mark(**json.loads(text))
    except (ValueError, TypeError):
        return None


def boot_id() -> str:
    """Return the kernel's id of this boot."""
    return _BOOT.read_text().strip()


def count_wakes(mark: Mark) -> int | None:
    """Return how often the mark's thread was given a processor; None where it does not exist.

    A count that stands still over several of its sleeps means that the process is stopped: one
    that runs is woken by its own clock, however busy or blocked its other threads are.
    """
    if not _is_same(mark):
        return None
    with contextlib.suppress(OSError):
        lines = (_PROC / f"{mark.pid}/task/{mark.thread}/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
    return None


def end(mark: Mark, lock: Path) -> bool:
    """Kill the marked process, if it is the one that holds a lock on a file; True once it is gone.

    The handle is taken before the identity is checked: should the process end and its number go to
    another one in between, the signal reaches nobody.
    """
    try:
        handle = os.pidfd_open(mark.pid)
    except ProcessLookupError:
        return True
    try:
        if not _is_same(mark) or not _holds(mark.pid, lock):
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        ended = select.poll()
        ended.register(handle, select.POLLIN)
        return bool(ended.poll(GONE_SECONDS_MAX * _MILLISECONDS))
    except (ProcessLookupError, PermissionError):
        return not _is_same(mark)
    finally:
        os.close(handle)


def _is_same(mark: Mark) -> bool:
    return mark.boot == boot_id() and _find_start(mark.pid) == mark.started


def _find_start(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        # The name may hold blanks and brackets of its own; what follows the last one is numbers.
        _, _, rest = (_PROC / f"{pid}/stat").read_text().rpartition(")")
        return int(rest.split()[_START_FIELD])
    return None


def _holds(pid: int, lock: Path) -> bool:
    """Whether a process itself has a file open and holds the lock on it."""
    with contextlib.suppress(OSError):
        wanted = lock.stat()
        for entry in (_PROC / f"{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed while we look
                if os.path.samestat(entry.stat(), wanted):
                    info = (_PROC / f"{pid}/fdinfo/{entry.name}").read_text()
                    if any(line.startswith("lock:") for line in info.splitlines()):
                        return True
    return False
