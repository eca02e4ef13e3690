from datetime import UTC, datetime, timedelta, timezone

import pytest

from sendense.core import clock


def test_a_manual_clock_stands_still_until_it_is_told_to_move() -> None:
    manual = clock.ManualClock()
    assert manual.now() == manual.now()
    assert manual.monotonic() == 0


def test_sleeping_on_a_manual_clock_moves_both_times_at_once() -> None:
    manual = clock.ManualClock(start=datetime(2026, 3, 1, tzinfo=UTC))
    manual.sleep(90)
    assert manual.now() == datetime(2026, 3, 1, 0, 1, 30, tzinfo=UTC)
    assert manual.monotonic() == 90


def test_a_manual_clock_never_goes_back() -> None:
    with pytest.raises(AssertionError):
        clock.ManualClock().advance(-1)


def test_the_system_clock_knows_its_zone_and_moves_on() -> None:
    system = clock.SystemClock()
    before = system.monotonic()
    system.sleep(0.001)
    assert system.monotonic() - before >= 0.001
    assert system.now().utcoffset() == timedelta(0)


def test_a_moment_survives_being_written_and_read() -> None:
    moment = datetime(2026, 7, 4, 12, 30, 15, 123456, tzinfo=UTC)
    text = clock.format_utc(moment)
    assert text == "2026-07-04T12:30:15.123456Z"
    assert clock.parse_utc(text) == moment


def test_moments_of_other_zones_are_written_in_utc() -> None:
    moment = datetime(2026, 7, 4, 12, tzinfo=timezone(timedelta(hours=2)))
    assert clock.format_utc(moment) == "2026-07-04T10:00:00.000000Z"


def test_text_that_is_no_moment_is_refused() -> None:
    with pytest.raises(ValueError, match="Invalid isoformat"):
        clock.parse_utc("yesterday")
