from hypothesis import given
from hypothesis import strategies as st

from sendense.core.extent import Extent, mark_zeros

SIZE = 40


def to_extents(cells: list[bool]) -> list[Extent]:
    return [Extent(start, 1) for start, cell in enumerate(cells) if cell]


@given(
    changed=st.lists(st.booleans(), min_size=SIZE, max_size=SIZE),
    zeros=st.lists(st.booleans(), min_size=SIZE, max_size=SIZE),
    unit=st.sampled_from([1, 2, 5]),
)
def test_each_changed_byte_is_zero_exactly_where_the_disk_is(
    changed: list[bool], zeros: list[bool], unit: int
) -> None:
    runs = [Extent(extent.start * unit, unit) for extent in to_extents(changed)]
    blocks = [Extent(start * unit, unit, zero=zero) for start, zero in enumerate(zeros)]
    found = {
        place: extent.zero
        for extent in mark_zeros(runs, blocks)
        for place in range(extent.start, extent.end)
    }
    expected = {
        start * unit + place: zeros[start]
        for start, cell in enumerate(changed)
        if cell
        for place in range(unit)
    }
    assert found == expected


def test_a_changed_extent_is_split_where_zeros_begin_and_end() -> None:
    blocks = [Extent(0, 10), Extent(10, 10, zero=True), Extent(20, 80)]
    assert list(mark_zeros([Extent(5, 20)], blocks)) == [
        Extent(5, 5),
        Extent(10, 10, zero=True),
        Extent(20, 5),
    ]


def test_changes_that_no_block_describes_have_to_be_read() -> None:
    assert list(mark_zeros([Extent(0, 8)], [])) == [Extent(0, 8)]
