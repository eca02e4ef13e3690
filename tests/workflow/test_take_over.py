"""Take-over on SQLite with two workers, which are killed, frozen and stopped in transfers."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sendense.durable import lease_terms
from sendense.hub.sources.queries import get_source
from tests.workflow import crew as crews
from tests.workflow import world as worlds
from tests.workflow.conftest import content
from tests.workflow.crew import Crew
from tests.workflow.world import Setting, World

MIB = 1024 * 1024
LEASE_SECONDS = 4.0  # with less, a busy machine ends healthy workers too
# 1.5 leases and the time until the next sweep.
LATENCY_SECONDS_MAX = LEASE_SECONDS * (lease_terms.DEAD_SHARE + 0.25)
SETTING = Setting(worker_id="the-test", lease_seconds=LEASE_SECONDS)


@pytest.fixture
def world(tmp_path: Path, seed: int) -> Iterator[World]:
    """A world without a worker of its own; its VM `big` needs two packs."""
    made = worlds.build(tmp_path, SETTING)
    worlds.register(made)
    made.lab.add_vm("big", content(seed, 48 * MIB))
    yield made
    made.client.close()
    made.catalog.close()


@pytest.fixture
def crew(world: World) -> Iterator[Crew]:
    with crews.gathered(world, SETTING) as made:
        yield made


def _has_checkpoint(world: World) -> bool:
    with world.repository() as repository:
        names = [one.name for one in repository.storage.list_objects("sessions/")]
    return any("/disks/" in name and "/owner/" not in name for name in names)


def _check_whole(world: World, crew: Crew, backup_id: str, job_id: str) -> None:
    """Hold that a job was done once, whole, and left nothing behind."""
    job = world.job(job_id)
    assert (job.status, job.error) == ("completed", None), job.log
    assert world.backup(backup_id).bytes_new == 48 * MIB
    assert world.restore(backup_id) == world.lab.disk("big").read_bytes()
    assert world.lab.snapshots == []
    assert world.open_sessions() == []
    assert len(world.lab.change_ids) == 1
    assert set(crew.snapshots().values()) == {1}
    assert crew.find_overlaps() == []


def test_a_killed_worker_s_backup_is_taken_over_and_resumes_from_its_checkpoint(
    world: World, crew: Crew
) -> None:
    first = crew.hire(bytes_per_second=10 * MIB)
    assert world.discover().status == "completed"
    backup_id, job_id = world.start_backup("big")
    world.until(lambda: _has_checkpoint(world))
    first.kill()
    assert world.job(job_id).status == "running"
    assert len(world.lab.snapshots) == 1

    crew.hire()
    job = world.wait(job_id)

    assert job.attempts == 2
    assert any("another one goes on" in line["message"] for line in job.log)
    assert job.progress["resumed"]["2000"] > 0
    _check_whole(world, crew, backup_id, job_id)


def test_a_frozen_worker_is_ended_and_the_other_one_goes_on(world: World, crew: Crew) -> None:
    members = [crew.hire(bytes_per_second=10 * MIB), crew.hire(bytes_per_second=10 * MIB)]
    assert world.discover().status == "completed"
    crew.wait_ready()
    backup_id, job_id = world.start_backup("big")
    world.until(lambda: _has_checkpoint(world))
    owner = _owner(crew, f"{job_id}/disk-2000")
    frozen, other = members if owner == members[0].id else reversed(members)
    frozen.freeze()

    world.wait(job_id)

    assert frozen.wait() == -signal.SIGKILL
    assert other.process.poll() is None
    latency = crew.latency(frozen)
    assert latency is not None
    assert latency < LATENCY_SECONDS_MAX + crew.slack_seconds()
    _check_whole(world, crew, backup_id, job_id)


def test_a_worker_frozen_with_the_catalog_s_write_lock_takes_nobody_with_it(
    world: World, crew: Crew
) -> None:
    healthy = crew.hire()
    assert world.discover().status == "completed"
    healthy.process.send_signal(signal.SIGTERM)  # so that the other one has to take the job
    healthy.wait()
    frozen = crew.hire(bytes_per_second=10 * MIB, freeze_in="transfer")
    backup_id, job_id = world.start_backup("big")
    world.until(lambda: crew.someone_froze)
    frozen.stopped_at = lease_terms.awake_seconds()
    others = [crew.hire(), crew.hire()]

    world.wait(job_id)

    assert frozen.wait() == -signal.SIGKILL
    assert [one.process.poll() for one in others] == [None, None]
    _check_whole(world, crew, backup_id, job_id)


def test_healthy_workers_outlive_one_that_freezes_with_the_write_lock(
    world: World, crew: Crew
) -> None:
    others = [crew.hire(), crew.hire()]
    assert world.discover().status == "completed"
    crew.wait_ready()
    frozen = crew.hire(bytes_per_second=10 * MIB, freeze_in="plan", labels={"site": "cold"})
    with world.catalog.write() as session:
        get_source(session, world.source_id).required_labels = {"site": "cold"}
    _, job_id = world.start_backup("big")

    assert frozen.wait() == -signal.SIGKILL  # it froze, and the others ended it …

    assert crew.someone_froze
    assert [one.process.poll() for one in others] == [None, None]  # … and live
    job = world.job(job_id)
    assert (job.finished_at, job.required_labels) == (None, {"site": "cold"})
    crew.hire(labels={"site": "cold"})
    assert world.wait(job_id).status == "completed"


def test_a_stopped_worker_leaves_its_job_to_the_next(world: World, crew: Crew) -> None:
    first = crew.hire(bytes_per_second=4 * MIB)
    assert world.discover().status == "completed"
    backup_id, job_id = world.start_backup("big")
    world.until(lambda: world.job(job_id).current_phase == "transferring")
    first.process.send_signal(signal.SIGTERM)
    assert first.wait() == 0
    first.stopped_at = lease_terms.awake_seconds()
    assert world.job(job_id).status == "running"

    crew.hire()
    world.wait(job_id)

    _check_whole(world, crew, backup_id, job_id)


def test_clocks_that_are_hours_off_change_nothing(world: World, crew: Crew) -> None:
    early = crew.hire(clock_hours=-1.0, bytes_per_second=10 * MIB)
    late = crew.hire(clock_hours=1.0, bytes_per_second=10 * MIB)
    assert world.discover().status == "completed"
    crew.wait_ready()
    backup_id, job_id = world.start_backup("big")
    world.until(lambda: _has_checkpoint(world))
    assert [early.process.poll(), late.process.poll()] == [None, None]
    owner = _owner(crew, f"{job_id}/disk-2000")
    victim, other = (early, late) if owner == early.id else (late, early)
    victim.kill()

    job = world.wait(job_id)

    assert job.attempts == 2
    assert other.process.poll() is None
    latency = crew.latency(victim)
    assert latency is not None
    assert latency < LATENCY_SECONDS_MAX + crew.slack_seconds()
    _check_whole(world, crew, backup_id, job_id)


def test_a_job_waits_for_a_worker_with_its_labels(world: World, crew: Crew) -> None:
    crew.hire(labels={"site": "rome"})
    assert world.discover().status == "completed"
    with world.catalog.write() as session:
        get_source(session, world.source_id).required_labels = {"site": "berlin"}
    backup_id, job_id = world.start_backup("big")
    world.until(lambda: world.job(job_id).enqueued_at is not None)
    assert world.waiting_reason(job_id) == "no worker with site=berlin is alive"

    berlin = crew.hire(labels={"site": "berlin", "rack": "7"})
    world.wait(job_id)

    assert {one.worker_id for one in crew.events() if one.workflow_id.startswith(job_id)} == {
        berlin.id
    }
    _check_whole(world, crew, backup_id, job_id)


def test_a_job_that_nobody_can_take_can_be_cancelled(world: World, crew: Crew) -> None:
    crew.hire()
    assert world.discover().status == "completed"
    with world.catalog.write() as session:
        get_source(session, world.source_id).required_labels = {"site": "nowhere"}
    backup_id, job_id = world.start_backup("big")
    world.until(lambda: world.job(job_id).enqueued_at is not None)

    world.cancel(job_id)

    assert world.wait(job_id).status == "cancelled"
    assert world.backup(backup_id).status == "cancelled"
    assert world.job(job_id).vm_slot is None
    assert crew.snapshots() == {}


def _owner(crew: Crew, workflow_id: str) -> str:
    return next(one.worker_id for one in crew.events() if one.workflow_id == workflow_id)
