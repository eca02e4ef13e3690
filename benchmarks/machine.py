"""Where and when something was measured."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from sendense.core import units


@dataclass(frozen=True)
class Machine:
    """A machine on a day.

    Attributes:
        memory: bytes.
    """

    date: str
    processor: str
    cores: int
    memory: int

    def to_text(self) -> str:
        """Return it in one line for people."""
        memory = units.format_size(self.memory)
        return f"{self.date}, {self.cores} cores ({self.processor}), {memory} RAM"


def describe() -> Machine:
    """Return this machine, now."""
    return Machine(
        date=f"{datetime.now(tz=UTC):%Y-%m-%d}",
        processor=_find_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory=psutil.virtual_memory().total,
    )


def _find_processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return "of unknown make"
