from typing import Any

import pytest

from sendense.connectors.qemu import meter
from sendense.connectors.qemu.meter import Counters, Meter
from sendense.core.errors import Unavailable

QDEV = "/machine/peripheral/disk0-device/virtio-backend"


def tell(writes: int, write_ns: int, flush_ns: int = 0) -> list[dict[str, Any]]:
    """Return what `query-blockstats` tells of two devices."""
    stats = {
        "wr_operations": writes,
        "wr_total_time_ns": write_ns,
        "flush_total_time_ns": flush_ns,
    }
    return [{"device": "", "stats": {}}, {"qdev": QDEV, "stats": stats}]


def test_flushes_belong_to_the_writes_that_they_make_durable() -> None:
    assert meter.find_counters(tell(3, 1000, 500), QDEV) == Counters(3, 1500)
    assert meter.find_counters(tell(3, 1000, 500), "/other") is None


def test_the_mean_is_of_what_ended_between_two_looks() -> None:
    assert meter.find_mean(Counters(10, 5_000), Counters(14, 8_004_005_000)) == 2.001
    assert meter.find_mean(Counters(10, 5_000), Counters(10, 9_000)) is None


def test_counts_that_went_back_say_nothing() -> None:
    assert meter.find_mean(Counters(10, 5_000), Counters(1, 900)) is None
    assert meter.find_mean(Counters(10, 5_000), Counters(11, 900)) is None


def test_each_look_counts_from_the_one_before() -> None:
    answers = [tell(10, 10_000_000), tell(12, 30_000_000), tell(12, 30_000_000)]
    answers.append(tell(13, 30_000_000, 1_000_000))
    one = Meter(lambda: answers.pop(0), QDEV)
    assert [one.measure() for _ in range(4)] == [None, 0.01, None, 0.001]


def test_a_device_that_is_gone_is_said_to_be() -> None:
    with pytest.raises(Unavailable, match="has no device '/gone'"):
        Meter(lambda: tell(1, 1), "/gone").measure()
