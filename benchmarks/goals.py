"""What must be reached, as ratios within one run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks import suite
from benchmarks.report import Table
from benchmarks.suite import AGAIN, FULL, OURS, RESTORE, VERIFY, WIDE, WIDE_BYTES
from sendense.core import units

_LIMIT_FULL = f"limit: {suite.LIMIT_FULL}"
_LIMIT_VERIFY = f"limit: {suite.LIMIT_VERIFY}"
_NARROW, _WIDE = (WIDE.format(units.format_size(size)) for size in WIDE_BYTES)

WIDER_MAX = 1.2  # the same changes in a disk ten times as wide
STORED_MAX = 1.07


@dataclass(frozen=True)
class Goal:
    """A ratio of two rows' seconds, `other` to ours, that must not be below `reach`."""

    table: str
    other: str
    reach: float

    def find(self, tables: Mapping[str, Table]) -> float | None:
        """Return how many times as fast as the other we are; None where it did not run."""
        rows = {row.name: row for row in tables[self.table].rows}
        return rows[self.other].seconds / rows[OURS].seconds if self.other in rows else None


GOALS = (
    Goal(FULL, "borg", 2.5),
    Goal(FULL, "restic", 3.0),
    Goal(FULL, "qemu-img to qcow2, zstd", 3.0),
    Goal(FULL, _LIMIT_FULL, 0.85),
    Goal(AGAIN, "nbdcopy to null", 0.7),
    Goal(AGAIN, "restic", 2.5),
    Goal(RESTORE, "restic", 2.5),
    Goal(RESTORE, "borg", 4.0),
    Goal(RESTORE, "qemu-img from raw", 0.7),
    Goal(VERIFY, _LIMIT_VERIFY, 0.85),
    Goal(VERIFY, "restic", 2.0),
    Goal(_NARROW, _LIMIT_FULL, 1 / 1.3),
)


@dataclass(frozen=True)
class Found:
    """A goal and what was found of it: more than the reach is good, or less."""

    figure: str
    other: str
    reach: float
    ratio: float
    is_cost: bool = False

    @property
    def held(self) -> bool:
        """Whether it was reached."""
        return self.ratio <= self.reach if self.is_cost else self.ratio >= self.reach

    def to_line(self) -> str:
        """Return a row of a Markdown table."""
        bound = "at most " if self.is_cost else ""
        held = "reached" if self.held else "**not reached**"
        cells = [self.figure, self.other, f"{bound}{self.reach:.2f}x", f"{self.ratio:.2f}x", held]
        return f"| {' | '.join(cells)} |"


def compare(found: Sequence[Table]) -> list[Found]:
    """Return all goals of which something was found."""
    tables = {table.key: table for table in found}
    result = []
    for goal in GOALS:
        ratio = goal.find(tables)
        if ratio is not None:
            result.append(Found(goal.table, goal.other, goal.reach, ratio))
    wide = tables[_WIDE].find(OURS).seconds / tables[_NARROW].find(OURS).seconds
    result.append(Found(_WIDE, _NARROW, WIDER_MAX, wide, is_cost=True))
    stored = {row.name: row.runs[-1].counted.get("bytes_stored", 0) for row in tables[FULL].rows}
    if "borg" in stored:
        ratio = stored[OURS] / stored["borg"]
        result.append(Found("bytes stored", "borg", STORED_MAX, ratio, is_cost=True))
    return result


def to_lines(found: Sequence[Table]) -> list[str]:
    """Return the goals and what was found, as Markdown."""
    return [
        "### What must be reached",
        "",
        "| figure | beside | reach | found | |",
        "| --- | --- | --- | --- | --- |",
        *(one.to_line() for one in compare(found)),
        "",
    ]
