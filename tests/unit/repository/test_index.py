"""Looking up ids in tables: those that share their first bytes, and those that are not there."""

import pytest

from sendense.repository.index import Ids, build_table
from sendense.repository.pack import Entry


def _id(first: int, last: int) -> bytes:
    return bytes([first]) * 8 + bytes(23) + bytes([last])


KNOWN = [_id(1, 1), _id(5, 2), _id(5, 4), _id(5, 6), _id(9, 9)]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (KNOWN, [0, 1, 2, 3, 4]),
        ([_id(5, 6), _id(1, 1)], [3, 0]),
        ([_id(5, 1), _id(5, 3), _id(5, 7)], [-1, -1, -1]),
        ([_id(9, 8), _id(9, 10), _id(10, 0), _id(0, 0)], [-1, -1, -1, -1]),
        ([_id(10, 0), _id(9, 9), _id(5, 4)], [-1, 4, 2]),
        ([], []),
    ],
)
def test_each_id_is_found_where_it_lies_or_nowhere(wanted: list[bytes], found: list[int]) -> None:
    table = build_table([(0, Entry(one, 208, 1, 1, 1, 0)) for one in KNOWN])
    assert table.find(Ids.of(wanted)).tolist() == found


def test_an_empty_table_has_nothing() -> None:
    assert build_table([]).find(Ids.of([_id(1, 1)])).tolist() == [-1]
