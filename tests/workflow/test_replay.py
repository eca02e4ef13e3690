import pytest

from sendense.durable.client import WorkflowStatus
from tests.workflow.world import World

STEPS = (
    "plan",
    "take_snapshot",
    "decide",
    "wait_transfers",
    "transfer",
    "commit",
    "record",
    "remove_snapshot",
    "finish",
)


def _die() -> None:
    """End the workflow's thread as a killed process would: nothing more is written."""
    raise SystemExit


@pytest.mark.parametrize("step", STEPS)
def test_a_backup_that_stops_before_any_step_ends_as_if_it_had_not(world: World, step: str) -> None:
    world.spy.calls[step] = _die
    backup_id, job_id = world.start_backup("db")
    dead = f"{job_id}/disk-2000" if step == "transfer" else job_id
    world.until(lambda: step in world.spy.steps and step not in world.spy.calls)
    state = world.client.find(dead)
    assert state is not None
    assert state.status is WorkflowStatus.RUNNING  # and nobody runs it

    assert world.client.take_over(dead, executor_id=state.executor_id or "")
    job = world.wait(job_id)

    assert job.status == "completed"
    assert world.backup(backup_id).status == "completed"
    assert world.lab.snapshots == []
    assert len(world.lab.change_ids) == 1
    assert world.open_sessions() == []
    assert [chain.latest_backup_id for chain in world.chains()] == [backup_id]
    assert world.spy.steps.count("take_snapshot") == (2 if step == "take_snapshot" else 1)
