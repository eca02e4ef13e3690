"""Comparing disks byte for byte, and the control that shows that the comparison can fail."""

import filecmp
from dataclasses import dataclass
from pathlib import Path

from sendense.core.units import MIB

BLOCK = 1 * MIB  # the repository's chunk size by default; any size would do


@dataclass(frozen=True, slots=True)
class Control:
    """What the control found.

    Attributes:
        changed: blocks in which the two restored points differ.
        fails_without_one: whether the comparison failed with one of them left out.
        holds_with_all: whether it held with all of them applied.
    """

    changed: int
    fails_without_one: bool
    holds_with_all: bool

    @property
    def passed(self) -> bool:
        """Whether the comparison is worth something."""
        return self.changed > 1 and self.fails_without_one and self.holds_with_all


def is_equal(left: Path, right: Path) -> bool:
    """Whether two files hold the same bytes; always reads both."""
    filecmp.clear_cache()
    return filecmp.cmp(left, right, shallow=False)


def list_changed(before: Path, after: Path) -> list[int]:
    """Return the numbers of the blocks in which two files of the same size differ."""
    changed: list[int] = []
    with before.open("rb") as left, after.open("rb") as right:
        number = 0
        while True:
            one, other = left.read(BLOCK), right.read(BLOCK)
            if not one and not other:
                return changed
            if one != other:
                changed.append(number)
            number += 1


def run_control(before: Path, after: Path, truth: Path, scratch: Path) -> Control:
    """Apply all changed blocks but one to the earlier point: the comparison has to fail.

    Then apply the last one too: now it has to hold.

    Args:
        before: the earlier restored point.
        after: the later one.
        truth: an independent copy of the disk at the later moment.
        scratch: where a copy may be made.
    """
    changed = list_changed(before, after)
    _copy_sparse(before, scratch)
    left_out = changed[len(changed) // 2] if changed else 0
    _apply(after, scratch, [number for number in changed if number != left_out])
    fails = not is_equal(scratch, truth)
    _apply(after, scratch, [left_out])
    return Control(len(changed), fails, is_equal(scratch, truth))


def _copy_sparse(source: Path, target: Path) -> None:
    """Copy a file, leaving blocks of zeros as holes: the page cache is not for zeros."""
    zeros = bytes(BLOCK)
    with source.open("rb") as reader, target.open("wb") as writer:
        while data := reader.read(BLOCK):
            if data == zeros[: len(data)]:
                writer.seek(len(data), 1)
            else:
                writer.write(data)
        writer.truncate(reader.tell())


def _apply(source: Path, target: Path, numbers: list[int]) -> None:
    with source.open("rb") as reader, target.open("r+b") as writer:
        for number in numbers:
            reader.seek(number * BLOCK)
            writer.seek(number * BLOCK)
            writer.write(reader.read(BLOCK))
