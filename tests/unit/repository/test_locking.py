"""Objects are locked by their storage for as long as immutable backups need them."""

import random
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from sendense.core.clock import ManualClock
from sendense.core.errors import Denied, Invalid
from sendense.repository import locking, pack
from sendense.repository.check import check
from sendense.repository.gc import run
from sendense.repository.repository import Repository
from sendense.repository.storage.base import StoredObject
from sendense.repository.storage.locks import LockMode
from sendense.repository.storage.memory import MemoryLocks, MemoryStorage
from tests import gc_kit
from tests import repository_kit as kit
from tests.repository_kit import CHUNK, Kit

DAY = 86_400.0
DAYS = 30
LOCKED = ("packs/", "meta/", "backups/", "outcomes/", "sendense.json")
ONE = random.Random(1).randbytes(2 * CHUNK)
TWO = ONE[:CHUNK] + random.Random(2).randbytes(CHUNK)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def storage(clock: ManualClock) -> MemoryStorage:
    return MemoryStorage(clock=clock)


@pytest.fixture
def repository(
    storage: MemoryStorage, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> Repository:
    """A repository that locks, with a backup; a pack holds one chunk."""
    monkeypatch.setattr(pack, "TARGET_BYTES", 1)
    made = Kit(storage, clock=clock, immutable_days=DAYS, lock_mode=LockMode.COMPLIANCE).create()
    kit.back_up(made, "one", ONE)
    return made


def _locks(storage: MemoryStorage) -> dict[str, datetime | None]:
    locks = storage.locks()
    assert locks is not None
    return {
        one.name: locks.locked_until(one.name)
        for one in storage.list_objects()
        if one.name.startswith(LOCKED)
    }


def _packs(storage: MemoryStorage) -> set[str]:
    return {one.name for one in storage.list_objects("packs/")}


def _collect(repository: Repository) -> run.Report:
    return run.run(repository, gc_kit.NOW)


def test_a_commit_locks_all_that_the_backup_needs(
    storage: MemoryStorage, repository: Repository, clock: ManualClock
) -> None:
    least = clock.now() + timedelta(days=DAYS)
    found = _locks(storage)
    assert len(found) > 5
    assert all(until is not None and until >= least for until in found.values()), found
    for name in found:
        with pytest.raises(Denied) as caught:
            repository.storage.delete(name)
        assert caught.value.kind == "object-locked"


def test_nothing_is_committed_before_its_packs_are_locked(
    storage: MemoryStorage, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: MemoryLocks, name: str, *_: object) -> None:
        raise Denied(f"{name} may not be locked", kind="repository-denied")

    monkeypatch.setattr(MemoryLocks, "lock", refuse)
    with pytest.raises(Denied):
        kit.back_up(repository, "two", TWO)
    assert repository.find_outcome("two") is None
    monkeypatch.undo()
    repository.commit("two", kit.draft(repository, "two", "at-two"))
    assert None not in _locks(storage).values()


def test_each_collection_locks_what_is_still_needed_for_longer(
    storage: MemoryStorage, repository: Repository, clock: ManualClock
) -> None:
    for _ in range(8):
        clock.advance(5 * DAY)
        kit.back_up(repository, f"at-{clock.now():%j}", ONE)
        _collect(repository)
        least = clock.now() + timedelta(days=DAYS)
        found = _locks(storage)
        assert all(until is not None and until >= least for until in found.values()), found


def test_a_lock_is_renewed_now_and_then_and_not_each_time(
    storage: MemoryStorage, repository: Repository, clock: ManualClock
) -> None:
    before = _locks(storage)
    clock.advance(5 * DAY)
    _collect(repository)
    assert {name: _locks(storage)[name] for name in before} == before
    clock.advance(6 * DAY)
    _collect(repository)
    assert all(_locks(storage)[name] != until for name, until in before.items())


def test_what_is_locked_is_spared_and_said_and_freed_when_the_lock_is_over(
    storage: MemoryStorage, repository: Repository, clock: ManualClock
) -> None:
    clock.advance(DAYS * DAY + 1)
    kit.back_up(repository, "two", TWO)
    repository.delete_backup("one", who="me", why="old")
    before = _packs(storage)

    seen = run.preview(repository, gc_kit.NOW)
    done = _collect(repository)
    assert (done.pack_count, _packs(storage)) == (0, before)
    for told in (seen, done):
        assert told.locked_bytes > CHUNK
        assert told.reclaimable_after == "2026-02-10T00:00:00.000000Z"
    _collect(repository)  # a manifest that was locked, too, is tried again and again
    assert [one.backup_id for one in repository.list_backups()] == ["two"]

    clock.advance(10 * DAY)
    done = _collect(repository)
    assert (done.locked_bytes, done.reclaimable_after) == (0, None)
    assert len(_packs(storage)) == len(before) - 1
    assert kit.restore(repository, "two") == TWO
    assert check(repository).clean


def test_what_is_locked_after_it_was_condemned_stays_and_goes_later(
    storage: MemoryStorage, repository: Repository, clock: ManualClock
) -> None:
    clock.advance((DAYS + 11) * DAY)
    kit.back_up(repository, "two", TWO)
    repository.delete_backup("one", who="me", why="old")
    before = _packs(storage)
    graceful = replace(gc_kit.NOW, grace_seconds=DAY)
    assert not run.run(repository, graceful).is_done
    locks = storage.locks()
    assert locks is not None
    for name in before:
        locks.lock(name, LockMode.COMPLIANCE, clock.now() + timedelta(days=5))
    clock.advance(DAY)
    assert run.run(repository, graceful).backup_count == 1
    assert _packs(storage) == before
    clock.advance(DAY)
    assert check(repository).error_count == 0
    clock.advance(40 * DAY)
    for _ in range(3):
        _collect(repository)
    assert len(_packs(storage)) == len(before) - 1
    assert kit.restore(repository, "two") == TWO


def test_a_place_that_cannot_lock_is_refused_before_anything_is_written(
    clock: ManualClock,
) -> None:
    storage = MemoryStorage()
    with pytest.raises(Invalid) as caught:
        Kit(storage, clock=clock, immutable_days=1, lock_mode=LockMode.GOVERNANCE).create()
    assert (caught.value.kind, storage.list_top()) == ("storage-cannot-lock", [])
    with pytest.raises(Invalid) as caught:
        Kit(MemoryStorage(clock=clock), clock=clock, lock_mode=LockMode.GOVERNANCE).create()
    assert caught.value.kind == "repository-immutability-invalid"


def test_a_copy_in_a_place_that_cannot_lock_is_read_and_not_written(
    storage: MemoryStorage, repository: Repository, clock: ManualClock
) -> None:
    copy = MemoryStorage()
    for one in storage.list_objects():
        copy.put_if_absent(one.name, storage.get(one.name))
    opened = Kit(copy, clock=clock).open()
    assert kit.restore(opened, "one") == ONE
    with pytest.raises(Invalid) as caught:
        kit.back_up(opened, "two", TWO)
    assert caught.value.kind == "storage-cannot-lock"
    assert opened.locking.find_locked([one.name for one in copy.list_objects()]) == {}
    assert repository.id == opened.id


def test_objects_that_go_meanwhile_are_passed_over(
    repository: Repository, storage: MemoryStorage
) -> None:
    gone = StoredObject("packs/00/gone", 1).name
    repository.locking.extend([gone])
    assert repository.locking.find_locked([gone, "sendense.json"]).keys() == {"sendense.json"}
    with pytest.raises(Denied, match="no right"):
        locking.delete(_Refusing(), gone)
    del storage


class _Refusing(MemoryStorage):
    def delete(self, name: str) -> None:
        raise Denied(f"no right to remove {name}", kind="repository-denied")
