"""How series are told."""

import pytest

from benchmarks.growth.series import Curve, Quantity, Series


def test_a_series_is_a_table_with_a_column_for_each_curve() -> None:
    curves = (Curve("ours", ((1, 0.5), (1000, 2.0))), Curve("limit", ((1000, 1.25),)))
    series = Series("key", "Title", "disks", Quantity.COUNT, Quantity.SECONDS, curves)
    assert series.to_lines() == [
        "### Title",
        "",
        "| disks | ours | limit |",
        "| --- | --- | --- |",
        "| 1 | 0.5 s |  |",
        "| 1,000 | 2 s | 1.25 s |",
        "",
    ]


@pytest.mark.parametrize(
    ("quantity", "value", "told"),
    [
        (Quantity.COUNT, 10_000_000, "10,000,000"),
        (Quantity.BYTES, 1536, "1.5 KiB"),
        (Quantity.BYTES_PER_SECOND, 1536, "1.5 KiB/s"),
        (Quantity.PER_SECOND, 5_300_000.4, "5,300,000"),
        (Quantity.SECONDS, 0.01234, "0.0123 s"),
        (Quantity.MILLISECONDS, 49.96, "50 ms"),
    ],
)
def test_every_quantity_has_its_unit(quantity: Quantity, value: float, told: str) -> None:
    assert quantity.tell(value) == told
