"""What a transfer tells about itself while it runs: counters, rate, time left."""

import threading
from collections import deque
from dataclasses import dataclass
from enum import StrEnum

from sendense.core.clock import Clock, SystemClock

WINDOW_SECONDS = 10.0  # smooth enough to read, quick enough to show a stalled source
SAMPLE_SECONDS = 0.5  # at most 21 samples are kept


class Phase(StrEnum):
    """What a transfer is doing."""

    WAITING = "waiting"
    LISTING = "listing"  # asking the source which extents are worth reading
    SAMPLING = "sampling"  # comparing unchanged chunks with the parent
    TRANSFERRING = "transferring"
    FINISHING = "finishing"


@dataclass(frozen=True, slots=True)
class ProgressSnapshot:
    """The counters at one moment.

    Attributes:
        bytes_total: bytes that will be read from the source (of a restore: written to the target);
            0 until known.
        bytes_read: of those, how many are done, including what an earlier attempt did.
        bytes_new: plain bytes of chunks that this transfer stored.
        bytes_stored: what those take in the repository, compressed.
        bytes_deduplicated: plain bytes read that the repository had already.
        bytes_zero: plain bytes read that were zero after all.
        rate: bytes per second over the last `WINDOW_SECONDS`, 0.0 where nothing is known yet.
        seconds_left: at that rate, None where it cannot be told.
    """

    phase: Phase
    bytes_total: int
    bytes_read: int
    bytes_new: int
    bytes_stored: int
    bytes_deduplicated: int
    bytes_zero: int
    rate: float
    seconds_left: float | None

    @property
    def fraction(self) -> float:
        """How much is done, 0.0 to 1.0."""
        if self.bytes_total > 0:
            return min(1.0, self.bytes_read / self.bytes_total)
        return 1.0 if self.phase is Phase.FINISHING else 0.0


class Progress:
    """Thread-safe counters of one transfer."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._phase = Phase.WAITING
        self._total = 0
        self._read = 0
        self._new = 0
        self._stored = 0
        self._deduplicated = 0
        self._zero = 0
        self._samples: deque[tuple[float, int]] = deque()

    def enter(self, phase: Phase) -> None:
        """Say what the transfer does from now on."""
        with self._lock:
            self._phase = phase

    def start(
        self, *, bytes_total: int, bytes_done: int = 0, bytes_new: int = 0, bytes_stored: int = 0
    ) -> None:
        """Begin to count towards a total, of which an earlier attempt did `bytes_done`.

        What that attempt read and did not store counts as deduplicated, its zeros included.
        """
        assert 0 <= bytes_done <= bytes_total, f"{bytes_done} of {bytes_total} bytes done"
        with self._lock:
            self._total = bytes_total
            self._read = bytes_done
            self._new, self._stored = bytes_new, bytes_stored
            self._deduplicated = max(0, bytes_done - bytes_new)
            self._zero = 0
            self._samples.clear()
            self._samples.append((self._clock.monotonic(), bytes_done))

    def add(
        self, *, read: int = 0, new: int = 0, stored: int = 0, deduplicated: int = 0, zero: int = 0
    ) -> None:
        """Count bytes."""
        with self._lock:
            self._read += read
            self._new += new
            self._stored += stored
            self._deduplicated += deduplicated
            self._zero += zero
            self._sample(self._clock.monotonic())

    def snapshot(self) -> ProgressSnapshot:
        """Return the counters as they stand together at this moment."""
        with self._lock:
            now = self._clock.monotonic()
            self._sample(now)
            rate = self._rate(now)
            left = max(0, self._total - self._read)
            seconds_left = left / rate if rate > 0 else None
            return ProgressSnapshot(
                phase=self._phase,
                bytes_total=self._total,
                bytes_read=self._read,
                bytes_new=self._new,
                bytes_stored=self._stored,
                bytes_deduplicated=self._deduplicated,
                bytes_zero=self._zero,
                rate=rate,
                seconds_left=seconds_left,
            )

    def _sample(self, now: float) -> None:
        if not self._samples or now - self._samples[-1][0] >= SAMPLE_SECONDS:
            self._samples.append((now, self._read))
        # One sample from before the window stays: the rate needs a point to start from.
        while len(self._samples) > 1 and now - self._samples[1][0] >= WINDOW_SECONDS:
            self._samples.popleft()

    def _rate(self, now: float) -> float:
        then, done = self._samples[0]
        seconds = now - then
        return (self._read - done) / seconds if seconds > 0 else 0.0
