"""What a backup may cost the guest, under the workflows: kept to, told of, or a reason to fail."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from sendense.connectors.base import Source
from sendense.connectors.fake.source import FakePlatform
from sendense.core.units import MIB
from sendense.db.tables import SourceRow
from sendense.engine import throttle
from tests.workflow.world import World

DISK_BYTES = 12 * MIB


@pytest.fixture
def platform(world: World, seed: int, monkeypatch: pytest.MonkeyPatch) -> FakePlatform:
    """A platform that tells what writes take, in the place of the lab, with quicker looks."""
    platform = FakePlatform()
    for index, disk in enumerate(platform.add_vm("busy", DISK_BYTES, MIB)):
        disk.write(0, random.Random(seed + index).randbytes(disk.size_bytes))

    @contextmanager
    def open_source(_row: SourceRow) -> Iterator[Source]:
        yield platform

    engine: Any = world.worker.engine
    engine._context = replace(engine._context, open_source=open_source)
    monkeypatch.setattr(throttle, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(throttle, "GIVE_UP_SECONDS", 0.5)
    assert world.discover().status == "completed"
    return platform


def limit(world: World, **config: Any) -> None:
    with world.catalog.write() as session:
        session.get_one(SourceRow, world.source_id).config = config


def test_a_slow_guest_slows_its_backup_and_the_backup_says_so(
    world: World, platform: FakePlatform
) -> None:
    limit(world, write_latency_ms_max=20)
    platform.write_latency = lambda: 0.035

    backup = world.back_up("busy")

    (warning,) = [one for one in backup.warnings if one.startswith("disk-2000")]
    assert "since the guest's writes took up to 35 ms; the limit is 20 ms" in warning
    job = world.job(str(backup.job_id))
    said = [line["message"] for line in job.log]
    assert any(line.startswith("disk-2000 is read slower from now on") for line in said)
    assert warning in said
    assert platform.snapshots == []


def test_a_guest_that_stays_slow_fails_a_backup_that_shall_give_up(
    world: World, platform: FakePlatform
) -> None:
    limit(world, write_latency_ms_max=20, on_write_latency="give_up")
    platform.write_latency = lambda: 0.035

    _, job_id = world.start_backup("busy")
    job = world.wait(job_id)

    assert (job.status, job.error and job.error["kind"]) == ("failed", "write-latency-exceeded")
    assert platform.snapshots == []
    assert world.open_sessions() == []


def test_a_source_that_does_not_tell_is_read_as_ever_and_that_is_said(world: World) -> None:
    limit(world, write_latency_ms_max=20, on_write_latency="give_up")
    backup = world.back_up("web")
    assert backup.status == "completed"
    assert "disk-2000: 1 of 1 times it could not be measured" in backup.warnings[0]


def test_without_a_limit_nothing_is_measured_or_said(world: World, platform: FakePlatform) -> None:
    def write_latency() -> float | None:
        raise AssertionError("asked")

    platform.write_latency = write_latency
    assert world.back_up("busy").warnings == []
