"""A place that is full at any moment of a backup: that fails cleanly, a collection makes room."""

import contextlib

import pytest

from sendense.core.errors import NoSpace
from sendense.repository.gc import run
from sendense.repository.repository import Reserve
from sendense.repository.storage.memory import MemoryStorage
from tests import gc_kit
from tests import repository_kit as kit
from tests.crash import scenarios
from tests.crash.scenarios import FIRST, SECOND
from tests.repository_kit import CHUNK, Kit

pytestmark = pytest.mark.usefixtures("untraced")

RESERVE = Reserve(share=0.0, bytes_min=CHUNK)  # for packs of two chunks; 1 GiB in the product


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    scenarios.fill_packs_soon(monkeypatch)


def _of_size(before: MemoryStorage, capacity_bytes: int) -> MemoryStorage:
    storage = MemoryStorage(capacity_bytes=capacity_bytes)
    for found in before.list_objects():
        storage.put_if_absent(found.name, before.get(found.name))
    return storage


def test_a_backup_into_a_place_of_any_size_fails_cleanly_and_a_collection_makes_room() -> None:
    before = MemoryStorage()
    kit.back_up(Kit(before).create(), "first", FIRST)
    used = sum(found.size for found in before.list_objects())
    failed = succeeded = 0
    for free in range(0, 12 * CHUNK, CHUNK // 8):
        storage = _of_size(before, used + free)
        repository = Kit(storage, reserve=RESERVE).open(seed=free)
        try:
            kit.back_up(repository, "second", SECOND)
        except NoSpace:
            failed += 1
        else:
            succeeded += 1
            continue
        scenarios.assert_sound(storage, 1 + free)
        with contextlib.suppress(NoSpace):
            repository.abort("second", "the place is full")
        if free < RESERVE.bytes_min:
            continue  # somebody else used the reserve up: nothing can be written, nothing is lost

        again = Kit(storage, reserve=RESERVE).open(seed=2 + free)
        again.delete_backup("first", who="test", why="to make room")
        report = run.run(again, gc_kit.NOW)
        assert report.backup_count == 1
        storage = _of_size(storage, used + max(free, 3 * CHUNK))
        kit.back_up(Kit(storage, reserve=RESERVE).open(seed=3 + free), "third", FIRST[::-1])
        restored = Kit(storage).open(seed=4 + free)
        assert kit.restore(restored, "third") == FIRST[::-1]
    assert failed > 20
    assert succeeded > 0
