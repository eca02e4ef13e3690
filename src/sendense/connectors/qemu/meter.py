"""How long the guest's writes to a disk take, by QEMU's own accounting of the device.

QEMU counts what the guest's requests cost it from their arrival to their answer, whatever lies
below the device: the copying of what is overwritten (`copy-before-write`) is inside, our own reads
are not. See `query-blockstats` in QEMU's QMP reference.
"""

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sendense.connectors.qemu.qmp import Qmp
from sendense.core.errors import Unavailable

ASK_SECONDS_MAX = 2.0  # a look that is late is worth less than the reading that waits for it
_PLACES_MAX = 4096  # more VMs than one process reads at once

Statistics = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Counters:
    """What a device counted since QEMU began.

    Attributes:
        writes: how many of the guest's writes ended.
        nanoseconds: what they and the flushes took together.
    """

    writes: int
    nanoseconds: int


def find_counters(statistics: Statistics, qdev: str) -> Counters | None:
    """Return the counters of a device, or None where QEMU has no such device."""
    for entry in statistics:
        if entry.get("qdev") == qdev:
            told = entry["stats"]
            # A guest that syncs waits for both: its write is done when it is flushed.
            spent = told["wr_total_time_ns"] + told["flush_total_time_ns"]
            return Counters(told["wr_operations"], spent)
    return None


def find_mean(before: Counters, now: Counters) -> float | None:
    """Return the mean seconds of a write between two counts, or None where none ended.

    None too where the counts went back, for then QEMU was started anew.
    """
    writes, nanoseconds = now.writes - before.writes, now.nanoseconds - before.nanoseconds
    return nanoseconds / writes / 1e9 if writes > 0 and nanoseconds >= 0 else None


class Meter:
    """Measures one device; for one thread.

    Args:
        ask: returns what QEMU answers to `query-blockstats`.
        qdev: the device's path in QEMU's object tree.
    """

    def __init__(self, ask: Callable[[], Statistics], qdev: str) -> None:
        self._ask = ask
        self._qdev = qdev
        self._before: Counters | None = None

    def measure(self) -> float | None:
        """Return the mean seconds of the guest's writes since the last call; see `Measuring`."""
        now = find_counters(self._ask(), self._qdev)
        if now is None:
            raise Unavailable(
                f"QEMU has no device {self._qdev!r}, whose writes were to be measured"
            )
        before, self._before = self._before, now
        return None if before is None else find_mean(before, now)


def ask(path: Path) -> Statistics:
    """Return the statistics of all devices of the QEMU behind a QMP socket. Raises Unavailable."""
    with _turn(path), Qmp(path, connect_seconds_max=ASK_SECONDS_MAX) as qmp:
        return list(qmp.execute("query-blockstats", seconds_max=ASK_SECONDS_MAX))


@functools.lru_cache(maxsize=_PLACES_MAX)
def _turn(path: Path) -> threading.Lock:
    """Return the lock of a socket, where but two can wait: a VM may have many disks."""
    del path
    return threading.Lock()
