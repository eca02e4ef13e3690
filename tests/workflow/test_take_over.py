import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workflow import world as worlds
from tests.workflow.conftest import content
from tests.workflow.worker_process import LEASE_SECONDS
from tests.workflow.world import World

ROOT = Path(__file__).parent.parent.parent
MIB = 1024 * 1024
STOP_SECONDS_MAX = 30.0


@pytest.fixture
def world(tmp_path: Path, seed: int) -> Iterator[World]:
    """A world without a worker of its own; its VM `big` needs two packs."""
    made = worlds.build(tmp_path, worker_id="not-started", lease_seconds=LEASE_SECONDS)
    worlds.register(made)
    made.lab.add_vm("big", content(seed, 48 * MIB))
    yield made
    made.client.close()
    made.catalog.close()


@contextlib.contextmanager
def _worker(
    world: World, worker_id: str, *, bytes_per_second: int = 0
) -> Iterator[subprocess.Popen[bytes]]:
    folder = world.settings.data_dir.parent
    command = [sys.executable, "-m", "tests.workflow.worker_process"]
    with subprocess.Popen(
        [*command, str(folder), worker_id, str(bytes_per_second)], cwd=ROOT
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()


def _has_checkpoint(world: World) -> bool:
    with world.repository() as repository:
        names = [one.name for one in repository.storage.list_objects("sessions/")]
    return any("/disks/" in name and "/owner/" not in name for name in names)


def test_a_killed_worker_s_backup_is_taken_over_and_resumes_from_its_checkpoint(
    world: World,
) -> None:
    with _worker(world, "first", bytes_per_second=10 * MIB) as first:
        job = world.discover()
        assert job.status == "completed", job.error
        backup_id, job_id = world.start_backup("big")
        world.until(lambda: _has_checkpoint(world))
        first.kill()
        first.wait()
    assert world.job(job_id).status == "running"
    assert len(world.lab.snapshots) == 1

    with _worker(world, "second"):
        job = world.wait(job_id)

        assert (job.status, job.attempts) == ("completed", 2)
        assert any("another one goes on" in line["message"] for line in job.log)
        assert job.progress["resumed"]["2000"] > 0
        backup = world.backup(backup_id)
        assert backup.bytes_new == 48 * MIB
        assert world.lab.snapshots == []
        assert world.open_sessions() == []
        assert world.restore(backup_id) == world.lab.disk("big").read_bytes()


def test_a_frozen_worker_is_replaced_and_ends_itself_when_it_wakes(world: World) -> None:
    with _worker(world, "first", bytes_per_second=10 * MIB) as first:
        assert world.discover().status == "completed"
        backup_id, job_id = world.start_backup("big")
        world.until(lambda: _has_checkpoint(world))
        first.send_signal(signal.SIGSTOP)
        with _worker(world, "second"):
            job = world.wait(job_id)
            assert job.status == "completed"
            first.send_signal(signal.SIGCONT)

            assert first.wait(timeout=STOP_SECONDS_MAX) == 70  # lease.EXIT_LEASE_LOST

            assert world.restore(backup_id) == world.lab.disk("big").read_bytes()
            assert world.lab.snapshots == []


def test_a_stopped_worker_leaves_its_job_to_the_next(world: World) -> None:
    with _worker(world, "first", bytes_per_second=4 * MIB) as first:
        assert world.discover().status == "completed"
        backup_id, job_id = world.start_backup("big")
        world.until(lambda: world.job(job_id).current_phase == "transferring")
        first.send_signal(signal.SIGTERM)
        assert first.wait(timeout=STOP_SECONDS_MAX) == 0
    assert world.job(job_id).status == "running"

    with _worker(world, "second"):
        assert world.wait(job_id).status == "completed"
        assert world.backup(backup_id).status == "completed"
    assert world.lab.snapshots == []
