"""What a restore that takes what it can get could not get."""

import threading
from dataclasses import dataclass

from sendense.core.errors import SendenseError


@dataclass(frozen=True, slots=True)
class Lost:
    """Bytes of a disk that cannot be read, and are zeros in what was restored."""

    start: int
    length: int
    reason: str


class Salvage:
    """Takes note of what is lost. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reasons: dict[tuple[int, int], str] = {}

    def add(self, start: int, length: int, error: SendenseError) -> None:
        """Take note of some bytes; the same ones may be told again."""
        with self._lock:
            self._reasons.setdefault((start, length), error.message)

    def list(self) -> list[Lost]:
        """Return what is lost in disk order; neighbours with one reason are one."""
        found: list[Lost] = []
        with self._lock:
            told = sorted(self._reasons.items())
        for (start, length), reason in told:
            last = found[-1] if found else None
            if last and last.reason == reason and last.start + last.length == start:
                found[-1] = Lost(last.start, last.length + length, reason)
            else:
                found.append(Lost(start, length, reason))
        return found
