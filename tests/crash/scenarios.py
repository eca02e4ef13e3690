"""What the crash tests do to a repository, and what must hold after it."""

import random

import pytest

from sendense.repository import pack
from sendense.repository.check import check
from sendense.repository.repository import Repository
from sendense.repository.storage.base import Storage
from sendense.repository.storage.memory import MemoryStorage
from tests import repository_kit as kit
from tests.repository_kit import CHUNK, Kit

CALLS_MAX = 400  # a scenario that needs more has a loop it should not have


def disk(seed: int, chunks: int = 9) -> bytes:
    """Return a disk with data, a hole, a repeated chunk and a short end."""
    randomness = random.Random(seed)
    parts = [randomness.randbytes(CHUNK) for _ in range(chunks)]
    parts[3] = bytes(CHUNK)
    parts[5] = parts[1]
    return b"".join(parts) + b"end"


def changed(data: bytes, *indexes: int) -> bytes:
    new = bytearray(data)
    for index in indexes:
        new[index * CHUNK] ^= 0xFF
    return bytes(new)


FIRST = disk(1)
SECOND = changed(FIRST, 0, 4, 9)
THIRD = changed(SECOND, 2, 6)
CONTENT = {"first": FIRST, "second": SECOND, "third": THIRD}


def full(repository: Repository) -> None:
    kit.back_up(repository, "first", FIRST)


def incremental(repository: Repository) -> None:
    kit.back_up(
        repository,
        "second",
        SECOND,
        parent="first",
        changed=kit.changed_chunks(FIRST, SECOND),
    )


def resumed(repository: Repository) -> None:
    """Give up in the middle, then go on, as a worker does that takes over from a dead one."""
    repository.begin_session("third", parents=["first"])
    kit.write_disk(repository, "third", THIRD, moment="at-third", parent="first", stop=6)
    kit.back_up(repository, "third", THIRD, parent="first")


def aborted(repository: Repository) -> None:
    repository.begin_session("gone", parents=["first"])
    kit.write_disk(repository, "gone", SECOND, moment="m", parent="first", stop=5)
    repository.abort("gone", "cancelled")


def deleted(repository: Repository) -> None:
    kit.back_up(repository, "second", SECOND)
    repository.delete_backup("first", who="tester", why="no longer needed")


def copy(storage: Storage) -> MemoryStorage:
    copied = MemoryStorage()
    for found in storage.list_objects():
        copied.put_if_absent(found.name, storage.get(found.name))
    return copied


def assert_sound(storage: Storage, seed: int) -> Repository:
    repository = Kit(storage).open(seed=seed)
    report = check(repository, read_data=True)
    assert report.clean, report.problems
    for one in repository.list_backups():
        assert kit.restore(repository, one.backup_id) == CONTENT[one.backup_id], one.backup_id
    return repository


def fill_packs_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few chunks fill a pack, so that there are many packs and checkpoints to die at."""
    monkeypatch.setattr(pack, "TARGET_BYTES", 2 * CHUNK)
