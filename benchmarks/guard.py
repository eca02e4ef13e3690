"""`./dev bench --guard`: has anything become slower than in the results of the tree?

Machines differ and so do days: what is compared are ratios to a limit that is measured in the same
run. Only Sendense and these limits run.

What one processor does twice as fast as another, hashing or compressing, moves ratios too: save
results on the machine that the guard runs on.

Each limit is a program of ours with a process for each core, bound by what the figure is bound by:
the cores, or the NBD server where a disk is read and nothing new found. To nbdcopy and qemu-img,
whose seconds follow the memory and the disk, the same tree on the same machine had ratios of 0.53
to 1.11 within two hours.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import content, machine, results, scale, suite
from benchmarks.scale import Scale
from benchmarks.suite import AGAIN, FULL, INCREMENTALS, OURS, RESTORE, VERIFY, Suite

LOSS_MAX = 0.15  # above what the medians of a quiet machine vary
LIMITS = {  # of each figure, by name; it runs in alternation with what it is the limit of
    figure: f"limit: {limit}"
    for figure, limit in {
        FULL: suite.LIMIT_FULL,
        AGAIN: suite.LIMIT_AGAIN,
        RESTORE: suite.LIMIT_VERIFY,
        VERIFY: suite.LIMIT_VERIFY,
        **dict.fromkeys(INCREMENTALS, suite.LIMIT_FULL),
    }.items()
}


@dataclass(frozen=True)
class Verdict:
    """A figure then and now, each the limit's seconds divided by ours: more is faster."""

    figure: str
    committed: float
    fresh: float

    @property
    def change(self) -> float:
        """What was gained, or lost where it is negative, as a share."""
        return self.fresh / self.committed - 1

    @property
    def lost(self) -> bool:
        """Whether it has become slower by more than chance explains."""
        return self.change < -LOSS_MAX

    def to_line(self) -> str:
        """Return a row of a Markdown table."""
        told = "**slower**" if self.lost else "held"
        ratios = f"{self.committed:.2f}x | {self.fresh:.2f}x"
        return f"| {self.figure} | {LIMITS[self.figure]} | {ratios} | {self.change:+.0%} | {told} |"


def list_ratios(tables: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return for each figure of tables (as `Table.to_json` tells them) the limit's time by ours.

    It is the median of the rounds' ratios: the two that ran one after the other had the same
    machine, whatever else ran on it in other rounds.
    """
    seconds = {
        (table["key"], row["name"]): row["seconds"] for table in tables for row in table["rows"]
    }
    ratios = {}
    for figure, limit in LIMITS.items():
        if (figure, limit) in seconds and (figure, OURS) in seconds:
            pairs = zip(seconds[figure, limit], seconds[figure, OURS], strict=True)
            ratios[figure] = statistics.median(other / one for other, one in pairs)
    return ratios


def compare(committed: Mapping[str, float], fresh: Mapping[str, float]) -> list[Verdict]:
    """Decide on each figure that was measured both times."""
    return [
        Verdict(figure, committed[figure], fresh[figure])
        for figure in LIMITS
        if figure in committed and figure in fresh
    ]


def is_wanted(table: str, contender: str) -> bool:
    """Return whether a contender has to run."""
    return contender in {OURS, LIMITS.get(table)}


def run(measured: Scale) -> None:
    """Measure, compare with the same scale's results, print; exits with 1 where one is lost."""
    known = results.load(results.FIGURES, measured.name)
    if known is None:
        sys.exit(
            f"{results.FIGURES.name} holds no results of a {measured.name} run: "
            "save them by `./dev bench --save`, with --quick for a quick one"
        )
    if known["scale"]["content_bytes"] != measured.content_bytes:
        sys.exit(f"{results.FIGURES.name} is of another amount of data: save a new run")
    image = content.make_image(scale.CACHE, content_bytes=measured.content_bytes)
    if known["image"].get("made_of") != content.describe_image(image):
        print("The results were found with other versions of the packages.", file=sys.stderr)
    if known["machine"]["processor"] != machine.describe().processor:
        print("The results were found on another processor: ratios differ.", file=sys.stderr)
    with scale.work_folder() as folder:
        compared = Suite(folder, image, measured, wanted=is_wanted)
        tables = [table.to_json() for table in compared.list_tables()]
    verdicts = compare(list_ratios(known["tables"]), list_ratios(tables))
    print("\n".join(to_lines(verdicts, date=known["machine"]["date"])))
    if any(one.lost for one in verdicts):
        sys.exit(1)


def to_lines(verdicts: Sequence[Verdict], *, date: str) -> list[str]:
    """Return the comparison as Markdown."""
    return [
        f"| figure | limit | {date} | now | change | |",
        "| --- | --- | --- | --- | --- | --- |",
        *(one.to_line() for one in verdicts),
    ]
