"""What the stand-in says of changes, against the bytes themselves."""

import os
import random
from pathlib import Path

import pytest

from demo.vcenter.content import BLOCK, Content, copy_sparse, is_equal

SIZE = 3 * 1024 * 1024 + 512  # ends within a block
KEY = 2000


@pytest.fixture
def content(tmp_path: Path) -> Content:
    """Disks of nobody."""
    return Content(tmp_path)


def freeze(content: Content, name: str, size: int = SIZE) -> str:
    """Take a snapshot and return its change id."""
    content.freeze("vm-1", name, {KEY: size}, tracks=True)
    return content.find_change_ids(name)[KEY]


def list_all(content: Content, name: str, change_id: str) -> list[tuple[int, int]]:
    """Return all areas of all answers."""
    offset, found = 0, []
    while offset < SIZE:
        length, areas = content.list_changed(name, KEY, offset, change_id)
        assert length > 0
        assert all(offset <= start <= start + count <= offset + length for start, count in areas)
        found += areas
        offset += length
    assert offset == SIZE
    return found


@pytest.mark.parametrize("span", [None, 100_000, BLOCK, SIZE // 7])
def test_all_blocks_that_differ_are_told_and_no_other(
    content: Content, monkeypatch: pytest.MonkeyPatch, seed: int, span: int | None
) -> None:
    monkeypatch.setattr("demo.vcenter.content.AREAS_MAX", 3)
    content.span_bytes_max = span
    dice = random.Random(seed)
    live = content.live("vm-1", KEY, SIZE)
    old, base = bytes(SIZE), freeze(content, "base")
    for number in range(10):
        for _ in range(dice.randrange(12)):
            data = dice.choice([dice.randbytes(dice.randrange(1, 90_000)), bytes(70_000)])
            content.write(live, dice.randrange(SIZE - len(data)), data)
        name = f"snapshot-{number}"
        after = freeze(content, name)
        new = live.read_bytes()
        wanted = {
            at // BLOCK
            for at in range(0, SIZE, BLOCK)
            if old[at : at + BLOCK] != new[at : at + BLOCK]
        }
        areas = list_all(content, name, base)
        told = {
            block
            for start, count in areas
            for block in range(start // BLOCK, (start + count + BLOCK - 1) // BLOCK)
        }
        assert told == wanted
        assert sum(count for _, count in areas) == sum(
            min(BLOCK, SIZE - block * BLOCK) for block in wanted
        )
        old, base = new, after


def test_what_reads_as_zeros_was_never_different(content: Content) -> None:
    live = content.live("vm-1", KEY, SIZE)
    base = freeze(content, "base")
    content.write(live, 0, bytes(SIZE))  # as good as a hole
    freeze(content, "full-of-zeros")
    assert list_all(content, "full-of-zeros", base) == []
    assert list_all(content, "full-of-zeros", "*") == [(0, SIZE)]


def test_a_trimmed_block_is_a_change(content: Content) -> None:
    live = content.live("vm-1", KEY, SIZE)
    content.write(live, BLOCK, b"x" * BLOCK)
    base = freeze(content, "base")
    os.truncate(live, 0)
    content.live("vm-1", KEY, SIZE)
    freeze(content, "trimmed")
    assert list_all(content, "trimmed", base) == [(BLOCK, BLOCK)]


def test_a_copy_has_the_same_bytes_and_the_same_holes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.seek(5 * 1024 * 1024)
        file.write(b"x" * (2 * 1024 * 1024 + 1))
        file.truncate(1 << 40)
    copy_sparse(source, target)
    assert is_equal(source, target)
    assert target.stat().st_size == 1 << 40
    assert target.stat().st_blocks == source.stat().st_blocks
    with target.open("r+b") as file:
        file.seek((1 << 40) - 1)
        file.write(b"y")
    assert not is_equal(source, target)


def test_files_of_different_lengths_are_not_equal(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(bytes(10))
    (tmp_path / "other").write_bytes(bytes(11))
    assert not is_equal(tmp_path / "one", tmp_path / "other")
