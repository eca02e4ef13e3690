import pytest

from sendense.core import units
from sendense.core.errors import Invalid


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (5 * units.GIB, "5.0 GiB"),
        (109_521_666_048, "102.0 GiB"),
        (3 * units.TIB, "3.0 TiB"),
        (2048 * 1024 * units.TIB, "2048.0 PiB"),
    ],
)
def test_a_size_is_shown_in_its_largest_unit(size_bytes: int, text: str) -> None:
    assert units.format_size(size_bytes) == text


def test_aligned_values_stay_where_they_are() -> None:
    assert units.align_down(1024, 512) == 1024
    assert units.align_up(1024, 512) == 1024


def test_other_values_move_to_the_next_boundary() -> None:
    assert units.align_down(1025, 512) == 1024
    assert units.align_up(1025, 512) == 1536


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("0", 0), ("512", 512), ("1B", 1), ("1.5 KiB", 1536), ("10GiB", 10 * units.GIB)],
)
def test_a_size_is_read_as_it_is_shown(text: str, size_bytes: int) -> None:
    assert units.parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "much", "-1", "1e9", "5 GB", "1" * 16, "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        units.parse_size(text)
    assert caught.value.kind == "size-invalid"
