import threading
from datetime import timedelta

import pytest
import sqlalchemy as sa

from sendense.core.errors import Corrupt, SendenseError, Unavailable
from sendense.db.tables import JobRow
from sendense.hub.backups import service
from sendense.hub.backups.schemas import StartBackup
from sendense.repository.manifest import ManifestDraft
from sendense.workflows import backup_plan, backup_undo, backup_vm
from sendense.workflows.transfer_disk import TRANSFER_RETRY
from tests.workflow.world import World

CANCEL_SECONDS_MAX = 2.0
CANCEL_TRIES_MAX = 3  # on a busy machine a step may wait for the disk


def _assert_nothing_left(world: World, job: JobRow) -> None:
    assert job.vm_slot is None
    assert world.lab.snapshots == []
    assert world.open_sessions() == []
    with world.repository() as repository:
        assert repository.list_backups() == []
    assert world.chains() == []


@pytest.mark.parametrize("step", ["plan", "take_snapshot", "decide", "transfer", "commit"])
def test_a_step_that_fails_leaves_nothing_behind_but_the_reason(world: World, step: str) -> None:
    world.spy.faults[step] = [Corrupt("the disk is on fire", hint="fetch water")]

    backup_id, job_id = world.start_backup("web")
    job = world.wait(job_id)

    assert job.status == "failed"
    assert job.error == {
        "kind": "corrupt",
        "message": "the disk is on fire",
        "hint": "fetch water",
    }
    assert world.backup(backup_id).status == "failed"
    assert world.outcome(job_id) == (None if step == "plan" else "aborted")
    assert world.lab.change_ids == set()
    _assert_nothing_left(world, job)
    # The VM is free, and the next backup works.
    assert world.back_up("web").status == "completed"


def test_a_restore_that_fails_says_why_in_its_own_row_and_leaves_no_file(world: World) -> None:
    backup = world.back_up("web")
    world.spy.faults["restore"] = [Corrupt("the disk is on fire", hint="fetch water")]

    restore_id, job_id = world.start_restore(backup.id, "half.raw", disk_id=0)
    job = world.wait(job_id)

    assert job.status == "failed"
    assert world.restore_row(restore_id).status == "failed"
    assert world.restore_row(restore_id).error == job.error
    assert list(world.target("half.raw").parent.iterdir()) == []


@pytest.mark.parametrize("step", ["record", "remove_snapshot", "finish"])
def test_behind_the_commit_a_failure_costs_only_a_retry(world: World, step: str) -> None:
    world.spy.faults[step] = [Unavailable("away"), Unavailable("away")]

    backup = world.back_up("web")

    assert backup.status == "completed"
    assert world.lab.snapshots == []
    assert world.restore(backup.id) == world.lab.disk("web").read_bytes()


@pytest.mark.parametrize(
    "step", ["plan", "take_snapshot", "decide", "wait_transfers", "transfer", "commit"]
)
def test_a_backup_is_cancelled_in_every_phase(world: World, step: str) -> None:
    seconds: list[float] = []
    while len(seconds) < CANCEL_TRIES_MAX:
        seconds.append(_cancel_at(world, step))
        if seconds[-1] < CANCEL_SECONDS_MAX:
            return
        assert seconds[-1] < CANCEL_SECONDS_MAX * CANCEL_TRIES_MAX, "it does not look often enough"
    pytest.fail(f"it took {seconds} seconds")


def _cancel_at(world: World, step: str) -> float:
    """Return how long after the wish a backup had ended that was cancelled before a step."""
    world.lab.bytes_per_second = 512 * 1024  # minutes, unless it is cancelled
    reached = threading.Event()
    ids: list[str] = []

    def cancel() -> None:
        reached.wait()
        world.cancel(ids[0])

    if step == "commit":
        world.lab.bytes_per_second = None
    world.spy.calls[step] = cancel
    backup_id, job_id = world.start_backup("web")
    ids.append(job_id)
    reached.set()
    world.until(lambda: world.job(job_id).cancel_requested_at is not None)
    asked = world.job(job_id).cancel_requested_at
    job = world.wait(job_id)

    assert job.status == "cancelled"
    assert world.backup(backup_id).status == "cancelled"
    assert job.finished_at is not None
    assert asked is not None
    _assert_nothing_left(world, job)
    return (job.finished_at - asked).total_seconds()


def test_a_restore_is_cancelled_and_leaves_no_file(world: World) -> None:
    backup = world.back_up("web")
    ids: list[str] = []
    reached = threading.Event()

    def cancel() -> None:
        reached.wait()
        world.cancel(ids[0])

    world.spy.calls["restore"] = cancel
    restore_id, job_id = world.start_restore(backup.id, "half.raw", disk_id=0)
    ids.append(job_id)
    reached.set()
    job = world.wait(job_id)

    assert job.status == "cancelled"
    assert world.restore_row(restore_id).status == "cancelled"
    assert list(world.target("half.raw").parent.iterdir()) == []
    assert world.open_sessions() == []


def test_a_failed_disk_stops_the_others(world: World) -> None:
    world.lab.bytes_per_second = 512 * 1024
    world.spy.faults["transfer"] = [Corrupt("bad chunk")]

    _, job_id = world.start_backup("web")
    job = world.wait(job_id)

    assert job.status == "failed"
    assert job.error is not None
    assert job.error["message"] == "bad chunk"
    _assert_nothing_left(world, job)


def test_a_source_that_stays_away_fails_the_backup_in_the_end(world: World) -> None:
    away: list[SendenseError] = [
        Unavailable("the source is away") for _ in range(TRANSFER_RETRY.attempts_max)
    ]
    world.spy.faults["transfer"] = away

    _, job_id = world.start_backup("db")
    job = world.wait(job_id)

    assert job.status == "failed"
    assert job.error is not None
    assert job.error["message"] == "the source is away"
    assert away == []


def test_a_snapshot_that_cannot_be_removed_is_an_alarm_and_not_a_failed_backup(
    world: World,
) -> None:
    tries = backup_undo.REMOVE_RETRY.attempts_max
    world.spy.faults["remove_snapshot"] = [Unavailable("busy") for _ in range(tries)]

    backup_id, job_id = world.start_backup("db")
    job = world.wait(job_id)

    assert job.status == "completed"
    assert world.backup(backup_id).status == "completed"
    assert any("could not be removed: busy" in one for one in world.backup(backup_id).warnings)
    assert len(world.lab.snapshots) == 1

    # A later turn of the housekeeping removes it.
    world.worker.housekeeping._leftovers_at = None
    world.worker.housekeeping.run()
    world.until(lambda: world.lab.snapshots == [])
    world.until(lambda: world.backup(backup_id).status == "completed")


def test_a_commit_whose_answer_was_lost_is_found_and_completes(world: World) -> None:
    """The commit wins, its step fails every time: the abort finds `committed`."""
    tries = backup_vm.COMMIT_RETRY.attempts_max

    def commit_beforehand() -> None:
        with world.catalog.read() as session:
            subject = backup_plan.load(session, ids[0])
        with world.repository() as repository:
            repository.commit(
                ids[0],
                ManifestDraft(
                    backup_id=subject.backup.id,
                    vm=subject.vm_record,
                    disk_keys=tuple(disk.key for disk in subject.disks),
                    moment=subject.snapshot_name,
                    consistency="filesystem",
                    requested_type="auto",
                    created_at=subject.backup.created_at,
                    started_at=subject.backup.created_at,
                ),
            )

    ids: list[str] = []
    reached = threading.Event()

    def call() -> None:
        reached.wait()
        commit_beforehand()

    world.spy.calls["commit"] = call
    world.spy.faults["commit"] = [Unavailable("time-out") for _ in range(tries)]
    backup_id, job_id = world.start_backup("db")
    ids.append(job_id)
    reached.set()
    job = world.wait(job_id)

    assert job.status == "completed"
    assert world.backup(backup_id).status == "completed"
    assert world.lab.snapshots == []
    assert world.restore(backup_id) == world.lab.disk("db").read_bytes()


def test_a_job_whose_workflow_broke_is_cleaned_up(world: World) -> None:
    """Stopping fails for good: the workflow ends with an error, and the housekeeping cleans up."""
    world.spy.faults["transfer"] = [Corrupt("bad chunk")]
    world.spy.faults["stop_transfers"] = [Corrupt("and this too")]

    backup_id, job_id = world.start_backup("db")
    world.until(lambda: (state := world.client.find(job_id)) is not None and state.ended)
    world.worker.housekeeping.run()
    job = world.wait(job_id)

    assert job.status == "failed"
    assert world.backup(backup_id).status == "failed"
    assert world.outcome(job_id) == "aborted"
    _assert_nothing_left(world, job)


def test_a_job_that_the_engine_never_got_is_handed_over(world: World) -> None:
    wanted = StartBackup(vm_name="db", repository_id=world.repository_id)
    with world.catalog.write() as session:
        accepted = service.start(session, world.hub, wanted)
        session.execute(
            sa.update(JobRow)
            .where(JobRow.id == accepted.job_id)
            .values(created_at=world.hub.clock.now() - timedelta(minutes=1))
        )

    world.worker.housekeeping.run()

    assert world.wait(accepted.job_id).status == "completed"
