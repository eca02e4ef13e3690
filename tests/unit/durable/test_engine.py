import sqlite3
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sendense.core.errors import NoSpace, NotFound, SendenseError, Unavailable
from sendense.db.failure import CatalogFull, CatalogUnavailable
from sendense.durable.client import EngineClient, EngineUnavailable, WorkflowStatus, migrate
from sendense.durable.definition import Retry, Workflow, step
from sendense.durable.flow import Place
from tests.unit.durable.conftest import World


@step("note")
def note(calls: list[Any], what: str) -> dict[str, Any]:
    calls.append(what)
    return {"what": (what,)}


@step("fail")
def fail(calls: list[Any], what: str) -> None:
    calls.append(what)
    raise NotFound("the VM is gone", hint="discover again", kind="vm-unknown", vm="pgtest1")


@step("break")
def defect(calls: list[Any]) -> None:
    calls.append("break")
    raise KeyError("root")


@step("flaky", retry=Retry(attempts_max=3, interval_seconds=2.0))
def flaky(calls: list[Any], answers_at: int) -> int:
    calls.append("flaky")
    if calls.count("flaky") < answers_at:
        raise Unavailable("no answer")
    return calls.count("flaky")


@step("full", retry=Retry(attempts_max=3))
def full(calls: list[Any]) -> None:
    calls.append("full")
    raise NoSpace("the storage is full")


def test_a_workflow_is_started_by_name_and_runs_its_steps_once(world: World) -> None:
    def program(flow: Any, word: str) -> Any:
        return [flow.run(note, word), flow.run(note, word + "!")]

    world.client.start("program", "job-1", "hello", priority=20)
    world.client.start("program", "job-1", "again", priority=20)
    world.launch(Workflow("program", program, (note,)))

    state = world.wait("job-1")

    assert state.status is WorkflowStatus.SUCCEEDED
    # Tuples come back as lists in the first run already, as they would in a replay.
    assert state.output == [{"what": ["hello"]}, {"what": ["hello!"]}]
    assert world.calls == ["hello", "hello!"]
    assert state.executor_id == "worker-1"
    assert world.shown == [("job-1", "note", "started"), ("job-1", "note", "ended")] * 2


def test_a_failed_step_raises_the_same_error_in_the_workflow(world: World) -> None:
    def program(flow: Any) -> Any:
        try:
            flow.run(fail, "x")
        except NotFound as error:
            return [error.message, error.hint, error.kind, error.fields]

    world.launch(Workflow("program", program, (fail,)))
    world.client.start("program", "job-1", priority=20)

    assert world.wait("job-1").output == [
        "the VM is gone",
        "discover again",
        "vm-unknown",
        {"vm": "pgtest1"},
    ]


def test_the_owner_is_told_how_steps_end(world: World) -> None:
    world.launch(Workflow("program", lambda flow: flow.run(fail, "x"), (fail,)))
    world.client.start("program", "job-1", priority=20)
    world.wait("job-1")

    assert world.shown == [("job-1", "fail", "started"), ("job-1", "fail", "vm-unknown")]


def test_a_failed_workflow_says_why(world: World) -> None:
    world.launch(Workflow("program", lambda flow: flow.run(fail, "x"), (fail,)))
    world.client.start("program", "job-1", priority=20)

    state = world.wait("job-1")

    assert state.status is WorkflowStatus.FAILED
    assert isinstance(state.error, SendenseError)
    assert "the VM is gone" in state.error.message


def test_a_defect_in_a_step_is_an_error_that_a_workflow_can_clean_up_after(world: World) -> None:
    def program(flow: Any) -> Any:
        try:
            flow.run(defect)
        except SendenseError as error:
            return error.kind

    world.launch(Workflow("program", program, (defect,)))
    world.client.start("program", "job-1", priority=20)

    assert world.wait("job-1").output == "internal-error"


def test_a_step_asks_again_with_growing_waits_while_the_world_does_not_answer(
    world: World,
) -> None:
    world.launch(Workflow("program", lambda flow: flow.run(flaky, 3), (flaky,)))
    world.client.start("program", "job-1", priority=20)

    assert world.wait("job-1").output == 3
    assert world.pauses == [("job-1", 2.0, True), ("job-1", 4.0, True)]


def test_a_step_gives_up_after_its_last_attempt(world: World) -> None:
    world.launch(Workflow("program", lambda flow: flow.run(flaky, 9), (flaky,)))
    world.client.start("program", "job-1", priority=20)

    assert world.wait("job-1").status is WorkflowStatus.FAILED
    assert world.calls == ["flaky"] * 3


def test_a_full_storage_is_not_asked_again(world: World) -> None:
    world.launch(Workflow("program", lambda flow: flow.run(full), (full,)))
    world.client.start("program", "job-1", priority=20)

    assert world.wait("job-1").status is WorkflowStatus.FAILED
    assert world.calls == ["full"]


def test_the_lease_is_asked_for_before_every_attempt(world: World) -> None:
    asked: list[int] = []
    world.launch(
        Workflow("program", lambda flow: flow.run(flaky, 3), (flaky,)),
        check_lease=lambda: asked.append(len(world.calls)),
    )
    world.client.start("program", "job-1", priority=20)
    world.wait("job-1")

    assert asked == [0, 0, 1, 2]  # and before the step is shown


def test_children_run_beside_each_other_under_ids_of_their_own(world: World) -> None:
    @step("wait")
    def wait(calls: list[Any], ids: list[str]) -> list[Any]:
        calls.append("wait")
        return [world.wait(one).output for one in ids]

    child = Workflow("child", lambda flow, word: flow.run(note, word), (note,))

    def program(flow: Any) -> Any:
        ids = [
            flow.start(child, suffix, suffix, priority=20, place=Place("source-1", {}))
            for suffix in ("disk-2000", "disk-2001")
        ]
        return flow.run(wait, ids)

    world.launch(Workflow("program", program, (wait,)), child)
    world.client.start("program", "job-1", priority=20)

    assert world.wait("job-1").output == [{"what": ["disk-2000"]}, {"what": ["disk-2001"]}]
    assert {state.workflow_id for state in world.client.list_workflows(prefix="job-1/")} == {
        "job-1/disk-2000",
        "job-1/disk-2001",
    }


def test_after_a_restart_finished_steps_are_not_run_again(world: World) -> None:
    failing = [True]

    @step("second")
    def second(calls: list[Any]) -> str:
        calls.append("second")
        if failing[0]:
            raise SystemExit  # as if the process ended here
        return "done"

    def program(flow: Any) -> Any:
        flow.run(note, "first")
        return flow.run(second)

    workflow = Workflow("program", program, (note, second))
    engine = world.launch(workflow)
    world.client.start("program", "job-1", priority=20)
    _wait_until(world, lambda: "second" in world.calls)
    engine.stop(wait_seconds=0)
    world.engines.clear()
    failing[0] = False
    with sqlite3.connect(world.folder / "engine.sqlite") as connection:
        connection.execute(
            "UPDATE workflow_status SET status = 'PENDING', output = NULL, error = NULL"
        )
    connection.close()

    assert world.client.take_over("job-1", executor_id="worker-1")
    world.launch(workflow, executor_id="worker-2")

    assert world.wait("job-1").output == "done"
    assert world.calls == ["first", "second", "second"]


def test_nothing_in_the_database_is_pickled(world: World) -> None:
    world.launch(Workflow("program", lambda flow, word: flow.run(note, word), (note,)))
    world.client.start("program", "job-1", "hello", priority=20)
    world.wait("job-1")

    connection = sqlite3.connect(world.folder / "engine.sqlite")
    formats = connection.execute(
        "SELECT serialization FROM workflow_status"
        " UNION SELECT serialization FROM operation_outputs"
    ).fetchall()
    connection.close()

    assert formats == [("portable_json",)]


def test_finished_workflows_can_be_forgotten(world: World) -> None:
    world.launch(Workflow("program", lambda flow: flow.run(note, "x"), (note,)))
    world.client.start("program", "job-1", priority=20)
    world.wait("job-1")

    assert world.client.delete_finished(before=datetime.now(tz=UTC) - timedelta(days=1)) == 0
    assert world.client.delete_finished(before=datetime.now(tz=UTC) + timedelta(days=1)) == 1
    assert world.client.find("job-1") is None


def test_a_database_that_does_not_answer_is_unavailable(world: World) -> None:
    (world.folder / "engine.sqlite").rename(world.folder / "elsewhere.sqlite")
    (world.folder / "engine.sqlite").mkdir()

    with pytest.raises(EngineUnavailable):
        EngineClient(world.url)
    with pytest.raises(EngineUnavailable):
        migrate(world.url)


def _wait_until(world: World, condition: Any) -> None:
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.02)
    raise AssertionError(f"it never happened: {world.calls}")


@pytest.mark.parametrize(
    "outage",
    [
        EngineUnavailable("the engine's database does not answer"),
        CatalogUnavailable("the catalog does not answer"),
        CatalogFull("the disk of the catalog is full"),
    ],
    ids=["engine", "catalog", "full"],
)
def test_a_database_that_restarts_costs_a_step_no_attempt(world: World, outage: Exception) -> None:
    @step("ask")  # no second attempt by itself
    def ask(calls: list[Any]) -> str:
        calls.append("ask")
        if len(calls) <= 3:
            raise outage
        return "answer"

    world.launch(Workflow("program", lambda flow: flow.run(ask), (ask,)))
    world.client.start("program", "job-1", priority=20)

    assert world.wait("job-1").output == "answer"
    assert [(seconds, cancellable) for _, seconds, cancellable in world.pauses] == [
        (0.5, False),
        (1.0, False),
        (2.0, False),
    ]


def test_a_database_that_never_comes_back_fails_the_step_after_a_while(world: World) -> None:
    @step("ask")
    def ask(calls: list[Any]) -> None:
        calls.append("ask")
        raise EngineUnavailable("the engine's database does not answer")

    world.launch(Workflow("program", lambda flow: flow.run(ask), (ask,)))
    world.client.start("program", "job-1", priority=20)

    error = world.wait("job-1").error
    assert error is not None
    assert "does not answer" in error.message
    assert sum(seconds for _, seconds, _ in world.pauses) > 600


def test_a_step_without_a_lease_shows_nothing_any_more(world: World) -> None:
    def lose() -> None:
        raise SystemExit  # as if the process ended here

    world.launch(Workflow("program", lambda flow: flow.run(note, "x"), (note,)), check_lease=lose)
    world.client.start("program", "job-1", priority=20)
    _wait_until(
        world,
        lambda: (
            (state := world.client.find("job-1")) is not None
            and state.status is WorkflowStatus.RUNNING
        ),
    )
    world.engines.pop().stop(wait_seconds=1)

    assert (world.calls, world.shown) == ([], [])


def test_nothing_is_listed_where_no_workflow_is_asked_for(world: World) -> None:
    world.client.start("program", "job-1", priority=20)

    assert world.client.list_workflows(workflow_ids=[]) == []
    assert [one.workflow_id for one in world.client.list_active()] == ["job-1"]


def test_a_workflow_that_nobody_knows_is_cancelled_already(world: World) -> None:
    world.client.start("program", "job-1", priority=20)

    world.client.cancel("job-unknown")
    world.client.cancel("job-1")

    assert world.wait("job-1").status is WorkflowStatus.CANCELLED


def test_a_workflow_that_is_broken_itself_fails(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def program(flow: Any) -> None:
        del flow
        raise KeyError("root")

    world.launch(Workflow("program", program, ()))
    world.client.start("program", "job-1", priority=20)

    assert world.wait("job-1").status is WorkflowStatus.FAILED
    assert "job-1 is broken" in caplog.text
