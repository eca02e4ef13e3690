import fcntl
import json
import os
import signal
import sqlite3
from typing import Any

import pytest
import sqlalchemy as sa

from sendense.db.tables.workers import WorkerRow
from sendense.durable import lease, process, sweep
from sendense.durable.client import WorkflowStatus
from sendense.durable.sweep import NOTHING, TAKE_OVERS_MAX, Sweep
from tests.unit.durable import peer
from tests.unit.durable.conftest import World

LEASE_SECONDS = 60.0


class Clock:
    """The sweep's own clock."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sweeper(world: World, clock: Clock) -> Sweep:
    return Sweep(
        world.catalog,
        world.client,
        lease_seconds=LEASE_SECONDS,
        lock_folder=world.lock_folder,
        clock=clock,
    )


def _strand(world: World, *workflow_ids: str, executor: str = "dead") -> None:
    """Make workflows look as if a worker had taken them."""
    for workflow_id in workflow_ids:
        world.client.start("program", workflow_id, priority=20)
    with sqlite3.connect(world.folder / "engine.sqlite") as connection:
        connection.execute(
            "UPDATE workflow_status SET status = 'PENDING', executor_id = ?"
            " WHERE workflow_uuid IN (SELECT value FROM json_each(?))",
            (executor, json.dumps(workflow_ids)),
        )
    connection.close()


def _add_worker(world: World, worker_id: str, *, age_seconds: float = 0.0) -> None:
    with world.catalog.write() as session:
        session.execute(
            sa.insert(WorkerRow).values(
                id=worker_id,
                host="elsewhere",
                pid=1,
                started_at=lease.epoch_now(),
                beat_at=lease.epoch_now() - age_seconds,
            )
        )


def _beat(world: World, worker_id: str, *, age_seconds: float) -> None:
    with world.catalog.write() as session:
        session.execute(
            sa.update(WorkerRow)
            .where(WorkerRow.id == worker_id)
            .values(beat_at=lease.epoch_now() - age_seconds)
        )


def _status(world: World, workflow_id: str) -> WorkflowStatus:
    state = world.client.find(workflow_id)
    assert state is not None
    return state.status


def _count(world: World, job_id: str) -> int:
    with world.catalog.read() as session:
        return sweep.count_take_overs(session, job_id)


def test_workflows_of_a_dead_worker_are_queued_again(
    world: World, sweeper: Sweep, clock: Clock
) -> None:
    _add_worker(world, "dead", age_seconds=LEASE_SECONDS * 2)
    _strand(world, "job-1", "job-1/disk-2000")
    assert sweeper.run() == NOTHING
    clock.seconds += LEASE_SECONDS * 1.1

    report = sweeper.run()

    assert report.dead == ("dead",)
    assert report.taken_over == ("job-1",)
    assert _status(world, "job-1") is WorkflowStatus.QUEUED
    assert _status(world, "job-1/disk-2000") is WorkflowStatus.QUEUED
    with world.catalog.read() as session:
        assert lease.list_workers(session) == []


def test_workflows_of_a_worker_nobody_has_heard_of_are_queued_again(
    world: World, sweeper: Sweep
) -> None:
    _strand(world, "job-1")

    assert sweeper.run().taken_over == ("job-1",)


def test_workflows_of_a_living_worker_are_left_alone(world: World, sweeper: Sweep) -> None:
    _add_worker(world, "alive")
    _strand(world, "job-1", executor="alive")

    assert sweeper.run() == NOTHING
    assert _status(world, "job-1") is WorkflowStatus.RUNNING


def test_a_jump_of_the_database_s_clock_kills_nobody(
    world: World, sweeper: Sweep, clock: Clock
) -> None:
    _add_worker(world, "alive", age_seconds=3600.0)  # an hour forward, right after its beat
    _strand(world, "job-1", executor="alive")
    for _ in range(20):
        assert sweeper.run() == NOTHING
        clock.seconds += LEASE_SECONDS / 4
        _beat(world, "alive", age_seconds=-3600.0)  # … and back again
        assert sweeper.run() == NOTHING
        clock.seconds += LEASE_SECONDS / 4
        _beat(world, "alive", age_seconds=3600.0)


def test_a_worker_that_died_before_the_clock_was_set_back_is_found_dead(
    world: World, sweeper: Sweep, clock: Clock
) -> None:
    _add_worker(world, "dead", age_seconds=-3600.0)
    _strand(world, "job-1")
    sweeper.run()
    clock.seconds += LEASE_SECONDS * 1.4
    assert sweeper.run() == NOTHING
    clock.seconds += LEASE_SECONDS * 0.2

    assert sweeper.run().dead == ("dead",)


@pytest.mark.parametrize("age_seconds", [0.0, 3600.0], ids=["now", "clock-set-back"])
def test_a_worker_that_beats_while_it_is_declared_dead_stays(
    world: World,
    sweeper: Sweep,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    age_seconds: float,
) -> None:
    _add_worker(world, "late", age_seconds=LEASE_SECONDS * 2)
    _strand(world, "job-1", executor="late")
    sweeper.run()
    clock.seconds += LEASE_SECONDS * 2
    judge = sweeper._is_dead

    def judge_slowly(worker: lease.WorkerState) -> bool:
        verdict = judge(worker)
        _beat(world, "late", age_seconds=age_seconds)
        return verdict

    monkeypatch.setattr(sweeper, "_is_dead", judge_slowly)

    assert sweeper.run() == NOTHING
    assert _status(world, "job-1") is WorkflowStatus.RUNNING


def test_a_stale_process_of_this_machine_is_ended_before_its_jobs_are_given_away(
    world: World, sweeper: Sweep, clock: Clock
) -> None:
    _add_worker(world, "hung", age_seconds=LEASE_SECONDS * 2)
    _strand(world, "job-1", executor="hung")
    with peer.run(world.lock_folder, "hung") as hung:
        assert sweeper.run() == NOTHING
        clock.seconds += LEASE_SECONDS * 1.1

        assert sweeper.run().taken_over == ("job-1",)

        assert hung.wait(timeout=20.0) == -signal.SIGKILL


def test_a_stale_process_that_cannot_be_ended_is_left_to_its_own_lease(
    world: World,
    sweeper: Sweep,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(process, "end", lambda _mark, _path: False)
    _add_worker(world, "hung", age_seconds=LEASE_SECONDS * 2)
    with peer.run(world.lock_folder, "hung"):
        sweeper.run()
        clock.seconds += LEASE_SECONDS * 1.1
        assert sweeper.run().dead == ("hung",)
    assert "cannot be ended" in caplog.text


def test_a_worker_of_this_machine_that_was_killed_needs_no_clock(
    world: World, sweeper: Sweep
) -> None:
    _add_worker(world, "killed")
    _strand(world, "job-1", executor="killed")
    with peer.run(world.lock_folder, "killed") as killed:
        assert sweeper.run() == NOTHING
        killed.kill()
        killed.wait()

    assert sweeper.run().taken_over == ("job-1",)
    assert list(world.lock_folder.glob("*.worker")) == []


def test_a_sweep_that_was_held_up_takes_nothing_from_the_new_owner(
    world: World, sweeper: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    _strand(world, "job-1")
    listed = world.client.list_workflows

    def list_slowly(**wanted: Any) -> Any:
        found = listed(**wanted)
        # Another sweep is quicker, and a living worker has begun.
        assert world.client.take_over("job-1", executor_id="dead")
        _strand(world, "job-1", executor="alive")
        return found

    monkeypatch.setattr(world.client, "list_workflows", list_slowly)

    assert sweeper.run() == NOTHING
    monkeypatch.undo()
    assert _status(world, "job-1") is WorkflowStatus.RUNNING
    assert _count(world, "job-1") == 0


def test_a_sweep_checks_its_own_lease_before_it_takes_a_job(world: World) -> None:
    class Lost(Exception):
        pass

    def lose() -> None:
        raise Lost

    _strand(world, "job-1")
    sweeper = Sweep(
        world.catalog,
        world.client,
        lease_seconds=LEASE_SECONDS,
        lock_folder=world.lock_folder,
        check_lease=lose,
    )

    with pytest.raises(Lost):
        sweeper.run()
    assert _status(world, "job-1") is WorkflowStatus.RUNNING


def test_a_job_is_counted_once_however_many_workflows_it_has(world: World, sweeper: Sweep) -> None:
    _strand(world, "job-1", "job-1/disk-2000", "job-1/disk-2001")

    sweeper.run()

    assert _count(world, "job-1") == 1


def test_a_job_that_keeps_killing_workers_is_given_up(world: World, sweeper: Sweep) -> None:
    for _ in range(TAKE_OVERS_MAX):
        _strand(world, "job-1", "job-1/disk-2000", "job-10")
        assert sweeper.run().given_up == ()
        with world.catalog.write() as session:
            sweep.forget_take_overs(session, "job-10")
    _strand(world, "job-1", "job-10")

    report = sweeper.run()

    assert report.given_up == ("job-1",)
    assert report.taken_over == ("job-10",)
    assert _status(world, "job-1") is WorkflowStatus.CANCELLED
    assert _status(world, "job-1/disk-2000") is WorkflowStatus.CANCELLED
    assert _status(world, "job-10") is WorkflowStatus.QUEUED


def test_progress_starts_the_count_anew(world: World, sweeper: Sweep) -> None:
    _strand(world, "job-1")
    sweeper.run()
    with world.catalog.write() as session:
        sweep.forget_take_overs(session, "job-1")
    _strand(world, "job-1")
    sweeper.run()

    assert _count(world, "job-1") == 1


def test_one_process_sweeps_at_a_time(world: World, sweeper: Sweep) -> None:
    _strand(world, "job-1")
    world.lock_folder.mkdir()
    lock = os.open(world.lock_folder / "sweep.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)

    assert sweeper.run() == NOTHING

    os.close(lock)
    assert sweeper.run().taken_over == ("job-1",)
