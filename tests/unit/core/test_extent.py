import itertools

import pytest

from sendense.core import extent
from sendense.core.extent import Extent


def test_an_extent_ends_behind_its_last_byte() -> None:
    assert Extent(10, 5).end == 15


@pytest.mark.parametrize(("start", "length"), [(-1, 1), (0, 0), (5, -1)])
def test_an_extent_that_holds_nothing_is_our_own_bug(start: int, length: int) -> None:
    with pytest.raises(AssertionError):
        Extent(start, length)


def test_merging_overlapping_extents_is_our_own_bug() -> None:
    with pytest.raises(AssertionError, match="overlaps"):
        list(extent.merge([Extent(0, 10), Extent(5, 10)]))


def test_nothing_merges_to_nothing() -> None:
    assert list(extent.merge([])) == []


def test_zero_and_data_are_not_merged() -> None:
    apart = [Extent(0, 10, zero=True), Extent(10, 10)]
    assert list(extent.merge(apart)) == apart


def test_a_padded_last_cluster_is_clipped_to_the_disk() -> None:
    assert list(extent.clip([Extent(0, 65536)], size=1000)) == [Extent(0, 1000)]


def test_two_changes_in_one_chunk_are_read_once() -> None:
    changed = [Extent(10, 1), Extent(500, 1), Extent(5000, 1)]
    rounded = list(extent.round_out(changed, unit=1024, size=5500))
    assert rounded == [Extent(0, 1024), Extent(4096, 1024)]


def test_the_gap_of_an_empty_stream_is_the_whole_disk() -> None:
    assert list(extent.gaps([], size=512)) == [Extent(0, 512)]


def test_an_endless_stream_is_processed_lazily() -> None:
    endless = (Extent(2 * n, 1) for n in itertools.count())
    first = list(itertools.islice(extent.merge(endless), 3))
    assert first == [Extent(0, 1), Extent(2, 1), Extent(4, 1)]
