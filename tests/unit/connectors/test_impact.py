import math
from pathlib import Path
from typing import Any

import pytest

from sendense.connectors import impact, registry
from sendense.connectors.config import Problems
from sendense.connectors.impact import ImpactLimit, Reaction
from sendense.core.errors import Invalid
from sendense.core.units import MIB

QEMU = {"vms": [{"name": "web", "qmp": "/run/web.qmp"}]}
IMAGE = {"vms": [{"name": "web", "disks": ["/srv/web.raw"]}]}
VSPHERE = {"host": "vc1"}


def find_fields(config: dict[str, Any]) -> list[str]:
    with pytest.raises(Invalid) as caught:
        impact.get_limit(config)
    errors = caught.value.fields["errors"]
    assert isinstance(errors, list)
    return [error["field"] for error in errors]


def test_without_fields_nothing_is_limited() -> None:
    assert impact.get_limit({"vms": []}) == ImpactLimit(None, Reaction.THROTTLE, None)


def test_milliseconds_become_seconds() -> None:
    config = {
        "write_latency_ms_max": 12.5,
        "on_write_latency": "give_up",
        "read_bytes_per_second_max": 8 * MIB,
    }
    assert impact.get_limit(config) == ImpactLimit(0.0125, Reaction.GIVE_UP, 8 * MIB)
    assert impact.get_limit({"write_latency_ms_max": 20}) == ImpactLimit(0.02)


@pytest.mark.parametrize("latency", [0, -1, 60_001, math.nan, math.inf, True, "20"])
def test_a_latency_is_a_number_that_a_guest_may_see(latency: object) -> None:
    assert find_fields({"write_latency_ms_max": latency}) == ["config.write_latency_ms_max"]


@pytest.mark.parametrize("rate", [0, MIB - 1, 2.5 * MIB, True, "fast"])
def test_a_rate_is_a_whole_number_at_which_backups_end(rate: object) -> None:
    assert find_fields({"read_bytes_per_second_max": rate}) == ["config.read_bytes_per_second_max"]


def test_a_reaction_is_one_of_two_and_needs_a_limit() -> None:
    config = {"write_latency_ms_max": 5, "on_write_latency": "panic"}
    assert find_fields(config) == ["config.on_write_latency"]
    assert find_fields({"on_write_latency": "throttle"}) == ["config.on_write_latency"]


def test_a_source_that_cannot_measure_says_so_at_registration() -> None:
    problems = Problems()
    impact.check({"write_latency_ms_max": 5}, problems, measures="cannot be kept: no guest")
    with pytest.raises(Invalid, match="cannot be kept: no guest"):
        problems.raise_if_any()


@pytest.mark.parametrize(
    ("kind", "config"), [("image", IMAGE), ("qemu", QEMU), ("vsphere", VSPHERE)]
)
def test_every_type_takes_a_limit_on_the_rate(kind: str, config: dict[str, Any]) -> None:
    limited = {**config, "read_bytes_per_second_max": MIB}
    registry.validate_config(kind, limited, resolve=Path)
    with pytest.raises(Invalid, match="read_bytes_per_second_max"):
        registry.validate_config(kind, limited | {"read_bytes_per_second_max": 1}, resolve=Path)


def test_only_types_that_can_measure_take_a_limit_on_the_latency() -> None:
    limit = {"write_latency_ms_max": 20, "on_write_latency": "give_up"}
    registry.validate_config("qemu", QEMU | limit, resolve=Path)
    for kind, config in (("image", IMAGE), ("vsphere", VSPHERE)):
        with pytest.raises(Invalid, match="write_latency_ms_max: cannot be kept"):
            registry.validate_config(kind, config | limit, resolve=Path)
