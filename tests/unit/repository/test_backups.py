"""The list of backups beside damaged, deleted and vanished objects."""

import random

import pytest

from sendense.core.errors import Corrupt, NotFound
from sendense.repository import backups, format, session
from sendense.repository.check import check
from sendense.repository.format import Frame
from sendense.repository.keyed import KeyedStorage
from sendense.repository.repository import Repository
from sendense.repository.storage.memory import MemoryStorage
from tests import gc_kit
from tests import repository_kit as kit
from tests.repository_kit import CHUNK, KEY, VM, Kit

FIRST = random.Random(1).randbytes(3 * CHUNK)
SECOND = FIRST[:CHUNK] + random.Random(2).randbytes(CHUNK) + FIRST[2 * CHUNK :]


@pytest.fixture
def storage() -> MemoryStorage:
    made = MemoryStorage()
    repository = Kit(made).create()
    kit.back_up(repository, "one", FIRST)
    kit.back_up(repository, "two", SECOND, parent="one", changed={1})
    return made


def _damage(storage: MemoryStorage, name: str, data: bytes = b"junk") -> None:
    storage.delete(name)
    storage.put_if_absent(name, data)


def _find_latest(repository: Repository) -> str | None:
    found = repository.find_latest(
        source_uuid=VM.source_uuid, vm_uuid=VM.uuid, disk_key=KEY, disk_uuid="disk-a"
    )
    return found.backup_id if found else None


def test_a_damaged_manifest_is_read_from_its_outcome_and_check_reports_it(
    storage: MemoryStorage,
) -> None:
    name = Kit(storage).open().get_backup("two").name
    _damage(storage, name)
    opened = Kit(storage).open(seed=5)
    assert [one.backup_id for one in opened.list_backups()] == ["one", "two"]
    assert _find_latest(opened) == "two"
    assert kit.restore(opened, "two") == SECOND
    made = kit.back_up(opened, "three", FIRST, parent="two", changed={1})
    assert made.disks[0].bytes_new == 0
    assert kit.restore(opened, "three") == FIRST
    for _ in range(2):  # what was found once is still reported
        assert [problem.name for problem in check(opened).problems] == [name]
    assert storage.get(name) == b"junk", "listing writes nothing"


def test_a_deleted_backup_stays_deleted_where_its_manifest_is_damaged(
    storage: MemoryStorage,
) -> None:
    repository = Kit(storage).open()
    name = repository.get_backup("two").name
    repository.delete_backup("two", who="me", why="test")
    _damage(storage, name)
    opened = Kit(storage).open(seed=5)
    assert [one.backup_id for one in opened.list_backups()] == ["one"]
    assert _find_latest(opened) == "one"


def test_a_backup_is_lost_from_the_list_only_where_manifest_and_outcome_are_damaged(
    storage: MemoryStorage,
) -> None:
    _damage(storage, Kit(storage).open().get_backup("two").name)
    _damage(storage, "outcomes/two")
    opened = Kit(storage).open(seed=5)
    with pytest.raises(Corrupt):
        opened.list_backups()
    with pytest.raises(Corrupt):
        opened.get_backup("two")
    assert opened.get_backup("one").backup_id == "one"
    found, damaged = opened.backups.scan()
    assert ([one.backup_id for one in found], len(damaged)) == (["one"], 1)


def test_a_damaged_tombstone_is_reported_and_nothing_is_guessed(storage: MemoryStorage) -> None:
    repository = Kit(storage).open()
    for backup_id in ("one", "two"):
        repository.delete_backup(backup_id, who="me", why="test")
    names = [found.name for found in storage.list_objects("tombs/")]
    other = storage.get(names[1])
    _damage(storage, names[0], other)  # whole, but under another's name
    opened = Kit(storage).open(seed=5)
    with pytest.raises(Corrupt, match="it is the tombstone"):
        opened.backups.list_deleted()
    with pytest.raises(Corrupt):
        opened.list_backups()
    assert len(check(opened).problems) == 1


def test_the_tombstone_of_a_backup_is_found(storage: MemoryStorage) -> None:
    repository = Kit(storage).open()
    made = repository.delete_backup("one", who="me", why="test")
    assert repository.backups.find_tombstone("one") == made
    assert repository.backups.find_tombstone("two") is None


def test_an_object_that_vanishes_after_the_listing_is_passed_over(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    Kit(storage).open().delete_backup("two", who="me", why="test")
    opened = Kit(storage).open(seed=5)
    name = opened.get_backup("one").name
    opened = Kit(storage).open(seed=6)
    real = format.get_frame

    def collected(at: KeyedStorage, kind: Frame, wanted: str) -> bytes:
        if wanted == name or kind is Frame.TOMBSTONE:
            at.delete(wanted)
        return real(at, kind, wanted)

    monkeypatch.setattr(format, "get_frame", collected)
    assert [one.backup_id for one in opened.list_backups()] == ["two"]
    assert opened.backups.list_deleted() == []


def test_an_outcome_that_vanishes_after_the_listing_makes_up_for_no_manifest(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    _damage(storage, Kit(storage).open().get_backup("two").name)
    opened = Kit(storage).open(seed=5)
    real = session.find_outcome

    def collected(at: KeyedStorage, session_id: str) -> session.Outcome | None:
        at.delete(session.OUTCOMES + session_id)
        return real(at, session_id)

    monkeypatch.setattr(session, "find_outcome", collected)
    found, damaged = opened.backups.scan()
    assert ([one.backup_id for one in found], len(damaged)) == (["one"], 1)


def test_of_the_manifests_only_a_bounded_number_is_kept(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backups, "CACHED_MAX", 1)
    opened = Kit(storage).open()
    assert len(opened.list_backups()) == len(opened.list_backups()) == 2
    assert len(opened.backups._manifests) == 1


def test_an_unknown_backup_is_not_found(storage: MemoryStorage) -> None:
    with pytest.raises(NotFound):
        Kit(storage).open().get_backup("three")


def test_what_was_deleted_is_told_from_what_is_lost(storage: MemoryStorage) -> None:
    asked = ["one", "two", "three", "four"]
    kit.back_up(Kit(storage, clock=gc_kit.CLOCK).open(seed=4), "three", FIRST)
    opened = gc_kit.opened(storage)
    assert opened.backups.list_deleted_of(asked) == frozenset()
    gc_kit.delete(storage, "one", "three")
    assert opened.backups.list_deleted_of(["one"]) == {"one"}
    gc_kit.collect(storage)
    gc_kit.delete(storage, "two")
    assert opened.backups.list_deleted_of(asked) == {"one", "two", "three"}
