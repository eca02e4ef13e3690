import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from sendense.db.tables.workers import WorkerRow
from sendense.durable import lease, presence
from sendense.durable.fenced import FencedCatalog
from sendense.durable.lease import Lease
from tests.unit.durable.conftest import World

LONG_SECONDS = 600.0


class Lost(Exception):
    """Stands for the end of the process."""


def _lose() -> None:
    raise Lost


@pytest.fixture
def held(world: World) -> Iterator[Lease]:
    one = Lease(
        world.catalog,
        worker_id="worker-1",
        lease_seconds=LONG_SECONDS,
        lock_folder=world.lock_folder,
        on_lost=_lose,
    )
    one.acquire()
    yield one
    one.release()


def _live(world: World, lease_seconds: float = LONG_SECONDS) -> int:
    with world.catalog.read() as session:
        found = lease.list_with_life(
            session, lease_seconds=lease_seconds, lock_folder=world.lock_folder
        )
    return sum(alive for _, alive in found)


def _age_of_the_only(world: World) -> float:
    with world.catalog.read() as session:
        (worker,) = lease.list_workers(session)
    return worker.age_seconds


def _age(world: World, seconds: float) -> None:
    with world.catalog.write() as session:
        session.execute(sa.update(WorkerRow).values(beat_at=WorkerRow.beat_at - seconds))


def test_a_worker_with_a_lease_is_alive(world: World, held: Lease) -> None:
    held.check()

    assert _live(world) == 1


def test_a_worker_that_released_its_lease_is_gone(world: World, held: Lease) -> None:
    held.release()

    assert _live(world) == 0
    assert list(world.lock_folder.iterdir()) == []


@pytest.mark.usefixtures("held")
def test_a_lease_is_dead_only_a_good_while_after_its_holder_gave_up(world: World) -> None:
    for path in world.lock_folder.iterdir():
        path.unlink()  # as seen from another machine
    _age(world, LONG_SECONDS * 1.4)
    assert _live(world) == 1

    _age(world, LONG_SECONDS * 0.2)
    assert _live(world) == 0


@pytest.mark.usefixtures("held")
def test_on_its_own_machine_no_clock_tells_that_a_worker_is_dead(world: World) -> None:
    _age(world, LONG_SECONDS * 100)
    assert _live(world) == 1

    _age(world, -LONG_SECONDS * 200)
    assert _live(world) == 1


@pytest.mark.usefixtures("held")
def test_a_dropped_lock_file_tells_death_before_the_clock_does(world: World) -> None:
    with world.catalog.write() as session:
        session.execute(
            sa.insert(WorkerRow).values(
                id="worker-2",
                host="here",
                pid=1,
                started_at=lease.epoch_now(),
                beat_at=lease.epoch_now(),
            )
        )
    assert _live(world) == 2  # no lock file: it may run on another machine

    presence.path_of(world.lock_folder, "worker-2").touch()

    assert _live(world) == 1


@pytest.mark.usefixtures("held")
def test_the_database_s_clock_counts(world: World) -> None:
    assert 0.0 <= _age_of_the_only(world) < LONG_SECONDS / 4


def test_a_beat_renews_the_lease(world: World, held: Lease) -> None:
    _age(world, LONG_SECONDS)

    held.beat()

    assert _age_of_the_only(world) < LONG_SECONDS / 4


def test_a_worker_that_was_declared_dead_ends_itself(world: World, held: Lease) -> None:
    with world.catalog.write() as session:
        session.execute(sa.delete(WorkerRow))

    with pytest.raises(Lost):
        held.beat()


def test_a_worker_whose_lease_is_stale_ends_itself_at_the_next_check(world: World) -> None:
    lost = threading.Event()
    one = Lease(
        world.catalog,
        worker_id="worker-1",
        lease_seconds=LONG_SECONDS,
        lock_folder=world.lock_folder,
        on_lost=lost.set,
    )
    one.acquire()
    one.check()
    assert not lost.is_set()

    one._beat_at -= LONG_SECONDS

    one.check()
    assert lost.is_set()
    one.release()


def test_the_lease_is_renewed_without_anybody_asking(world: World) -> None:
    one = Lease(
        world.catalog,
        worker_id="worker-1",
        lease_seconds=2.0,
        lock_folder=world.lock_folder,
        on_lost=_lose,
    )
    one.acquire()
    _age(world, LONG_SECONDS)

    waiting = threading.Event()
    while _age_of_the_only(world) > LONG_SECONDS / 2:  # ended by the test's time limit
        waiting.wait(0.02)
    one.release()


def test_a_worker_that_cannot_beat_ends_itself_without_being_asked(world: World) -> None:
    lost = threading.Event()
    one = Lease(
        world.catalog,
        worker_id="worker-1",
        lease_seconds=1.0,
        lock_folder=world.lock_folder,
        on_lost=lost.set,
    )
    one.acquire()
    with world.catalog.write() as session:  # as one that is frozen in here
        session.execute(sa.text("SELECT 1"))
        assert lost.wait(timeout=20.0)
    one.release()


def test_a_row_that_cannot_be_removed_is_left_to_the_sweep(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    one = Lease(
        world.catalog,
        worker_id="worker-1",
        lease_seconds=2.0,
        lock_folder=world.lock_folder,
        on_lost=_lose,
    )
    one.acquire()
    with world.catalog.write() as session:
        session.execute(sa.text("ALTER TABLE workers RENAME TO elsewhere"))
    waiting = threading.Event()
    while "could not be renewed" not in caplog.text:  # ended by the test's time limit
        waiting.wait(0.05)

    one.release()

    assert "could not be renewed" in caplog.text
    assert "stays until the next sweep" in caplog.text
    assert list(world.lock_folder.iterdir()) == []


def test_a_lost_lease_ends_the_process_at_once() -> None:
    script = "from sendense.durable.lease import end_process; end_process()"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 70


def test_a_worker_writes_the_catalog_only_while_its_row_is_there(world: World) -> None:
    lost: list[str] = []
    one = Lease(
        world.catalog,
        worker_id="worker-1",
        lease_seconds=LONG_SECONDS,
        lock_folder=world.lock_folder,
        on_lost=lambda: lost.append("lost"),
    )
    one.acquire()
    fenced = FencedCatalog(world.catalog, one)
    with fenced.write() as session:
        session.execute(sa.update(WorkerRow).values(version="7"))
    with fenced.read() as session:
        assert lease.list_workers(session)[0].about.version == "7"
    assert lost == []

    with world.catalog.write() as session:
        session.execute(sa.delete(WorkerRow))
    with fenced.write():
        assert lost == ["lost"]  # the real one does not return from that

    one._beat_at -= LONG_SECONDS
    with fenced.write():
        assert lost == ["lost"] * 3
    one.release()
    fenced.close()
