"""What a check says of maps, packs and descriptors that decode and are wrong all the same."""

import dataclasses
import random

import pytest

from sendense.core.errors import Exists
from sendense.repository import check as check_module
from sendense.repository import descriptor, format, pack, record, session
from sendense.repository.check import CheckReport, check
from sendense.repository.format import Frame
from sendense.repository.storage.memory import MemoryStorage
from tests import repository_kit as kit
from tests.repository_kit import CHUNK, KEY, Kit

DATA = random.Random(4).randbytes(2 * CHUNK + 100)


@pytest.fixture
def storage() -> MemoryStorage:
    made = MemoryStorage()
    kit.back_up(Kit(made).create(), "one", DATA)
    return made


def _replace(storage: MemoryStorage, name: str, data: bytes) -> None:
    storage.delete(name)
    storage.put_if_absent(name, data)


def _forge_size(storage: MemoryStorage, size: int) -> CheckReport:
    """Let manifest and outcome agree on another size of the disk than its map has."""
    made = Kit(storage).open().get_backup("one")
    outcome = session.find_outcome(kit.keyed(storage), "one")
    assert outcome is not None
    disk = dataclasses.replace(made.disks[0], size_bytes=size)
    forged = dataclasses.replace(made, disks=(disk,))
    sealed = format.seal_frame(kit.KEYS, Frame.MANIFEST, record.dump(forged))
    _replace(storage, made.name, sealed)
    outcome = dataclasses.replace(outcome, manifest=forged)
    _replace(
        storage, "outcomes/one", format.seal_frame(kit.KEYS, Frame.OUTCOME, record.dump(outcome))
    )
    return check(Kit(storage).open(seed=5))


def test_a_map_that_goes_on_behind_the_end_is_reported(storage: MemoryStorage) -> None:
    report = _forge_size(storage, 2 * CHUNK)
    [problem] = report.problems
    assert (problem.kind, problem.backup_id, problem.disk_key) == ("map-corrupt", "one", KEY)
    assert (problem.offset, problem.length) == (2 * CHUNK, 0)


def test_a_chunk_of_another_length_than_the_disk_needs_is_reported(storage: MemoryStorage) -> None:
    report = _forge_size(storage, 3 * CHUNK)
    [problem] = report.problems
    assert (problem.kind, problem.offset, problem.length) == ("chunk-length", 2 * CHUNK, CHUNK)


def test_a_pack_whose_directory_is_damaged_is_found_without_reading_it(
    storage: MemoryStorage,
) -> None:
    name = next(storage.list_objects("packs/")).name
    whole = storage.get(name)
    _replace(storage, name, whole[: -pack.FOOTER.size - 8] + bytes(8) + whole[-pack.FOOTER.size :])
    [problem] = check(Kit(storage).open()).problems
    assert (problem.name, problem.kind) == (name, "object-corrupt")


def test_a_descriptor_that_was_damaged_since_it_was_opened_is_reported(
    storage: MemoryStorage,
) -> None:
    opened = Kit(storage).open()
    _replace(storage, descriptor.NAME, b"{")
    assert [problem.name for problem in check(opened).problems] == [descriptor.NAME]


def test_a_descriptor_with_an_impossible_chunk_size_is_damaged(storage: MemoryStorage) -> None:
    whole = storage.get(descriptor.NAME)
    opened = Kit(storage).open()
    _replace(
        storage, descriptor.NAME, whole.replace(b'"chunk_size":131072', b'"chunk_size":131073')
    )
    assert [problem.kind for problem in check(opened).problems] == ["object-corrupt"]


def test_of_two_that_create_a_repository_at_once_one_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = MemoryStorage()
    monkeypatch.setattr(storage, "list_top", list)  # the other one puts right after the look
    Kit(storage).create()
    before = storage.get(descriptor.NAME)
    with pytest.raises(Exists) as caught:
        Kit(storage, seed=2).create()
    assert caught.value.kind == "repository-exists"
    assert storage.get(descriptor.NAME) == before


def test_a_disk_of_zeros_has_no_map_to_check(storage: MemoryStorage) -> None:
    kit.back_up(Kit(storage).open(seed=5), "zeros", bytes(2 * CHUNK))
    report = check(Kit(storage).open(seed=6), read_data=True)
    assert (report.clean, report.disk_count) == (True, 2)


def test_problems_beyond_the_limit_are_counted_only(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_module, "PROBLEMS_MAX", 1)
    for found in list(storage.list_objects("packs/")):
        storage.delete(found.name)
    report = check(Kit(storage).open())
    assert len(report.problems) == 1
    assert report.problem_count == report.error_count == 4  # the pack and its three chunks
