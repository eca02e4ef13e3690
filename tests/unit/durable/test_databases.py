"""What leases, sweeps and the engine ask of a database, on each of those that there are."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from sendense.core.errors import Conflict, Invalid
from sendense.db import schema as catalog_schema
from sendense.db.catalog import Catalog
from sendense.db.tables.workers import WorkerRow
from sendense.durable import identity, lease
from sendense.durable.alone import alone
from sendense.durable.client import EngineClient, WorkflowStatus, migrate
from sendense.durable.definition import Workflow, step
from sendense.durable.lease import About, Lease
from sendense.durable.sweep import NOTHING, Sweep
from tests.servers.fixtures import KINDS
from tests.unit.durable.conftest import World, open_world

Url = Callable[[str], str]
ENGINES = ("sqlite", "postgresql")
SECONDS_MAX = 30.0


@pytest.fixture(params=KINDS)
def catalog(request: pytest.FixtureRequest, database_url: Url) -> Iterator[Catalog]:
    opened = Catalog(database_url(request.param))
    catalog_schema.migrate(opened)
    yield opened
    opened.close()


@contextmanager
def _other(catalog: Catalog) -> Iterator[Catalog]:
    """Another process's connections to the same catalog."""
    opened = Catalog(catalog.url.render_as_string(hide_password=False))
    yield opened
    opened.close()


def test_one_process_is_alone_and_the_next_one_after_it(catalog: Catalog, tmp_path: Path) -> None:
    with _other(catalog) as other:

        def is_alone(one: Catalog) -> bool:
            with alone("sweep", one, lock_folder=tmp_path, idle_seconds_max=60) as got:
                return got

        def is_alone_and_nobody_else() -> bool:
            with alone("sweep", catalog, lock_folder=tmp_path, idle_seconds_max=60) as got:
                assert not (got and is_alone(other))
                return got

        for _ in range(2):
            _until(is_alone_and_nobody_else)  # a server notices a moment later that one has gone
        _until(lambda: is_alone(other))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_one_that_froze_alone_on_another_machine_is_thrown_out(
    kind: str, database_url: Url, tmp_path: Path
) -> None:
    frozen = Catalog(database_url(kind))
    with (
        _other(frozen) as other,
        alone("sweep", frozen, lock_folder=tmp_path, idle_seconds_max=1.0) as got,
    ):
        assert got  # … and does nothing more

        def is_free() -> bool:
            with alone("sweep", other, lock_folder=tmp_path, idle_seconds_max=60) as free:
                return free

        _until(is_free)
    frozen.close()


def test_the_database_s_clock_is_now_and_goes_on(catalog: Catalog) -> None:
    with catalog.read() as session:
        first = session.scalar(sa.select(lease.epoch_now()))
    threading.Event().wait(0.05)
    with catalog.read() as session:
        second = session.scalar(sa.select(lease.epoch_now()))

    assert first is not None
    assert second is not None
    # The servers of these tests are in another time zone than this process.
    assert abs(time.time() - first) < 60
    assert 0.04 < second - first < 30


def test_a_lease_is_taken_renewed_and_released(catalog: Catalog, tmp_path: Path) -> None:
    held = Lease(
        catalog,
        worker_id="worker-1",
        lease_seconds=600.0,
        lock_folder=tmp_path,
        about=About({"host": "nas1", "site": "Zürich"}, "0.1.0"),
    )
    held.acquire()
    with catalog.write() as session:
        session.execute(sa.update(WorkerRow).values(beat_at=WorkerRow.beat_at - 100.0))
    with catalog.read() as session:
        (before,) = lease.list_workers(session)
    held.beat()
    with catalog.read() as session:
        (after,) = lease.list_workers(session)
    held.release()

    assert 99.0 < before.age_seconds < 160.0
    assert after.age_seconds < 60.0
    assert after.about == About({"host": "nas1", "site": "Zürich"}, "0.1.0")
    with catalog.read() as session:
        assert lease.list_workers(session) == []


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_lease_is_renewed_while_another_process_holds_the_write_lock(
    kind: str, open_catalog: Callable[[str], Catalog], tmp_path: Path
) -> None:
    catalog = open_catalog(kind)
    held = Lease(catalog, worker_id="worker-1", lease_seconds=600.0, lock_folder=tmp_path)
    held.acquire()
    with catalog.read() as session:
        (before,) = lease.list_workers(session)

    with _other(catalog) as other, other.write() as locked:
        locked.connection()  # from here on it has the lock
        held.beat()
        with catalog.read() as session:
            (after,) = lease.list_workers(session)

    assert after.beat_at > before.beat_at
    held.release()


def test_a_dead_worker_s_row_goes_and_a_living_one_s_stays(
    catalog: Catalog, database_url: Url, tmp_path: Path
) -> None:
    engine_url = database_url("sqlite")
    migrate(engine_url)
    client = EngineClient(engine_url)
    with catalog.write() as session:
        for worker_id, age_seconds in (("dead", 1000.0), ("alive", 0.0)):
            session.execute(
                sa.insert(WorkerRow).values(
                    id=worker_id,
                    host="elsewhere",
                    pid=1,
                    started_at=lease.epoch_now() - age_seconds,
                    beat_at=lease.epoch_now() - age_seconds,
                )
            )
    now = [0.0]
    sweep = Sweep(catalog, client, lease_seconds=60.0, lock_folder=tmp_path, clock=lambda: now[0])

    assert sweep.run().dead == ()
    now[0] += 61.0

    # The server may still be about to notice that the first sweep's connection, and lock, is gone.
    deadline = time.monotonic() + SECONDS_MAX
    while (report := sweep.run()) == NOTHING and time.monotonic() < deadline:
        time.sleep(0.01)
    assert report.dead == ("dead",)
    with catalog.read() as session:
        assert [one.worker_id for one in lease.list_workers(session)] == ["alive"]
    client.close()


@pytest.mark.parametrize("kind", ENGINES)
def test_several_processes_migrate_the_engine_at_once(kind: str, database_url: Url) -> None:
    url = database_url(kind)
    script = "import sys; from sendense.durable.client import migrate; print(migrate(sys.argv[1]))"
    running = [
        subprocess.Popen([sys.executable, "-c", script, url], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    told = [one.communicate(timeout=SECONDS_MAX * 4)[0] for one in running]

    assert [one.returncode for one in running] == [0, 0, 0]
    assert len(set(told)) == 1, told
    assert told[0].strip() == migrate(url)


@pytest.fixture(params=ENGINES)
def engine_world(
    request: pytest.FixtureRequest, database_url: Url, tmp_path: Path
) -> Iterator[World]:
    with open_world(
        tmp_path, catalog_url=database_url("sqlite"), engine_url=database_url(request.param)
    ) as made:
        yield made


@step("note")
def note(calls: list[str], what: str) -> str:
    calls.append(what)
    return what


def test_a_workflow_runs_where_its_labels_are(engine_world: World) -> None:
    required = {"host": "nas1"}
    engine_world.launch(
        Workflow("program", lambda flow: flow.run(note, flow.job_id), (note,)),
        labels={"host": "nas1", "site": "berlin"},
    )
    for job_id, demanded in (
        ("anywhere", {}),
        ("here", required),
        ("both", {"host": "nas1", "site": "berlin"}),
        ("elsewhere", {"host": "nas2"}),
    ):
        engine_world.client.start("program", job_id, priority=20, required=demanded)

    for job_id in ("anywhere", "here", "both"):
        assert engine_world.wait(job_id).status is WorkflowStatus.SUCCEEDED
    assert "elsewhere" not in engine_world.calls
    waiting = engine_world.client.find("elsewhere")
    assert waiting is not None
    assert (waiting.status, waiting.queue) == (WorkflowStatus.QUEUED, "jobs:host=nas2")
    assert engine_world.client.list_running() == {}


def test_a_take_over_keeps_the_placement(engine_world: World) -> None:
    client = engine_world.client
    client.start("program", "job-1", priority=20, required={"host": "nas1"})
    _set_pending(engine_world, executor="dead")
    assert client.list_running() == {"dead": {"job-1"}}

    assert not client.take_over("job-1", executor_id="another")
    assert client.take_over("job-1", executor_id="dead")
    assert not client.take_over("job-1", executor_id="dead")

    state = client.find("job-1")
    assert state is not None
    assert (state.status, state.queue) == (WorkflowStatus.QUEUED, "jobs:host=nas1")


@pytest.mark.parametrize("kind", KINDS[2:])
def test_an_engine_on_what_it_cannot_use_is_refused(kind: str, database_url: Url) -> None:
    with pytest.raises(Invalid) as refused:
        migrate(database_url(kind))
    assert refused.value.kind == "engine-unsupported"


def test_a_worker_of_another_engine_is_refused(catalog: Catalog, database_url: Url) -> None:
    hubs, own = (migrate(database_url("sqlite")) for _ in range(2))
    identity.check(catalog, own)  # before the hub has said anything
    identity.declare(catalog, hubs)
    identity.declare(catalog, hubs)
    identity.check(catalog, hubs)

    with pytest.raises(Conflict) as refused:
        identity.check(catalog, own)
    assert refused.value.kind == "engine-not-shared"

    identity.declare(catalog, own)  # the hub moved
    identity.check(catalog, own)


def _set_pending(world: World, *, executor: str) -> None:
    engine = sa.create_engine(world.url)
    table = "workflow_status" if world.url.startswith("sqlite") else "dbos.workflow_status"
    with engine.begin() as connection:
        connection.execute(
            sa.text(f"UPDATE {table} SET status = 'PENDING', executor_id = :one"),  # noqa: S608
            {"one": executor},
        )
    engine.dispose()


def _until(condition: Callable[[], bool]) -> None:
    waiting = threading.Event()
    for _ in range(int(SECONDS_MAX / 0.1)):
        try:
            if condition():
                return
        except SQLAlchemyError:  # a connection of the pool that the server closed
            pass
        waiting.wait(0.1)
    raise AssertionError("it never happened")
