"""Turns runs into medians, spreads and ratios."""

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.contenders import Figures
from sendense.core import units

FOLDERS = re.compile(r"(?<![^\s=:])/(?:[\w.-]+/)+")  # absolute ones, differing from run to run
RATIO_SMALL = 0.1  # below, two decimals say too little


@dataclass(frozen=True)
class Row:
    """All runs of one contender."""

    name: str
    shown: str
    runs: tuple[Figures, ...]

    @property
    def seconds(self) -> float:
        """The median of the wall times."""
        return statistics.median(run.seconds for run in self.runs)

    @property
    def command(self) -> str:
        """What was run, without the folders of this machine."""
        return FOLDERS.sub("", self.shown)

    def to_json(self) -> dict[str, Any]:
        """Return the row for programs."""
        return {
            "name": self.name,
            "command": self.command,
            "seconds": [round(run.seconds, 3) for run in self.runs],
            "seconds_median": round(self.seconds, 3),
            "cpu_median": round(statistics.median(run.cpu for run in self.runs), 3),
            "memory_max": max(run.memory for run in self.runs),
            "counted": dict(self.runs[-1].counted),
        }


@dataclass(frozen=True)
class Table:
    """A comparison: every row is set against the row `ours`. The key names it in goals."""

    key: str
    title: str
    rows: tuple[Row, ...]
    ours: str

    def find(self, name: str) -> Row:
        """Return a row."""
        return next(row for row in self.rows if row.name == name)

    def to_lines(self) -> list[str]:
        """Return the table as Markdown."""
        ours = self.find(self.ours).seconds
        lines = [
            f"### {self.title}",
            "",
            "| | seconds (lowest to highest) | CPU s | ours is | read | stored | RssAnon |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in self.rows:
            times = [run.seconds for run in row.runs]
            cpu = statistics.median(run.cpu for run in row.runs)
            ratio = "" if row.name == self.ours else f"{row.seconds / ours:.2f}x as fast"
            counted = row.runs[-1].counted
            memory = max(run.memory for run in row.runs)
            lines.append(
                f"| {row.name} | {row.seconds:.2f} ({min(times):.2f} to {max(times):.2f}) "
                f"| {cpu:.2f} | {ratio} | {_size(counted, 'bytes_read')} "
                f"| {_size(counted, 'bytes_stored')} "
                f"| {units.format_size(memory) if memory else ''} |"
            )
        commands = (f"- {row.name}: `{row.command}`" for row in self.rows if row.name != self.ours)
        return [*lines, "", f"- {self.ours}: {self.find(self.ours).shown}", *commands, ""]

    def to_json(self) -> dict[str, Any]:
        """Return the table for programs."""
        return {"key": self.key, "title": self.title, "rows": [row.to_json() for row in self.rows]}


@dataclass(frozen=True)
class Found:
    """Something that must be reached and what was found of it.

    Attributes:
        beside: what it is compared with; "" where the reach is an absolute limit.
        is_cost: whether less than the reach is good, instead of more.
        unit: of both; "x" for a ratio.
    """

    figure: str
    beside: str
    reach: float
    found: float
    is_cost: bool = False
    unit: str = "x"

    @property
    def held(self) -> bool:
        """Whether it was reached."""
        return self.found <= self.reach if self.is_cost else self.found >= self.reach

    def to_line(self) -> str:
        """Return a row of a Markdown table."""
        bound = "at most " if self.is_cost else ""
        held = "reached" if self.held else "**not reached**"
        reach, found = (self._tell(value) for value in (self.reach, self.found))
        return f"| {' | '.join([self.figure, self.beside, bound + reach, found, held])} |"

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {**asdict(self), "held": self.held}

    def _tell(self, value: float) -> str:
        if self.unit != "x":
            return f"{value:.3g} {self.unit}"
        return f"{value:.2f}x" if value >= RATIO_SMALL else f"{value:.2g}x"


def _size(counted: Mapping[str, int], key: str) -> str:
    return units.format_size(counted[key]) if key in counted else ""


def measure(contenders: Sequence[Any], *, rounds: int, note: Any) -> tuple[Row, ...]:
    """Run all contenders in turn, so many rounds, and return their rows."""
    runs: dict[str, list[Figures]] = {one.name: [] for one in contenders}
    for number in range(rounds):
        for one in contenders:
            note(f"round {number + 1} of {rounds}: {one.name}")
            one.prepare()
            runs[one.name].append(one.run())
    return tuple(Row(one.name, one.shown, tuple(runs[one.name])) for one in contenders)
