"""Checkpoints that are damaged, swapped or lie, and processes that race for a disk."""

import dataclasses
import random
from collections.abc import Callable, Sequence

import pytest

from sendense.core.errors import Conflict, Exists
from sendense.repository import checkpoints, format, pack, record, session
from sendense.repository.format import Frame
from sendense.repository.repository import Repository
from sendense.repository.session import CheckpointHead, MapRun, Owner
from sendense.repository.storage.base import Buffer
from sendense.repository.storage.memory import MemoryStorage
from tests import repository_kit as kit
from tests.repository_kit import CHUNK, Kit

DATA = random.Random(8).randbytes(9 * CHUNK)


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "TARGET_BYTES", 2 * CHUNK)


@pytest.fixture
def storage() -> MemoryStorage:
    """A disk that is written up to its third checkpoint."""
    made = MemoryStorage()
    repository = Kit(made).create()
    repository.begin_session("s")
    kit.write_disk(repository, "s", DATA, moment="m", stop=7)
    assert len(_names(made)) == 3
    return made


def _names(storage: MemoryStorage) -> list[str]:
    found = [one.name for one in storage.list_objects("sessions/s/disks/")]
    return [name for name in found if "/owner/" not in name]


def _replace(storage: MemoryStorage, name: str, data: bytes) -> None:
    storage.delete(name)
    storage.put_if_absent(name, data)


def _resume(storage: MemoryStorage) -> int:
    """Return where the next process begins, after it has brought the backup to its end."""
    repository = Kit(storage).open(seed=5)
    with repository.open_disk_writer("s", kit.identity(len(DATA)), moment="m") as writer:
        index = writer.resume_index
    kit.write_disk(repository, "s", DATA, moment="m")
    repository.commit("s", kit.draft(repository, "b", "m"))
    assert kit.restore(Kit(storage).open(seed=6), "b") == DATA
    return index


def test_whole_checkpoints_are_used(storage: MemoryStorage) -> None:
    assert _resume(storage) == 6


def test_what_lies_behind_a_gap_is_not_used(storage: MemoryStorage) -> None:
    storage.delete(_names(storage)[1])
    assert _resume(storage) == 2


def test_a_damaged_owner_costs_time_and_no_data(storage: MemoryStorage) -> None:
    [name] = [one.name for one in storage.list_objects("sessions/s/") if "/owner/" in one.name]
    _replace(storage, name, b"junk")
    assert _resume(storage) == 0


def test_a_checkpoint_under_another_s_name_is_not_used(storage: MemoryStorage) -> None:
    first, second, _ = _names(storage)
    _replace(storage, second, storage.get(first))
    assert _resume(storage) == 0


@pytest.mark.parametrize("way", ["checkpoints", "owner"])
def test_what_was_written_for_another_disk_is_not_used(storage: MemoryStorage, way: str) -> None:
    # Whoever can write, but has no key, can move sealed objects to each other's names.
    repository = Kit(storage).open(seed=3)
    other = DATA[::-1]
    kit.write_disk(repository, "s", other, moment="m", stop=7, key=kit.KEY + 1)
    mine = [one for one in _names(storage) if f"/{kit.KEY}/" in one]
    others = [one for one in _names(storage) if one not in mine]
    if way == "owner":
        listed = [one.name for one in storage.list_objects("sessions/s/") if "/owner/" in one.name]
        mine, others = listed[:1], listed[1:]
    assert len(mine) == len(others) > 0
    for name, stranger in zip(mine, others, strict=True):
        _replace(storage, name, storage.get(stranger))
    assert _resume(storage) == 0


Lie = Callable[[CheckpointHead, list[MapRun]], tuple[CheckpointHead, list[MapRun]]]
LIES: dict[str, Lie] = {
    "ends elsewhere": lambda head, runs: (dataclasses.replace(head, resume_index=9), runs),
    "out of order": lambda head, runs: (head, [MapRun(0, 1), *runs]),
    "behind the end": lambda head, runs: (head, [*runs, MapRun(9, 1)]),
}


@pytest.mark.parametrize("lie", list(LIES))
def test_a_checkpoint_that_lies_is_not_used(storage: MemoryStorage, lie: str) -> None:
    name = _names(storage)[1]
    told = LIES[lie](*session.get_checkpoint(kit.keyed(storage), name))
    body = session.dump_checkpoint(*told)
    _replace(storage, name, format.seal_frame(kit.KEYS, Frame.CHECKPOINT, body))
    assert _resume(storage) == 0


def _race(storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch, *, times: int) -> Repository:
    """Let another process become owner right before this one does, so many times."""
    real = storage.put_if_absent
    left = times

    def put(name: str, data: Buffer | Sequence[Buffer]) -> None:
        nonlocal left
        if "/owner/" in name and left:
            left -= 1
            attempt = name.split("/")[4]
            other = Owner("s", kit.KEY, attempt, int(name[-6:]), (), Kit(storage).clock.now())
            real(name, format.seal_frame(kit.KEYS, Frame.OWNER, record.dump(other)))
        real(name, data)

    monkeypatch.setattr(storage, "put_if_absent", put)
    return Kit(storage).open(seed=5)


def test_a_process_that_lost_the_race_for_a_disk_becomes_the_next_owner(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = _race(storage, monkeypatch, times=2)
    with repository.open_disk_writer("s", kit.identity(len(DATA)), moment="m") as writer:
        assert writer._checkpoints.owner == 4
        assert writer.resume_index == 0  # the others inherited nothing


def test_a_race_that_never_ends_is_given_up(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "OWNERS_MAX", 4)
    repository = _race(storage, monkeypatch, times=100)
    with pytest.raises(Conflict) as caught:
        repository.open_disk_writer("s", kit.identity(len(DATA)), moment="m")
    assert caught.value.kind == "session-contended"


def test_a_finished_disk_that_vanishes_at_once_is_no_success(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session was ended by another process between the two calls."""
    repository = Kit(storage).open(seed=5)
    real = storage.put_if_absent

    def put(name: str, data: Buffer | Sequence[Buffer]) -> None:
        if "/done-" in name:
            raise Exists(f"object {name} exists already", name=name)
        real(name, data)

    monkeypatch.setattr(storage, "put_if_absent", put)
    with pytest.raises(Exists):
        kit.write_disk(repository, "s", DATA, moment="m")
