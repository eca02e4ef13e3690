"""Take-over on PostgreSQL with three workers, on one machine and as if on several."""

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sendense.durable import lease_terms
from sendense.durable.lease import EXIT_LEASE_LOST
from sendense.hub.sources.queries import get_source
from tests.servers.process import Server
from tests.workflow import crew as crews
from tests.workflow import world as worlds
from tests.workflow.conftest import content
from tests.workflow.crew import Crew
from tests.workflow.world import Setting, World

MIB = 1024 * 1024
LEASE_SECONDS = 3.0
# 1.5 leases and the time until the next sweep.
LATENCY_SECONDS_MAX = LEASE_SECONDS * (lease_terms.DEAD_SHARE + 0.25)


def _open(folder: Path, seed: int, url: str, *, lease_seconds: float = LEASE_SECONDS) -> World:
    made = worlds.build(folder, Setting("the-test", lease_seconds=lease_seconds, catalog_url=url))
    worlds.register(made)
    for number in range(3):
        made.lab.add_vm(f"vm{number}", content(seed + number, 20 * MIB))
    return made


@pytest.fixture
def world(tmp_path: Path, seed: int, postgresql_url: Callable[[], str]) -> Iterator[World]:
    made = _open(tmp_path, seed, postgresql_url())
    yield made
    made.client.close()
    made.catalog.close()


@pytest.fixture
def crew(world: World) -> Iterator[Crew]:
    with crews.gathered(world, _setting(world)) as made:
        yield made


def _setting(world: World) -> Setting:
    return Setting(
        lease_seconds=world.settings.lease_seconds,
        catalog_url=world.settings.database_url,
        bytes_per_second=4 * MIB,
    )


def _owner(crew: Crew, job_id: str) -> str | None:
    """Return the worker that transfers a job's disk now."""
    found = [one for one in crew.events() if one.workflow_id == f"{job_id}/disk-2000"]
    return found[-1].worker_id if found and found[-1].what == "begins" else None


def _start_all(world: World, crew: Crew) -> list[tuple[str, str]]:
    """Start a backup of each VM, and return once all are being transferred."""
    started = [world.start_backup(f"vm{number}") for number in range(3)]
    world.until(lambda: all(_owner(crew, job_id) for _, job_id in started))
    return started


def _check_all(world: World, crew: Crew, started: list[tuple[str, str]]) -> None:
    for number, (backup_id, job_id) in enumerate(started):
        job = world.wait(job_id)
        assert (job.status, job.error) == ("completed", None), job.log
        assert world.backup(backup_id).status == "completed"
        assert world.restore(backup_id) == world.lab.disk(f"vm{number}").read_bytes()
    assert world.lab.snapshots == []
    assert world.open_sessions() == []
    assert len(world.lab.change_ids) == len(started)
    assert set(crew.snapshots().values()) == {1}
    assert crew.find_overlaps() == []


def test_killed_and_frozen_workers_are_taken_over(world: World, crew: Crew) -> None:
    members = {one.id: one for one in (crew.hire(), crew.hire(), crew.hire(machine="far"))}
    assert world.discover().status == "completed"
    crew.wait_ready()
    started = _start_all(world, crew)
    far = members["worker-3"]
    near = members["worker-1"]

    near.kill()
    far.freeze()  # on another machine: nobody can end it, and only the clock tells

    for _, job_id in started:
        world.wait(job_id)
    assert far.is_frozen
    far.thaw()
    assert far.wait() == EXIT_LEASE_LOST
    assert crew.find_deeds_of_the_woken() == []
    assert members["worker-2"].process.poll() is None
    for victim in (near, far):
        assert (crew.latency(victim) or 0.0) < LATENCY_SECONDS_MAX + crew.slack_seconds()
    _check_all(world, crew, started)


def test_healthy_workers_outlive_one_that_freezes_far_away_with_the_write_lock(
    world: World, crew: Crew
) -> None:
    others = [crew.hire(), crew.hire()]
    cold = {"site": "cold"}
    far = crew.hire(machine="far", freeze_in="transfer", labels=cold)
    assert world.discover().status == "completed"
    crew.wait_ready()
    with world.catalog.write() as session:
        get_source(session, world.source_id).required_labels = cold
    backup_id, job_id = world.start_backup("vm0")
    world.until(lambda: crew.someone_froze)

    heir = crew.hire(labels=cold)  # begins when the server takes the lock from the frozen one
    assert world.wait(job_id).status == "completed"

    assert far.is_frozen
    assert [one.process.poll() for one in (*others, heir)] == [None] * 3
    assert world.restore(backup_id) == world.lab.disk("vm0").read_bytes()


def test_a_worker_frozen_for_less_than_its_lease_goes_on_as_if_nothing_was(
    world: World, crew: Crew
) -> None:
    far = crew.hire(machine="far")
    assert world.discover().status == "completed"
    crew.wait_ready()
    backup_id, job_id = world.start_backup("vm0")
    world.until(lambda: _owner(crew, job_id) == far.id)

    far.freeze()
    threading.Event().wait(LEASE_SECONDS * 0.2)
    far.thaw()

    assert world.wait(job_id).attempts == 1
    assert far.process.poll() is None
    assert world.backup(backup_id).status == "completed"
    assert crew.find_overlaps() == []


def test_a_server_that_restarts_in_the_middle_of_runs_loses_nothing(
    tmp_path: Path, seed: int, private_server: Callable[[str], Server]
) -> None:
    server = private_server("postgresql")
    world = _open(tmp_path, seed, server.create_database(), lease_seconds=30.0)
    with crews.gathered(world, _setting(world)) as crew:
        members = [crew.hire(), crew.hire(), crew.hire()]
        assert world.discover().status == "completed"
        crew.wait_ready()
        started = _start_all(world, crew)

        server.restart()

        _check_all(world, crew, started)
        assert {world.job(job_id).attempts for _, job_id in started} == {1}
        assert [one.process.poll() for one in members] == [None] * 3
        for one in members:
            one.process.send_signal(signal.SIGTERM)
        assert [one.wait() for one in members] == [0] * 3
    world.client.close()
    world.catalog.close()
