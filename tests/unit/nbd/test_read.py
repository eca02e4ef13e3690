"""Cutting reads into requests, and placing what comes back."""

import random

from hypothesis import given
from hypothesis import strategies as st

from sendense.nbd import read as reading

UNITS = st.sampled_from([1, 512, 4096])


@given(
    offset=st.integers(0, 50_000),
    length=st.integers(1, 50_000),
    unit=UNITS,
    most=st.integers(1, 12),
    size=st.integers(0, 3000),
)
def test_the_requests_cover_the_read_in_whole_units_and_nothing_twice(
    offset: int, length: int, unit: int, most: int, size: int
) -> None:
    end_of_disk = offset + length + size
    into = bytearray(length)
    parts = reading.cut(offset, into, unit=unit, most=most * unit, size=end_of_disk)
    assert parts[0].offset <= offset < parts[0].offset + unit
    assert offset + length <= parts[-1].offset + parts[-1].length <= end_of_disk
    position = parts[0].offset
    for part in parts:
        assert part.offset == position
        assert part.offset % unit == 0
        assert 0 < part.length <= most * unit
        assert part.length % unit == 0 or part.offset + part.length == end_of_disk
        position += part.length
    assert parts[0].read.parts_left == len(parts)
    read = parts[0].read
    assert len(read.data) == position - parts[0].offset
    assert (read.data is into) == (len(read.data) == length)


@given(seed=st.integers(0, 2**32 - 1), offset=st.integers(0, 5000), length=st.integers(1, 5000))
def test_bytes_in_any_order_end_up_in_their_place(seed: int, offset: int, length: int) -> None:
    chooser = random.Random(seed)
    disk = chooser.randbytes(10_240)
    into = bytearray(length)
    parts = reading.cut(offset, into, unit=512, most=1024, size=len(disk))
    pieces = [
        (part, part.offset + at, min(100, part.length - at))
        for part in parts
        for at in range(0, part.length, 100)
    ]
    chooser.shuffle(pieces)
    for part, at, size in pieces:
        view = part.place(at, size)
        assert view is not None
        view[:] = disk[at : at + size]
    assert all(not part.bytes_left and not part.has_doubles() for part in parts)
    parts[0].read.finish()
    assert into == disk[offset : offset + length]


def test_what_was_not_asked_for_has_no_place() -> None:
    (part,) = reading.cut(1024, bytearray(1024), unit=512, most=4096, size=1 << 63)
    for offset, size in [
        (1023, 1),
        (2048, 1),
        (1024, 1025),
        (1024, 0),
        (0, 1024),
        ((1 << 64) - 512, 512),
    ]:
        assert part.place(offset, size) is None
    assert part.place(1024, 1000) is not None
    assert part.place(1024, 25) is None, "more bytes than are left"
    assert part.place(1024, 24) is not None
    assert part.has_doubles()
