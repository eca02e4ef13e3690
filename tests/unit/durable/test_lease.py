import threading
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from sendense.db.tables.workers import WorkerRow
from sendense.durable import lease
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
        return lease.count_live(session, lease_seconds=lease_seconds, lock_folder=world.lock_folder)


def _age(world: World, seconds: float) -> None:
    with world.catalog.write() as session:
        session.execute(sa.update(WorkerRow).values(beat_at=WorkerRow.beat_at - seconds))


def test_a_worker_with_a_lease_is_alive(world: World, held: Lease) -> None:
    held.check()

    assert _live(world) == 1


def test_a_worker_that_released_its_lease_is_gone(world: World, held: Lease) -> None:
    held.release()

    assert _live(world) == 0
    assert list(world.lock_folder.glob("*.lock")) == []


@pytest.mark.usefixtures("held")
def test_a_lease_is_dead_only_a_good_while_after_its_holder_gave_up(world: World) -> None:
    _age(world, LONG_SECONDS * 1.4)
    assert _live(world) == 1

    _age(world, LONG_SECONDS * 0.2)
    assert _live(world) == 0


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

    lease.lock_path(world.lock_folder, "worker-2").touch()

    assert _live(world) == 1


@pytest.mark.usefixtures("held")
def test_the_database_s_clock_counts(world: World) -> None:
    with world.catalog.read() as session:
        (worker,) = lease.list_workers(session)

    assert 0.0 <= worker.age_seconds < LONG_SECONDS / 4


def test_a_beat_renews_the_lease(world: World, held: Lease) -> None:
    _age(world, LONG_SECONDS)

    held.beat()

    with world.catalog.read() as session:
        assert lease.list_workers(session)[0].age_seconds < LONG_SECONDS / 4


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

    one.lease_seconds = 0.0

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
    for _ in range(200):
        if _live(world, lease_seconds=2.0):
            break
        waiting.wait(0.02)

    assert _live(world, lease_seconds=2.0) == 1
    one.release()
