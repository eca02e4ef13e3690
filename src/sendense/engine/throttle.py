"""Reads a disk slower while the guest's own writes take longer than they may.

Once in `POLL_SECONDS` the source is asked what the guest's writes to the disk took on average since
the last time. `decide` makes the pace of it: halved at each look above the limit, down to
`RATE_MIN`; half as fast again after each `CALM_SECONDS` below it. Slowing is abrupt and recovering
is slow, as in TCP: it is the guest that has the right of way.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from sendense.connectors.impact import ImpactLimit, Reaction
from sendense.core import units
from sendense.core.clock import Clock
from sendense.core.errors import Conflict, Denied, NotFound, Unavailable
from sendense.engine.worklist import Batch

POLL_SECONDS = 1.0  # a guest that writes at all has written by then; a look costs milliseconds
WAIT_SECONDS_MIN = 0.001  # what is less is owed on: no system waits so briefly
CALM_SECONDS = 5.0  # a moment of rest between two bursts is no calm
GIVE_UP_SECONDS = 30.0  # as long as guests wait for a disk before they call it dead
# Never slower: the snapshot grows with all that the guest overwrites, and must go some day. A
# hundredth of what a plain SSD reads; a TiB takes three days.
RATE_MIN = 4.0 * units.MIB
FAILED_SHARE_NOTABLE = 0.1  # a platform that was busy now and then is no news
_SLOWER, _FASTER = 0.5, 1.5


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast to read, and what it follows from.

    Attributes:
        rate: bytes per second, or None for as fast as can be.
        rate_full: what was read before it was slowed; at that the limit on the rate falls away.
        over_since: when the first of the last looks in a row was above the limit, or None.
        calm_since: when the first of those below it was, or when the pace was last raised.
    """

    rate: float | None = None
    rate_full: float = 0.0
    over_since: float | None = None
    calm_since: float | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen since the look before.

    Attributes:
        now: monotonic seconds.
        latency: mean seconds of the guest's writes, or None where it wrote nothing.
        rate: bytes per second that were read.
    """

    now: float
    latency: float | None
    rate: float


def decide(pace: Pace, look: Look, *, latency_max: float) -> Pace:
    """Return the pace after a look."""
    if look.latency is not None and look.latency > latency_max:
        # Half of what is really read: half of a bound that is not reached would change nothing.
        rate = look.rate if pace.rate is None else min(pace.rate, look.rate)
        return Pace(
            rate=max(RATE_MIN, rate * _SLOWER),
            rate_full=max(pace.rate_full, look.rate),
            over_since=look.now if pace.over_since is None else pace.over_since,
        )
    if pace.rate is None:
        return Pace()
    calm_since = look.now if pace.calm_since is None else pace.calm_since
    if look.now - calm_since < CALM_SECONDS:
        return replace(pace, over_since=None, calm_since=calm_since)
    rate = pace.rate * _FASTER
    if rate >= pace.rate_full:
        return Pace()
    return Pace(rate, pace.rate_full, calm_since=look.now)


def is_hopeless(pace: Pace, *, now: float) -> bool:
    """Whether reading at the least for long has not helped the guest."""
    slowest = pace.rate is not None and pace.rate <= RATE_MIN
    return slowest and pace.over_since is not None and now - pace.over_since >= GIVE_UP_SECONDS


class Throttle:
    """Holds back what is to be read of one disk. For one thread at a time.

    Args:
        limit: what the backup may cost the guest.
        clock: for the monotonic time.
        wait: waits so many seconds, or raises where the transfer was cancelled.
        measure: `Measuring.measure_write_latency`; asked only where the limit names a latency.
        tell: called once with what a person may want to know while it happens.
    """

    def __init__(
        self,
        limit: ImpactLimit,
        *,
        clock: Clock,
        wait: Callable[[float], None],
        measure: Callable[[], float | None],
        tell: Callable[[str], None],
    ) -> None:
        self._limit = limit
        self._clock = clock
        self._wait = wait
        self._measure = measure
        self._tell = tell
        self._pace = Pace()
        self._owed = 0.0  # bytes handed out beyond what the rate allowed up to now
        self._settled_at = clock.monotonic()
        self._looked_at: float | None = None
        self._bytes_since = 0
        self._slow_seconds = 0.0
        self._latency_worst = 0.0
        self._looks = self._looks_failed = 0
        self._failure = ""

    @property
    def rate(self) -> float | None:
        """Bytes per second that may be read now, or None for as many as can be."""
        rates = [self._limit.read_bytes_per_second_max, self._pace.rate]
        return min((rate for rate in rates if rate is not None), default=None)

    def hold_back(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, each when it may be read.

        Raises Conflict, kind `write-latency-exceeded`, and what `wait` and `measure` raise but for
        a platform that does not answer, which changes nothing.
        """
        for batch in batches:
            self._look_if_due()
            while (seconds := self._seconds_to_wait()) > WAIT_SECONDS_MIN:
                self._wait(min(seconds, POLL_SECONDS))
                self._look_if_due()
            self._owed += batch.bytes_to_read
            self._bytes_since += batch.bytes_to_read
            yield batch

    def list_notes(self) -> list[str]:
        """Return what the user should know afterwards; nothing where nothing happened."""
        notes = []
        if self._latency_worst:
            seconds = self._slow_seconds + self._seconds_slow_since_look()
            notes.append(
                f"read slower for {seconds:.0f} s, since the guest's writes took up to"
                f" {_show(self._latency_worst)}; the limit is {self._shown_limit}"
            )
        if self._looks_failed > self._looks * FAILED_SHARE_NOTABLE:
            notes.append(
                f"{self._looks_failed} of {self._looks} times it could not be measured what the"
                f" guest's writes take, and nothing was slowed for it: {self._failure}"
            )
        return notes

    @property
    def _shown_limit(self) -> str:
        return _show(self._limit.write_latency_seconds_max or 0.0)

    def _seconds_to_wait(self) -> float:
        now, rate = self._clock.monotonic(), self.rate
        if rate is None:
            self._owed = 0.0
        else:
            self._owed = max(0.0, self._owed - rate * (now - self._settled_at))
        self._settled_at = now
        return 0.0 if rate is None else self._owed / rate

    def _seconds_slow_since_look(self) -> float:
        if self._pace.rate is None or self._looked_at is None:
            return 0.0
        return self._clock.monotonic() - self._looked_at

    def _look_if_due(self) -> None:
        latency_max = self._limit.write_latency_seconds_max
        if latency_max is None:
            return
        now, before = self._clock.monotonic(), self._looked_at
        seconds = 0.0 if before is None else now - before
        if before is not None and seconds < POLL_SECONDS:
            return
        self._slow_seconds += self._seconds_slow_since_look()
        rate = self._bytes_since / seconds if seconds else 0.0
        self._looked_at, self._bytes_since = now, 0
        self._looks += 1
        try:
            latency = self._measure()
        except (Denied, NotFound, Unavailable) as error:
            # No reason to fail a backup, nor to change its pace; the notes tell of it.
            self._looks_failed += 1
            self._failure = error.message
            return
        self._follow(Look(now, latency, rate), latency_max)

    def _follow(self, look: Look, latency_max: float) -> None:
        was_free = self._pace.rate is None
        self._pace = decide(self._pace, look, latency_max=latency_max)
        if self._pace.over_since is None:
            return
        latency = look.latency or 0.0
        if was_free and not self._latency_worst:
            self._tell(
                f"read slower from now on: the guest's writes take {_show(latency)}, and the limit"
                f" is {self._shown_limit}"
            )
        self._latency_worst = max(self._latency_worst, latency)
        if self._limit.reaction is Reaction.GIVE_UP and is_hopeless(self._pace, now=look.now):
            raise Conflict(
                f"the guest's writes took more than {self._shown_limit} for {GIVE_UP_SECONDS:g} s,"
                f" {_show(latency)} at last, although its disk was read at no more than"
                f" {units.format_size(int(RATE_MIN))} per second in the end",
                kind="write-latency-exceeded",
                hint="back up when the guest is less busy, raise write_latency_ms_max of the source"
                " or set its on_write_latency to throttle",
            )


def _show(seconds: float) -> str:
    """Return a latency for people, with the digits that a small limit needs."""
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.1f} s"
