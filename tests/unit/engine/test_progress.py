import pytest

from sendense.core.clock import ManualClock
from sendense.engine.progress import Phase, Progress


def test_nothing_is_known_before_the_start() -> None:
    shown = Progress(ManualClock()).snapshot()
    assert (shown.phase, shown.fraction, shown.rate) == (Phase.WAITING, 0.0, 0.0)
    assert shown.seconds_left is None


def test_rate_and_time_left_follow_what_was_read() -> None:
    clock = ManualClock()
    progress = Progress(clock)
    progress.start(bytes_total=1000)
    for _ in range(4):
        clock.advance(1)
        progress.add(read=100, new=60, stored=30, deduplicated=40)
    shown = progress.snapshot()
    assert shown.rate == pytest.approx(100)
    assert shown.seconds_left == pytest.approx(6)
    assert shown.fraction == pytest.approx(0.4)
    assert (shown.bytes_new, shown.bytes_stored, shown.bytes_deduplicated) == (240, 120, 160)


def test_the_rate_forgets_what_is_older_than_its_window() -> None:
    clock = ManualClock()
    progress = Progress(clock)
    progress.start(bytes_total=10**9)
    for _ in range(20):
        clock.advance(1)
        progress.add(read=1_000_000)
    for _ in range(15):
        clock.advance(1)
        progress.add(read=10)
    assert progress.snapshot().rate == pytest.approx(10)


def test_a_source_that_stalls_shows_a_falling_rate() -> None:
    clock = ManualClock()
    progress = Progress(clock)
    progress.start(bytes_total=1000)
    clock.advance(1)
    progress.add(read=100)
    clock.advance(30)
    shown = progress.snapshot()
    assert shown.rate < 10
    clock.advance(30)
    assert progress.snapshot().rate == 0
    assert progress.snapshot().seconds_left is None


def test_what_an_earlier_attempt_did_counts_as_done_but_not_as_rate() -> None:
    clock = ManualClock()
    progress = Progress(clock)
    progress.start(bytes_total=1000, bytes_done=900)
    clock.advance(1)
    progress.add(read=10)
    shown = progress.snapshot()
    assert shown.bytes_read == 910
    assert shown.rate == pytest.approx(10)


def test_a_disk_without_a_byte_to_read_is_done_when_it_finishes() -> None:
    progress = Progress(ManualClock())
    progress.start(bytes_total=0)
    progress.enter(Phase.TRANSFERRING)
    assert progress.snapshot().fraction == 0.0
    progress.enter(Phase.FINISHING)
    assert progress.snapshot().fraction == 1.0
