"""Anonymous memory of processes, looked at many times a second: mapped files are not in it."""

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from sendense.core import units

SECONDS = 0.02  # between two looks


def anonymous_bytes(pid: int | str = "self") -> int:
    """Return the anonymous resident memory of a process; 0 where it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * units.KIB
    return 0


def _of_family(pid: int) -> int:
    """Return the memory of a process and all below it."""
    with contextlib.suppress(psutil.Error):
        family = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
        return sum(anonymous_bytes(one) for one in family)
    return 0


@contextmanager
def watched(pid: int | None = None) -> Iterator[list[int]]:
    """Give a list whose only item is the highest seen so far: of this process, or of a family."""
    peak = [0]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(SECONDS):
            peak[0] = max(peak[0], anonymous_bytes() if pid is None else _of_family(pid))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()
