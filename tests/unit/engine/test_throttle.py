"""The decision about the pace as a table, and what the throttle does with it in a clock's time."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import pytest

from sendense.connectors.impact import ImpactLimit, Reaction
from sendense.core.clock import ManualClock
from sendense.core.errors import Cancelled, Conflict, Unavailable
from sendense.core.units import MIB
from sendense.engine import throttle
from sendense.engine.throttle import CALM_SECONDS, GIVE_UP_SECONDS, RATE_MIN, Look, Pace, Throttle
from sendense.engine.worklist import Batch

LIMIT = 0.02
FAST = 200.0 * MIB
BATCH = Batch((), 2 * MIB)


def decide(pace: Pace, now: float, latency: float | None, rate: float = FAST) -> Pace:
    return throttle.decide(pace, Look(now, latency, rate), latency_max=LIMIT)


@pytest.mark.parametrize("latency", [None, 0.0, LIMIT])
def test_at_the_limit_nothing_is_slowed(latency: float | None) -> None:
    assert decide(Pace(), 7, latency) == Pace()


def test_above_the_limit_half_of_what_was_read_is_read() -> None:
    assert decide(Pace(), 7, 0.021) == Pace(FAST / 2, FAST, over_since=7)


def test_each_look_above_the_limit_halves_again_down_to_the_floor() -> None:
    pace, rates = Pace(), []
    rate = FAST
    for now in range(8):
        pace = decide(pace, now, 1.0, rate)
        assert pace.rate is not None
        rate = pace.rate
        rates.append(rate / MIB)
    assert rates == [100, 50, 25, 12.5, 6.25, 4, 4, 4]
    assert (pace.over_since, pace.rate_full) == (0, FAST)


def test_a_bound_that_was_not_reached_is_no_measure() -> None:
    pace = Pace(100.0 * MIB, FAST, over_since=1)
    assert decide(pace, 2, 1.0, 30.0 * MIB).rate == 15 * MIB


def test_calm_has_to_last_before_the_pace_is_raised() -> None:
    slow = Pace(10.0 * MIB, FAST, over_since=1)
    calm = decide(slow, 10, 0.001)
    assert calm == Pace(10.0 * MIB, FAST, calm_since=10)
    assert decide(calm, 10 + CALM_SECONDS - 0.1, None) == calm
    raised = decide(calm, 10 + CALM_SECONDS, 0.001)
    assert raised == Pace(15.0 * MIB, FAST, calm_since=10 + CALM_SECONDS)
    assert decide(raised, 11 + CALM_SECONDS, 0.001) == raised


def test_one_look_above_the_limit_ends_the_calm() -> None:
    calm = Pace(100.0 * MIB, FAST, calm_since=10)
    assert decide(calm, 12, 0.1) == Pace(50.0 * MIB, FAST, over_since=12)


def test_at_the_rate_of_the_beginning_there_is_no_bound_any_more() -> None:
    calm = Pace(0.7 * FAST, FAST, calm_since=10)
    assert decide(calm, 10 + CALM_SECONDS, None) == Pace()


@pytest.mark.parametrize(
    ("pace", "hopeless"),
    [
        (Pace(RATE_MIN, FAST, over_since=10), True),
        (Pace(RATE_MIN, FAST, over_since=10.1), False),
        (Pace(RATE_MIN, FAST, calm_since=10), False),
        (Pace(2 * RATE_MIN, FAST, over_since=10), False),
        (Pace(), False),
    ],
)
def test_hopeless_is_who_was_too_slow_for_long_at_the_floor(pace: Pace, *, hopeless: bool) -> None:
    assert throttle.is_hopeless(pace, now=10 + GIVE_UP_SECONDS) is hopeless


@dataclass
class Bench:
    """A throttle in a clock that moves only by its waiting, and by reading at 200 MiB/s."""

    limit: ImpactLimit
    measure: Callable[[], float | None] = lambda: None
    clock: ManualClock = field(default_factory=ManualClock)
    told: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.throttle = Throttle(
            self.limit,
            clock=self.clock,
            wait=self.wait,
            measure=self.measure,
            tell=self.told.append,
        )

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.clock.advance(seconds)

    def read(self, count: int) -> float:
        """Read so many batches, and return the seconds that it took."""
        began = self.clock.monotonic()
        for one in self.throttle.hold_back(self._batches(count)):
            self.clock.advance(one.bytes_to_read / FAST)
        return self.clock.monotonic() - began

    @staticmethod
    def _batches(count: int) -> Iterable[Batch]:
        return (BATCH for _ in range(count))


def test_without_a_limit_nobody_waits_or_asks() -> None:
    def measure() -> float | None:
        raise AssertionError("asked")

    bench = Bench(ImpactLimit(), measure)
    assert bench.read(1000) == pytest.approx(10)
    assert (bench.waits, bench.throttle.rate, bench.throttle.list_notes()) == ([], None, [])


def test_a_limit_on_the_rate_is_kept_and_no_burst_follows_a_pause() -> None:
    bench = Bench(ImpactLimit(read_bytes_per_second_max=10 * MIB))
    assert bench.read(100) == pytest.approx(20, rel=0.02)
    bench.clock.advance(100)
    assert bench.read(100) == pytest.approx(20, rel=0.02)
    assert bench.throttle.list_notes() == []


def test_a_guest_that_is_not_slow_costs_nothing() -> None:
    bench = Bench(ImpactLimit(LIMIT), lambda: LIMIT / 2)
    assert bench.read(1000) == pytest.approx(10)
    assert (bench.told, bench.throttle.list_notes()) == ([], [])


def test_a_slow_guest_is_read_slower_until_it_is_quick_again() -> None:
    latencies: Iterator[float | None] = iter([None, *[0.05] * 3, 0.12, *[0.001] * 200])
    bench = Bench(ImpactLimit(LIMIT), lambda: next(latencies))
    bench.read(2500)
    assert bench.throttle.rate is None
    assert bench.told == [
        "read slower from now on: the guest's writes take 50 ms, and the limit is 20 ms"
    ]
    (note,) = bench.throttle.list_notes()
    assert "since the guest's writes took up to 120 ms; the limit is 20 ms" in note
    assert bench.read(1000) == pytest.approx(10)
    assert bench.throttle.list_notes() == [note]


def test_a_guest_that_stays_slow_is_read_at_the_floor_and_never_fails() -> None:
    bench = Bench(ImpactLimit(LIMIT), lambda: 1.5)
    bench.read(300)
    assert bench.throttle.rate == RATE_MIN
    assert bench.read(200) == pytest.approx(100, rel=0.02)
    assert "the guest's writes took up to 1.5 s" in bench.throttle.list_notes()[0]
    assert max(bench.waits) <= throttle.POLL_SECONDS


def test_the_lower_of_both_limits_counts() -> None:
    bench = Bench(ImpactLimit(LIMIT, read_bytes_per_second_max=2 * MIB), lambda: 1.0)
    bench.read(20)
    assert bench.throttle.rate == 2 * MIB


def test_who_shall_give_up_does_where_slowness_did_not_help() -> None:
    bench = Bench(ImpactLimit(LIMIT, Reaction.GIVE_UP), lambda: 0.0345)
    with pytest.raises(Conflict, match=r"34\.5 ms at last") as caught:
        bench.read(10_000)
    assert caught.value.kind == "write-latency-exceeded"
    assert "on_write_latency" in (caught.value.hint or "")
    assert GIVE_UP_SECONDS <= bench.clock.monotonic() <= GIVE_UP_SECONDS + 3


def test_who_shall_give_up_goes_on_with_a_guest_that_is_slow_now_and_then() -> None:
    moments = iter(range(100_000))
    bench = Bench(
        ImpactLimit(LIMIT, Reaction.GIVE_UP), lambda: 0.1 if next(moments) % 20 else 0.001
    )
    assert bench.read(400) > 2 * GIVE_UP_SECONDS


def test_a_platform_that_cannot_tell_changes_nothing_and_is_told_of() -> None:
    def measure() -> float | None:
        raise Unavailable("QEMU is busy")

    bench = Bench(ImpactLimit(LIMIT, Reaction.GIVE_UP), measure)
    assert bench.read(1000) == pytest.approx(10)
    (note,) = bench.throttle.list_notes()
    assert note.startswith("10 of 10 times it could not be measured")
    assert note.endswith("QEMU is busy")


def test_one_look_in_many_that_fails_is_no_news() -> None:
    looks = iter(range(1000))

    def measure() -> float | None:
        if next(looks) == 5:
            raise Unavailable("QEMU is busy")
        return None

    bench = Bench(ImpactLimit(LIMIT), measure)
    bench.read(2000)
    assert bench.throttle.list_notes() == []


def test_waiting_ends_as_soon_as_the_job_is_cancelled() -> None:
    bench = Bench(ImpactLimit(read_bytes_per_second_max=MIB))

    def wait(_seconds: float) -> None:
        raise Cancelled("stop")

    bench.throttle._wait = wait
    with pytest.raises(Cancelled):
        bench.read(2)
