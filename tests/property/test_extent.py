"""The algebra of extents, against a set of integers."""

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense.core import extent, units
from sendense.core.extent import Extent

BYTES_MAX = 400  # enough for every arrangement of a few extents around a few boundaries

sizes = st.integers(1, BYTES_MAX)
unit_sizes = st.sampled_from([1, 2, 3, 8, 16, 64])


@st.composite
def streams(draw: st.DrawFn) -> list[Extent]:
    """Ascending extents without overlap; neighbours may touch."""
    marks = sorted(draw(st.sets(st.integers(0, BYTES_MAX), max_size=12)))
    pairs = itertools.pairwise(marks)
    return [
        Extent(start, end - start, zero=draw(st.booleans()))
        for start, end in pairs
        if draw(st.booleans())
    ]


def places(extents: Iterable[Extent]) -> set[int]:
    return {place for each in extents for place in range(each.start, each.end)}


def zeros(extents: Iterable[Extent]) -> set[int]:
    return places(each for each in extents if each.zero)


def assert_ascending(extents: list[Extent]) -> None:
    for left, right in itertools.pairwise(extents):
        assert left.end <= right.start


@given(streams())
def test_merging_keeps_every_byte_and_its_flag(stream: list[Extent]) -> None:
    merged = list(extent.merge(stream))
    assert places(merged) == places(stream)
    assert zeros(merged) == zeros(stream)


@given(streams())
def test_merging_leaves_no_neighbours_that_could_be_joined(stream: list[Extent]) -> None:
    merged = list(extent.merge(stream))
    assert_ascending(merged)
    for left, right in itertools.pairwise(merged):
        assert left.end < right.start or left.zero != right.zero


@given(streams(), sizes)
def test_clipping_keeps_exactly_what_lies_on_the_disk(stream: list[Extent], size: int) -> None:
    clipped = list(extent.clip(stream, size=size))
    assert places(clipped) == {place for place in places(stream) if place < size}
    assert zeros(clipped) == {place for place in zeros(stream) if place < size}


@given(streams(), unit_sizes, sizes)
def test_rounding_out_covers_the_touched_units_and_no_others(
    stream: list[Extent], unit: int, size: int
) -> None:
    rounded = list(extent.round_out(stream, unit=unit, size=size))
    touched = {place // unit for place in places(stream) if place < size}
    assert places(rounded) == {place for place in range(size) if place // unit in touched}
    assert not zeros(rounded)
    assert_ascending(rounded)
    for left, right in itertools.pairwise(rounded):
        assert left.end < right.start


wholes = st.builds(Extent, st.integers(0, BYTES_MAX), sizes, st.booleans())


@given(wholes, unit_sizes)
def test_splitting_loses_nothing_and_crosses_no_boundary(whole: Extent, unit: int) -> None:
    parts = list(extent.split(whole, unit=unit))
    assert places(parts) == places([whole])
    assert sum(part.length for part in parts) == whole.length
    assert all(part.start // unit == (part.end - 1) // unit for part in parts)
    assert all(part.zero == whole.zero for part in parts)


@given(streams(), sizes)
def test_gaps_are_the_rest_of_the_disk(stream: list[Extent], size: int) -> None:
    gaps = list(extent.gaps(stream, size=size))
    assert places(gaps) == set(range(size)) - places(stream)
    assert_ascending(gaps)


@given(streams())
def test_the_total_counts_each_byte_once(stream: list[Extent]) -> None:
    assert extent.total(stream) == len(places(stream))


@given(streams(), st.integers(0, 2**62), sizes, unit_sizes)
def test_what_holds_at_the_start_of_a_disk_holds_at_any_offset(
    stream: list[Extent], offset: int, size: int, unit: int
) -> None:
    offset -= offset % unit

    def move(extents: Iterable[Extent]) -> list[Extent]:
        return [Extent(one.start + offset, one.length, one.zero) for one in extents]

    moved = move(stream)
    assert list(extent.merge(moved)) == move(extent.merge(stream))
    assert list(extent.clip(moved, size=size + offset)) == move(extent.clip(stream, size=size))
    assert list(extent.round_out(moved, unit=unit, size=size + offset)) == move(
        extent.round_out(stream, unit=unit, size=size)
    )
    before = [Extent(0, offset)] if offset else []
    assert list(extent.gaps([*before, *moved], size=size + offset)) == move(
        extent.gaps(stream, size=size)
    )
    for one, far in zip(stream, moved, strict=True):
        assert list(extent.split(far, unit=unit)) == move(extent.split(one, unit=unit))


@given(sizes, unit_sizes)
def test_nothing_changed_leaves_the_whole_disk_as_a_gap(size: int, unit: int) -> None:
    assert not list(extent.merge([]))
    assert not list(extent.clip([], size=size))
    assert not list(extent.round_out([], unit=unit, size=size))
    assert list(extent.gaps([], size=size)) == [Extent(0, size)]
    assert extent.total([]) == 0


@given(streams())
def test_extents_that_overlap_or_go_back_are_a_mistake_of_ours(stream: list[Extent]) -> None:
    for one in stream:
        for other in (one, Extent(one.end - 1, 2, zero=True)):
            with pytest.raises(AssertionError):
                list(extent.merge([one, other]))


@given(st.integers(0, 10**15), st.integers(1, 10**7))
def test_alignment_encloses_the_value(value: int, unit: int) -> None:
    below = units.align_down(value, unit)
    above = units.align_up(value, unit)
    assert below % unit == above % unit == 0
    assert below <= value <= above
    assert above - below in {0, unit}
