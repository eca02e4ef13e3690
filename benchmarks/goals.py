"""What must be reached, as ratios within one run. The absolute limits are in absolutes.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks import metadata, suite
from benchmarks.metadata import Added
from benchmarks.report import Found, Table
from benchmarks.suite import AGAIN, FULL, INCREMENTALS, OURS, RESTORE, VERIFY, WIDE_BYTES
from sendense.core import units

_LIMIT_FULL = f"limit: {suite.LIMIT_FULL}"
_LIMIT_VERIFY = f"limit: {suite.LIMIT_VERIFY}"
_NARROW, _WIDE = INCREMENTALS

WIDER_MAX = 1.2  # the same changes in a disk ten times as wide
STORED_MAX = 1.07
FLAT_LIST = "a flat list of its chunks"
METADATA_MAX = 0.1  # of a flat list, which most programs write anew for each backup
LEAF_MAX = 1.1  # of the bytes for each dirty leaf: in proportion to these, not to the disk


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


def compare(found: Sequence[Table]) -> list[Found]:
    """Return all goals of which something was found."""
    tables = {table.key: table for table in found}
    result = []
    for goal in GOALS:
        ratio = goal.find(tables)
        if ratio is not None:
            result.append(Found(goal.table, goal.other, goal.reach, ratio))
    narrow, wide = tables[_NARROW].find(OURS), tables[_WIDE].find(OURS)
    result.append(Found(_WIDE, _NARROW, WIDER_MAX, wide.seconds / narrow.seconds, is_cost=True))
    listed = metadata.flat_list_bytes(WIDE_BYTES[1])
    ratio = wide.runs[-1].counted["bytes_metadata"] / listed
    figure = f"metadata of that {_WIDE}"
    result.append(Found(figure, FLAT_LIST, METADATA_MAX, ratio, is_cost=True))
    stored = {row.name: row.runs[-1].counted.get("bytes_stored", 0) for row in tables[FULL].rows}
    if "borg" in stored:
        ratio = stored[OURS] / stored["borg"]
        result.append(Found("bytes stored", "borg", STORED_MAX, ratio, is_cost=True))
    return result


def compare_metadata(narrow: Added, wide: Added) -> list[Found]:
    """Return what holds of incrementals of a full disk: changes close together, and all over it."""
    listed = metadata.flat_list_bytes(metadata.SIZE)
    size = units.format_size(metadata.SIZE)
    figure = f"metadata of the same in {size} full of data"
    each = (wide.nodes / wide.leaves) / (narrow.nodes / narrow.leaves)
    spread = f"its bytes for each of {wide.leaves} dirty leaves"
    return [
        Found(figure, FLAT_LIST, METADATA_MAX, narrow.every / listed, is_cost=True),
        Found(spread, f"with {narrow.leaves} dirty leaves", LEAF_MAX, each, is_cost=True),
    ]


def to_lines(found: Sequence[Found]) -> list[str]:
    """Return the goals and what was found, as Markdown."""
    return [
        "### What must be reached",
        "",
        "| figure | beside | reach | found | |",
        "| --- | --- | --- | --- | --- |",
        *(one.to_line() for one in found),
        "",
    ]
