"""Time as an argument."""

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Where the code gets its time from."""

    def now(self) -> datetime:
        """Return the wall clock's time in UTC; it may jump."""
        ...

    def monotonic(self) -> float:
        """Return seconds from an arbitrary start; never goes back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> datetime:
        """Return the wall clock's time in UTC."""
        return datetime.now(tz=UTC)

    def monotonic(self) -> float:
        """Return the machine's monotonic seconds."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Block this thread."""
        time.sleep(seconds)


class ManualClock:
    """A clock that moves only when told to, or when somebody sleeps on it. For tests."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._elapsed_seconds = 0.0

    def now(self) -> datetime:
        """Return the start plus all that has been advanced."""
        return self._start + timedelta(seconds=self._elapsed_seconds)

    def monotonic(self) -> float:
        """Return the seconds advanced so far."""
        return self._elapsed_seconds

    def sleep(self, seconds: float) -> None:
        """Advance at once instead of waiting."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Move the time on; time never goes back."""
        assert seconds >= 0, f"cannot advance by {seconds} seconds"
        self._elapsed_seconds += seconds


def format_utc(moment: datetime) -> str:
    """Return ISO 8601 in UTC with microseconds: `2026-01-01T00:00:00.000000Z`."""
    in_utc = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    return in_utc.isoformat("T", "microseconds")[: -len("+00:00")] + "Z"


def parse_utc(text: str) -> datetime:
    """Read what `format_utc` wrote. Raises ValueError for anything that is not ISO 8601."""
    return datetime.fromisoformat(text).astimezone(UTC)
