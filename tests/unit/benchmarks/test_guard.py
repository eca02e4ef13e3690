"""What the guard of the benchmarks calls a loss."""

import pytest

from benchmarks import guard, suite
from benchmarks.contenders import Figures
from benchmarks.guard import Verdict
from benchmarks.report import Row, Table
from benchmarks.suite import FULL, OURS, RESTORE, VERIFY

LIMIT = guard.LIMITS[FULL]


def make_table(key: str, **seconds: list[float]) -> Table:
    named = {"ours": OURS, "limit": guard.LIMITS.get(key, ""), "other": "restic"}
    rows = tuple(
        Row(named[who], "command", tuple(Figures(one, 0.0, 0, {}) for one in times))
        for who, times in seconds.items()
    )
    return Table(key, key.title(), rows, OURS)


def test_a_figure_is_the_median_of_the_rounds_ratios() -> None:
    table = make_table(FULL, ours=[10.0, 40.0, 10.0], limit=[8.0, 36.0, 7.0], other=[1.0, 1.0, 1.0])
    assert guard.list_ratios([table.to_json()]) == {FULL: pytest.approx(0.8)}


def test_tables_without_a_limit_have_no_figure() -> None:
    unknown = make_table("of no interest", ours=[1.0], other=[2.0]).to_json()
    unlimited = make_table(FULL, ours=[1.0], other=[2.0]).to_json()
    assert guard.list_ratios([unknown, unlimited]) == {}


@pytest.mark.parametrize(
    ("fresh", "lost"), [(0.80, False), (0.69, False), (0.67, True), (0.1, True), (2.0, False)]
)
def test_a_loss_of_more_than_15_percent_is_one(
    fresh: float,
    lost: bool,  # noqa: FBT001 - a parameter
) -> None:
    (verdict,) = guard.compare({FULL: 0.8}, {FULL: fresh})
    assert verdict.lost is lost
    assert ("**slower**" in verdict.to_line()) is lost


def test_a_slower_machine_alone_is_no_loss() -> None:
    then = make_table(FULL, ours=[10.0, 10.0], limit=[8.0, 8.0]).to_json()
    now = make_table(FULL, ours=[30.0, 90.0], limit=[24.0, 72.0]).to_json()
    (verdict,) = guard.compare(guard.list_ratios([then]), guard.list_ratios([now]))
    assert verdict.change == pytest.approx(0.0)


def test_only_what_was_measured_both_times_is_compared() -> None:
    verdicts = guard.compare({FULL: 0.8, VERIFY: 0.9}, {VERIFY: 0.9, RESTORE: 0.7})
    assert verdicts == [Verdict(VERIFY, 0.9, 0.9)]


def test_every_comparison_has_its_limit_and_nothing_else_runs() -> None:
    assert set(guard.LIMITS) == {*suite.PLOTTED, *suite.INCREMENTALS}
    assert guard.is_wanted(FULL, OURS)
    assert guard.is_wanted(FULL, LIMIT)
    assert not guard.is_wanted(FULL, "restic")
    assert not guard.is_wanted(FULL, "nbdcopy to null")
    assert not guard.is_wanted(RESTORE, LIMIT)


def test_the_lines_tell_both_dates_and_the_change() -> None:
    lines = guard.to_lines([Verdict(FULL, 0.8, 0.6)], date="2026-11-22")
    assert lines[0] == "| figure | limit | 2026-11-22 | now | change | |"
    assert lines[2] == f"| full | {LIMIT} | 0.80x | 0.60x | -25% | **slower** |"
