"""What a backup may cost the guest: fields that every source's configuration may hold.

    {"write_latency_ms_max"?, "on_write_latency"?, "read_bytes_per_second_max"?}

The engine keeps to them (`engine.throttle`); only connectors whose platform tells how long a
guest's writes take (`capability.Measuring`) accept a limit on that.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sendense.connectors.config import Problems
from sendense.core.units import MIB

LATENCY_MS_MAX = 60_000  # a guest gives up a disk that takes so long
READ_RATE_MIN = MIB  # slower, and a disk of a TiB takes two weeks
LATENCY, REACTION, READ_RATE = (
    "write_latency_ms_max",
    "on_write_latency",
    "read_bytes_per_second_max",
)
FIELDS = frozenset({LATENCY, REACTION, READ_RATE})


class Reaction(StrEnum):
    """What happens where the guest's writes take longer than they may."""

    THROTTLE = "throttle"  # read slower, down to a floor, and never fail
    GIVE_UP = "give_up"  # read slower, and fail where that does not help


@dataclass(frozen=True, slots=True)
class ImpactLimit:
    """What a backup may cost the guest, for each of its disks.

    Attributes:
        write_latency_seconds_max: what its writes may take on average, or None for no limit.
        reaction: what happens where they take longer.
        read_bytes_per_second_max: how fast a disk may be read at most, or None for no limit.
    """

    write_latency_seconds_max: float | None = None
    reaction: Reaction = Reaction.THROTTLE
    read_bytes_per_second_max: int | None = None


def check(config: Mapping[str, Any], problems: Problems, *, measures: str | None) -> None:
    """Note what is wrong with the fields.

    Args:
        config: the source's; what else it holds is no matter here.
        problems: takes a line for each wrong field.
        measures: why the source cannot measure the guest's writes, in words, or None where it can.
    """
    latency, reaction, rate = (config.get(name) for name in (LATENCY, REACTION, READ_RATE))
    if latency is not None and measures is not None:
        problems.add(f"config.{LATENCY}", measures)
    elif latency is not None and not _is_latency(latency):
        problems.add(f"config.{LATENCY}", f"must be a number above 0, at most {LATENCY_MS_MAX}")
    if reaction is not None and reaction not in list(Reaction):
        problems.add(f"config.{REACTION}", f"must be one of {', '.join(Reaction)}")
    elif reaction is not None and latency is None:
        problems.add(f"config.{REACTION}", f"belongs to {LATENCY}, which is missing")
    if rate is not None and (type(rate) is not int or rate < READ_RATE_MIN):
        problems.add(f"config.{READ_RATE}", f"must be a whole number, at least {READ_RATE_MIN}")


def get_limit(config: Mapping[str, Any]) -> ImpactLimit:
    """Return the limit that an accepted configuration holds. Raises Invalid for another one."""
    problems = Problems()
    check(config, problems, measures=None)
    problems.raise_if_any()
    latency = config.get(LATENCY)
    return ImpactLimit(
        write_latency_seconds_max=None if latency is None else latency / 1000,
        reaction=Reaction(config.get(REACTION) or Reaction.THROTTLE),
        read_bytes_per_second_max=config.get(READ_RATE),
    )


def _is_latency(value: Any) -> bool:
    # Neither `true`, which is an int, nor NaN, which JSON readers let pass.
    return type(value) in {int, float} and math.isfinite(value) and 0 < value <= LATENCY_MS_MAX
