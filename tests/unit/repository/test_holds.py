"""Backups that nobody may delete: held ones until they are let go, immutable ones until a date."""

import contextlib
import random
from collections.abc import Callable, Sequence
from datetime import timedelta

import pytest

from sendense.core.clock import ManualClock
from sendense.core.errors import Conflict, Exists, Invalid, NotFound
from sendense.repository import format, holds, record
from sendense.repository.check import check
from sendense.repository.format import Frame
from sendense.repository.gc import run
from sendense.repository.repository import Repository
from sendense.repository.storage.base import Buffer
from sendense.repository.storage.memory import MemoryStorage
from tests import gc_kit
from tests import repository_kit as kit
from tests.repository_kit import CHUNK, Kit

DATA = random.Random(1).randbytes(2 * CHUNK)
OTHER = random.Random(2).randbytes(2 * CHUNK)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def storage(clock: ManualClock) -> MemoryStorage:
    made = MemoryStorage(clock=clock)
    repository = Kit(made, clock=clock).create()
    kit.back_up(repository, "one", DATA)
    kit.back_up(repository, "two", OTHER)
    return made


@pytest.fixture
def repository(storage: MemoryStorage, clock: ManualClock) -> Repository:
    return Kit(storage, clock=clock).open()


def _delete(repository: Repository, backup_id: str = "one") -> None:
    repository.delete_backup(backup_id, who="me", why="space")


def _hold(repository: Repository, backup_id: str = "one") -> holds.Hold:
    return repository.backups.hold(backup_id, who="court", why="case 7")


def _ids(repository: Repository) -> list[str]:
    return [one.backup_id for one in repository.list_backups()]


def _collect(repository: Repository) -> run.Report:
    return run.run(repository, gc_kit.NOW)


# Holds.


def test_a_held_backup_is_not_deleted_until_it_is_let_go(repository: Repository) -> None:
    _hold(repository)
    with pytest.raises(Conflict, match="held by court: case 7") as caught:
        _delete(repository)
    assert caught.value.kind == "backup-held"
    assert list(repository.backups.list_held()) == ["one"]
    _collect(repository)
    assert kit.restore(repository, "one") == DATA

    released = repository.backups.release("one", who="court", why="over")
    assert (released and released.number, repository.backups.list_held()) == (2, {})
    _delete(repository)
    _collect(repository)
    assert _ids(repository) == ["two"]
    assert check(repository).clean


def test_letting_go_what_is_not_held_changes_nothing(repository: Repository) -> None:
    before = {one.name for one in repository.storage.list_objects()}
    assert repository.backups.release("one", who="me", why="") is None
    assert {one.name for one in repository.storage.list_objects()} == before


def test_holding_twice_holds_and_once_let_go_is_enough(repository: Repository) -> None:
    assert (_hold(repository).number, _hold(repository).number) == (1, 2)
    repository.backups.release("one", who="me", why="")
    _delete(repository)


def test_a_deleted_backup_cannot_be_held(repository: Repository) -> None:
    _delete(repository)
    with pytest.raises(NotFound):
        _hold(repository)
    assert repository.backups.list_held() == {}


class Between(MemoryStorage):
    """Calls something right after the first object of a folder is put."""

    folder = "none/"
    call: Callable[[], None] = staticmethod(lambda: None)

    def put_if_absent(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        super().put_if_absent(name, data)
        if name.startswith(self.folder):
            self.folder = "none/"
            self.call()


def _between(clock: ManualClock, folder: str) -> tuple[Between, Repository, Repository]:
    storage = Between()
    kit.back_up(Kit(storage, clock=clock).create(), "one", DATA)
    storage.folder = folder
    return storage, Kit(storage, clock=clock).open(), Kit(storage, clock=clock).open(seed=5)


def test_a_hold_that_comes_during_a_deletion_wins(clock: ManualClock) -> None:
    storage, first, second = _between(clock, "tombs/")
    outcome: list[str] = []

    def hold() -> None:
        with contextlib.suppress(NotFound):
            _hold(second)
            outcome.append("held")

    storage.call = hold
    _delete(first)  # its tombstone was there before the hold, which is refused
    assert (outcome, _ids(first)) == ([], [])

    storage, first, second = _between(clock, "none/")
    real = first.backups._require_deletable

    def look_then_hold(one: object) -> None:
        real(one)  # type: ignore[arg-type]
        if not first.backups.list_held():
            _hold(second)

    first.backups._require_deletable = look_then_hold  # type: ignore[method-assign]
    with pytest.raises(Conflict) as caught:
        _delete(first)
    assert (caught.value.kind, _ids(second)) == ("backup-held", ["one"])


def test_a_deletion_that_died_beside_a_hold_is_none_until_it_is_let_go(
    clock: ManualClock,
) -> None:
    storage, first, second = _between(clock, "none/")
    _delete(first)
    manifest_id = first.backups.find_tombstone("one").manifest_id  # type: ignore[union-attr]
    change = holds.Change(held=True, who="court", why="case 7", at=clock.now())
    holds.put(second.storage, manifest_id, "one", change)
    assert _ids(second) == ["one"]
    _collect(second)
    assert kit.restore(Kit(storage, clock=clock).open(seed=7), "one") == DATA
    second.backups.release("one", who="court", why="over")
    _collect(second)
    assert _ids(second) == []
    assert second.storage_bytes() < len(DATA)


def test_two_who_hold_at_once_get_numbers_of_their_own(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    _hold(repository)
    real = holds._numbers
    seen = [[0]]  # as it was before the other one

    monkeypatch.setattr(holds, "_numbers", lambda *given: seen.pop() if seen else real(*given))
    assert _hold(repository).number == 2
    assert list(repository.backups.list_held()) == ["one"]


def test_a_hold_that_never_gets_a_number_says_so(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    _hold(repository)
    monkeypatch.setattr(holds, "_numbers", lambda *_: [])
    with pytest.raises(Exists):
        _hold(repository)


def test_strangers_names_among_holds_are_left_alone(
    storage: MemoryStorage, repository: Repository
) -> None:
    made = _hold(repository)
    for name in ("holds/x", f"holds/{made.manifest_id}/later", f"holds/{made.manifest_id}/2"):
        storage.put_if_absent(name, b"x")
    assert list(repository.backups.list_held()) == ["one"]
    assert _hold(repository).number == 3


@pytest.mark.parametrize("change", [{"number": 9}, {"manifest_id": "ab" * 16}])
def test_a_hold_of_another_backup_or_number_is_damage(
    storage: MemoryStorage, repository: Repository, change: dict[str, object]
) -> None:
    made = _hold(repository)
    name = f"holds/{made.manifest_id}/000001"
    storage.delete(name)
    body = record.dump(made)
    for key, value in change.items():
        old, new = (f'"{key}":{record.to_json(made)[key]!r}', f'"{key}":{value!r}')
        body = body.replace(old.replace("'", '"').encode(), new.replace("'", '"').encode())
    format.put_frame(repository.storage, Frame.HOLD, name, body)
    assert [one.name for one in check(repository).problems] == [name]
    held = repository.backups.list_held()
    assert held["one"].why == holds.WHY
    with pytest.raises(Conflict, match="nobody knows whom"):
        _delete(repository)
    _collect(repository)
    assert kit.restore(repository, "one") == DATA
    repository.backups.release("one", who="me", why="it was not")
    _delete(repository)


# Immutable backups.


@pytest.fixture
def immutable(clock: ManualClock) -> Repository:
    """Two immutable backups that share nothing, in packs of one chunk each."""
    made = Kit(MemoryStorage(clock=clock), clock=clock, immutable_days=30).create()
    kit.back_up(made, "one", DATA)
    return made


def test_an_immutable_backup_is_not_deleted_before_its_date(
    immutable: Repository, clock: ManualClock
) -> None:
    until = immutable.get_backup("one").immutable_until
    assert until == immutable.get_backup("one").completed_at + timedelta(days=30)
    clock.advance(29.9 * 86_400)
    with pytest.raises(Conflict, match="immutable until 2026-01-31T00:00:00") as caught:
        _delete(immutable)
    assert caught.value.kind == "backup-immutable"
    clock.advance(0.2 * 86_400)
    _delete(immutable)
    assert _ids(immutable) == []


def test_a_collector_keeps_what_is_immutable_whoever_deleted_it(
    immutable: Repository, clock: ManualClock
) -> None:
    ahead = ManualClock()
    ahead.advance(40 * 86_400)
    _delete(Kit(immutable.storage, clock=ahead).open())
    assert _collect(immutable).backup_count == 0
    assert immutable.clock is clock
    (tomb,) = immutable.backups.list_deleted()
    immutable.storage.delete(f"tombs/{tomb.object_id}")
    assert kit.restore(immutable, "one") == DATA


@pytest.mark.parametrize("days", [-1, 36_501])
def test_days_that_cannot_be_meant_are_refused(clock: ManualClock, days: int) -> None:
    storage = MemoryStorage()
    with pytest.raises(Invalid) as caught:
        Kit(storage, clock=clock, immutable_days=days).create()
    assert caught.value.kind == "repository-immutability-invalid"
    assert storage.list_top() == []
