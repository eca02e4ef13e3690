"""Whole runs: what they say, and where they stop."""

import dataclasses

import pytest

from sendense.repository import pack
from sendense.repository.gc import run
from sendense.repository.gc.protocol import Collector, Stage
from sendense.repository.storage.memory import MemoryStorage
from tests import repository_kit as kit
from tests.gc_kit import CLOCK, NOW, SPARSE, assert_sound, collect, data, delete, opened, packs
from tests.repository_kit import CHUNK, Kit

GRACEFUL = dataclasses.replace(NOW, grace_seconds=3600.0)


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    """A repository whose packs hold one chunk each, with a deleted backup among two."""
    monkeypatch.setattr(pack, "TARGET_BYTES", 1)
    storage = MemoryStorage()
    Kit(storage, clock=CLOCK).create()
    kit.back_up(opened(storage), "one", data(1, 2))
    kit.back_up(opened(storage), "two", data(1, 3))
    delete(storage, "one")
    return storage


def test_a_preview_says_what_a_run_then_does(storage: MemoryStorage) -> None:
    opened(storage).begin_session("open")
    before = {found.name for found in storage.list_objects()}
    found = run.preview(opened(storage), NOW)
    assert {found.name for found in storage.list_objects()} == before
    assert (found.backup_count, found.pack_count, found.sparse_count) == (1, 2, 0)
    assert found.waits_for == ("open",)
    opened(storage).abort("open", "cancelled")
    report = run.run(opened(storage), NOW)
    assert (report.is_done, report.generation) == (True, 1)
    assert (report.backup_count, report.pack_count) == (1, 2)
    assert report.freed_bytes == found.freed_bytes
    assert run.preview(opened(storage), NOW).pack_count == 0
    assert_sound(storage, two=data(1, 3))


def test_a_preview_counts_what_is_rewritten(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "TARGET_BYTES", 8 * CHUNK)
    kit.back_up(opened(storage), "wide", data(11, 12, 13, 14))
    kit.back_up(opened(storage), "narrow", data(11))
    delete(storage, "wide")
    found = run.preview(opened(storage), SPARSE)
    assert found.sparse_count >= 1
    before = opened(storage).storage_bytes()
    run.run(opened(storage), SPARSE)
    freed = before - opened(storage).storage_bytes()
    assert found.freed_bytes == pytest.approx(freed, abs=CHUNK / 4)  # packs and lists, besides


def test_a_run_deletes_what_the_run_before_has_condemned(storage: MemoryStorage) -> None:
    before = packs(storage)
    first = run.run(opened(storage), GRACEFUL)
    assert (first.is_done, first.grace_seconds, first.pack_count) == (False, 3600.0, 0)
    assert packs(storage) == before
    delete(storage, "two")
    CLOCK.advance(3600)
    second = run.run(opened(storage), GRACEFUL)
    assert (second.is_done, second.generation, second.backup_count) == (False, 2, 1)
    assert len(packs(storage)) == len(before) - 2
    CLOCK.advance(3600)
    assert run.run(opened(storage), GRACEFUL).backup_count == 1
    assert packs(storage) == set()


def test_a_run_names_who_it_waits_for_and_goes_on_when_they_end(storage: MemoryStorage) -> None:
    writer = opened(storage)
    writer.begin_session("open")
    waited: list[tuple[str, ...]] = []

    def wait(sessions: tuple[str, ...]) -> None:
        waited.append(sessions)
        if len(waited) == 3:
            writer.abort("open", "cancelled")

    seen: set[str] = set()
    report = run.run(opened(storage), NOW, progress=lambda what, *_: seen.add(what), on_wait=wait)
    assert waited == [("open",)] * 3
    assert report.is_done
    assert seen == {"marking", "deleting"}


def test_a_run_goes_on_where_another_was_stopped(storage: MemoryStorage) -> None:
    collector = Collector(opened(storage), NOW)
    while collector.step() is not Stage.DELETING:
        pass
    report = run.run(opened(storage), NOW)
    assert (report.generation, report.backup_count) == (2, 1)
    assert collect(storage)[-1] is Stage.DONE
    assert_sound(storage, two=data(1, 3))
