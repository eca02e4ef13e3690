"""Whatever call a backup dies or fails at, nothing committed is lost and the next try succeeds."""

import contextlib
import random
from collections.abc import Callable

import pytest

from sendense.core.errors import SendenseError
from sendense.repository import pack
from sendense.repository.check import check
from sendense.repository.repository import Repository
from sendense.repository.storage.memory import MemoryStorage
from tests import repository_kit as kit
from tests.crash.faulty import Death, Fault, FaultyStorage
from tests.repository_kit import CHUNK, Kit

CALLS_MAX = 400  # a scenario that needs more has a loop it should not have


def _disk(seed: int, chunks: int = 9) -> bytes:
    """Return a disk with data, a hole, a repeated chunk and a short end."""
    randomness = random.Random(seed)
    parts = [randomness.randbytes(CHUNK) for _ in range(chunks)]
    parts[3] = bytes(CHUNK)
    parts[5] = parts[1]
    return b"".join(parts) + b"end"


def _changed(data: bytes, *indexes: int) -> bytes:
    new = bytearray(data)
    for index in indexes:
        new[index * CHUNK] ^= 0xFF
    return bytes(new)


FIRST = _disk(1)
SECOND = _changed(FIRST, 0, 4, 9)
THIRD = _changed(SECOND, 2, 6)
CONTENT = {"first": FIRST, "second": SECOND, "third": THIRD}


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few chunks fill a pack, so that there are many packs and checkpoints to die at."""
    monkeypatch.setattr(pack, "TARGET_BYTES", 2 * CHUNK)


def _full(repository: Repository) -> None:
    kit.back_up(repository, "first", FIRST)


def _incremental(repository: Repository) -> None:
    kit.back_up(
        repository,
        "second",
        SECOND,
        parent="first",
        changed=kit.changed_chunks(FIRST, SECOND),
    )


def _resumed(repository: Repository) -> None:
    """Give up in the middle, then go on, as a worker does that takes over from a dead one."""
    repository.begin_session("third", parents=["first"])
    kit.write_disk(repository, "third", THIRD, moment="at-third", parent="first", stop=6)
    kit.back_up(repository, "third", THIRD, parent="first")


def _aborted(repository: Repository) -> None:
    repository.begin_session("gone", parents=["first"])
    kit.write_disk(repository, "gone", SECOND, moment="m", parent="first", stop=5)
    repository.abort("gone", "cancelled")


def _deleted(repository: Repository) -> None:
    kit.back_up(repository, "second", SECOND)
    repository.delete_backup("first", who="tester", why="no longer needed")


def _copy(storage: MemoryStorage) -> MemoryStorage:
    copied = MemoryStorage()
    for found in storage.list_objects():
        copied.put_if_absent(found.name, storage.get(found.name))
    return copied


def _prepared(scenario: Callable[[Repository], None]) -> MemoryStorage:
    storage = MemoryStorage()
    repository = Kit(storage).create()
    if scenario is not _full:
        _full(repository)
    return storage


def _assert_sound(storage: MemoryStorage, seed: int) -> Repository:
    repository = Kit(storage).open(seed=seed)
    report = check(repository, read_data=True)
    assert report.clean, report.problems
    for one in repository.list_backups():
        assert kit.restore(repository, one.backup_id) == CONTENT[one.backup_id], one.backup_id
    return repository


@pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name.lower())
@pytest.mark.parametrize(
    "scenario", [_full, _incremental, _resumed, _aborted, _deleted], ids=lambda one: one.__name__
)
def test_a_backup_may_stop_at_any_call(
    scenario: Callable[[Repository], None], fault: Fault
) -> None:
    before = _prepared(scenario)
    for at in range(1, CALLS_MAX):
        storage = _copy(before)
        faulty = FaultyStorage(storage, at=at, fault=fault)
        with contextlib.suppress(Death, SendenseError):
            scenario(Kit(faulty).open(seed=1000 + at))
        if faulty.calls < at:
            return
        committed = {one.backup_id for one in _assert_sound(storage, 2000 + at).list_backups()}
        assert scenario is _full or scenario is _deleted or "first" in committed

        repository = Kit(storage).open(seed=3000 + at)
        again = repository.find_outcome("second" if scenario is _incremental else "third")
        if again is None and scenario in {_incremental, _resumed}:
            scenario(repository)  # the job's next attempt, with the same session
        _assert_sound(storage, 4000 + at)

        repository = Kit(storage).open(seed=5000 + at)
        repository.settle_sessions()
        parents = [one.backup_id for one in repository.list_backups()]
        kit.back_up(repository, "next", THIRD, parent=parents[-1] if parents else None)
        report = check(Kit(storage).open())
        assert not report.error_count, report.problems
        assert kit.restore(repository, "next") == THIRD
    pytest.fail(f"more than {CALLS_MAX} calls")


@pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name.lower())
def test_creating_may_stop_at_any_call(fault: Fault) -> None:
    for at in range(1, CALLS_MAX):
        storage = MemoryStorage()
        faulty = FaultyStorage(storage, at=at, fault=fault)
        with contextlib.suppress(Death, SendenseError):
            Kit(faulty).create()
        if faulty.calls < at:
            return
        if storage.list_top():
            _full(Kit(storage).open())
        else:
            _full(Kit(storage).create())
        _assert_sound(storage, 9)
    pytest.fail(f"more than {CALLS_MAX} calls")


@pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name.lower())
def test_of_commit_and_abort_exactly_one_wins_whatever_fails(fault: Fault) -> None:
    before = _prepared(_incremental)
    repository = Kit(before).open()
    repository.begin_session("second", parents=["first"])
    kit.write_disk(repository, "second", SECOND, moment="m", parent="first")
    for at in range(1, CALLS_MAX):
        storage = _copy(before)
        faulty = FaultyStorage(storage, at=at, fault=fault)
        with contextlib.suppress(Death, SendenseError):
            opened = Kit(faulty).open(seed=at)
            opened.commit("second", kit.draft(opened, "second", "m"))
        if faulty.calls < at:
            return
        outcome = Kit(storage).open(seed=at + 1).abort("second", "too late or not")
        _assert_sound(storage, at)
        listed = {one.backup_id for one in Kit(storage).open().list_backups()}
        assert ("second" in listed) == (outcome.manifest is not None)
        assert not list(storage.list_objects("sessions/second"))
    pytest.fail(f"more than {CALLS_MAX} calls")
