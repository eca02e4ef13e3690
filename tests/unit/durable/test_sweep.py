import fcntl
import json
import os
import sqlite3

import pytest
import sqlalchemy as sa

from sendense.db.tables.workers import WorkerRow
from sendense.durable import lease, sweep
from sendense.durable.client import WorkflowStatus
from sendense.durable.sweep import NOTHING, TAKE_OVERS_MAX, Sweep
from tests.unit.durable.conftest import World

LEASE_SECONDS = 60.0


@pytest.fixture
def sweeper(world: World) -> Sweep:
    return Sweep(
        world.catalog, world.client, lease_seconds=LEASE_SECONDS, lock_folder=world.lock_folder
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


def _status(world: World, workflow_id: str) -> WorkflowStatus:
    state = world.client.find(workflow_id)
    assert state is not None
    return state.status


def _count(world: World, job_id: str) -> int:
    with world.catalog.read() as session:
        return sweep.count_take_overs(session, job_id)


def test_workflows_of_a_dead_worker_are_queued_again(world: World, sweeper: Sweep) -> None:
    _add_worker(world, "dead", age_seconds=LEASE_SECONDS * 2)
    _strand(world, "job-1", "job-1/disk-2000")

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
