"""Garbage collection step by step: what goes, what stays, and who is waited for."""

from datetime import timedelta

import pytest

from sendense.core.errors import Conflict, Corrupt, Invalid, NotFound
from sendense.repository import pack
from sendense.repository.gc import records
from sendense.repository.gc.protocol import Collector, Options, Stage
from sendense.repository.gc.records import Plan
from sendense.repository.gc.verdict import Limits
from sendense.repository.manifest import DiskTotals, Mode
from sendense.repository.session import State
from sendense.repository.storage.memory import MemoryStorage
from tests import repository_kit as kit
from tests.gc_kit import CLOCK, NOW, assert_sound, collect, data, delete, opened, packs
from tests.repository_kit import CHUNK, Kit


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    """A repository whose packs hold one chunk each."""
    monkeypatch.setattr(pack, "TARGET_BYTES", 1)
    storage = MemoryStorage()
    Kit(storage).create()
    return storage


def test_what_only_a_deleted_backup_needs_goes_and_nothing_else(storage: MemoryStorage) -> None:
    repository = opened(storage)
    kit.back_up(repository, "one", data(1, 2, 3))
    kit.back_up(repository, "two", data(1, 4, 3))
    before = packs(storage)
    delete(storage, "one")
    assert collect(storage) == [
        Stage.PLANNED,
        Stage.CONDEMNED,
        Stage.DECIDED,
        Stage.DELETING,
        Stage.DONE,
    ]
    gone = before - packs(storage)
    assert len([name for name in gone if name.startswith("packs/")]) == 1
    assert len([name for name in gone if name.startswith("meta/")]) == 1
    assert_sound(storage, two=data(1, 4, 3))
    assert list(storage.list_objects("tombs/")) == []
    assert len(list(storage.list_objects("backups/"))) == 1


def test_where_nothing_was_deleted_nothing_goes(storage: MemoryStorage) -> None:
    kit.back_up(opened(storage), "one", data(1, 2))
    before = packs(storage)
    collect(storage)
    collect(storage)
    assert packs(storage) == before
    assert_sound(storage, one=data(1, 2))


def test_segments_that_were_superseded_go_one_generation_later(storage: MemoryStorage) -> None:
    repository = opened(storage)
    kit.back_up(repository, "one", data(1, 2))
    kit.back_up(repository, "two", data(1, 3))
    delete(storage, "one")
    collect(storage)
    names = [found.name for found in storage.list_objects("index/")]
    assert len(names) == 3  # of both backups, and the new one in place of the first's
    collect(storage)
    left = [found.name for found in storage.list_objects("index/")]
    assert [name for name in left if "one" in name] == []
    assert len(left) == 2
    assert_sound(storage, two=data(1, 3))


def test_a_writer_that_began_before_is_waited_for_and_what_it_needs_stays(
    storage: MemoryStorage,
) -> None:
    kit.back_up(opened(storage), "one", data(1, 2))
    writer = opened(storage)
    writer.begin_session("two")
    delete(storage, "one")
    collector = Collector(opened(storage), NOW)
    assert [collector.step() for _ in range(3)] == [Stage.PLANNED, Stage.CONDEMNED, Stage.DRAIN]
    assert collector.waiting == ("two",)
    # It looked at the index before anything was condemned, and refers to what it found there.
    kit.write_disk(writer, "two", data(1, 5), moment="at-two")
    assert collector.step() is Stage.DRAIN
    writer.commit("two", kit.draft(writer, "two", "at-two"))
    assert collector.step() is Stage.DECIDED
    assert collect(storage)[-1] is Stage.DONE
    assert_sound(storage, two=data(1, 5))


def test_a_writer_that_begins_later_stores_condemned_chunks_again(storage: MemoryStorage) -> None:
    kit.back_up(opened(storage), "one", data(1, 2))
    delete(storage, "one")
    collector = Collector(opened(storage), NOW)
    assert [collector.step() for _ in range(2)] == [Stage.PLANNED, Stage.CONDEMNED]
    writer = opened(storage)
    writer.begin_session("two")
    record = kit.write_disk(writer, "two", data(1, 2), moment="at-two")
    assert record is not None
    assert (record.bytes_new, record.bytes_deduplicated) == (2 * CHUNK, 0)
    # It is not waited for: it could not have referred to what goes.
    assert collector.step() is Stage.DECIDED
    writer.commit("two", kit.draft(writer, "two", "at-two"))
    assert collect(storage)[-1] is Stage.DONE
    assert_sound(storage, two=data(1, 2))


def test_a_parent_that_is_deleted_under_an_incremental_keeps_its_chunks(
    storage: MemoryStorage,
) -> None:
    # PBS PSA-2025-00019-1: an incremental inherits chunks while its parent is pruned.
    kit.back_up(opened(storage), "one", data(1, 2, 3))
    writer = opened(storage)
    writer.begin_session("two", parents=["one"])
    delete(storage, "one")
    collector = Collector(opened(storage), NOW)
    assert [collector.step() for _ in range(3)] == [Stage.PLANNED, Stage.CONDEMNED, Stage.DRAIN]
    with pytest.raises(Conflict, match="deleted"):
        kit.write_disk(writer, "two", data(1, 9, 3), moment="m", parent="one", changed=[1])
    writer.abort("two", "its parent is deleted")
    assert collector.step() is Stage.DECIDED


def test_an_incremental_that_has_opened_its_parent_may_inherit_from_it(
    storage: MemoryStorage,
) -> None:
    kit.back_up(opened(storage), "one", data(1, 2, 3))
    writer = opened(storage)
    writer.begin_session("two", parents=["one"])
    disk = writer.open_disk_writer(
        "two",
        kit.identity(3 * CHUNK),
        moment="at-two",
        mode=Mode.INCREMENTAL,
        parent_backup_id="one",
    )
    delete(storage, "one")
    collector = Collector(opened(storage), NOW)
    assert [collector.step() for _ in range(3)] == [Stage.PLANNED, Stage.CONDEMNED, Stage.DRAIN]
    disk.put_zero(1)
    disk.finish(DiskTotals(Mode.INCREMENTAL))
    disk.close()
    writer.commit("two", kit.draft(writer, "two", "at-two"))
    assert collector.step() is Stage.DECIDED
    assert collect(storage)[-1] is Stage.DONE
    assert_sound(storage, two=data(1) + bytes(CHUNK) + data(3))


def test_a_reader_keeps_a_backup_that_is_deleted_while_it_reads(storage: MemoryStorage) -> None:
    kit.back_up(opened(storage), "one", data(1, 2))
    with opened(storage).open_disk_reader("one", kit.KEY) as reader:
        delete(storage, "one")
        assert collect(storage)[-1] is Stage.DONE
        assert reader.read(0, 2 * CHUNK) == data(1, 2)
    assert collect(storage)[-1] is Stage.DONE
    assert packs(storage) == set()
    assert_sound(storage)


def test_a_reader_that_crashed_is_forgotten_after_a_month(storage: MemoryStorage) -> None:
    kit.back_up(opened(storage), "one", data(1, 2))
    opened(storage).open_disk_reader("one", kit.KEY)
    delete(storage, "one")
    collect(storage)
    assert len(packs(storage)) == 3
    CLOCK.advance(timedelta(days=31).total_seconds())
    collect(storage)
    assert packs(storage) == set()


def test_a_writer_without_a_sign_of_life_is_ended_and_its_backup_never_comes(
    storage: MemoryStorage,
) -> None:
    kit.back_up(opened(storage), "one", data(1, 2))
    writer = opened(storage)
    writer.begin_session("two")
    kit.write_disk(writer, "two", data(1, 3), moment="at-two", stop=1)
    delete(storage, "one")
    collector = Collector(opened(storage), NOW)
    assert [collector.step() for _ in range(3)] == [Stage.PLANNED, Stage.CONDEMNED, Stage.DRAIN]
    CLOCK.advance(3000)
    kit.write_disk(writer, "two", data(1, 3), moment="at-two", stop=1)  # a sign of life
    assert collector.step() is Stage.DRAIN
    CLOCK.advance(3000)
    assert collector.step() is Stage.DRAIN
    CLOCK.advance(600)
    assert collector.step() is Stage.DECIDED
    outcome = writer.find_outcome("two")
    assert outcome is not None
    assert outcome.state is State.FENCED
    # It only seemed dead, and goes on: its run is lost, and nothing else.
    kit.write_disk(writer, "two", data(1, 3), moment="at-two")
    with pytest.raises(Conflict, match="fenced"):
        writer.commit("two", kit.draft(writer, "two", "at-two"))
    collect(storage)
    collect(storage)
    collect(storage)
    assert packs(storage) == set()
    assert_sound(storage)


def test_what_a_writer_left_that_was_aborted_goes_and_what_an_open_one_stores_stays(
    storage: MemoryStorage,
) -> None:
    writer = opened(storage)
    writer.begin_session("gone")
    kit.write_disk(writer, "gone", data(1, 2, 3), moment="m", stop=2)
    writer.begin_session("open")
    kit.write_disk(writer, "open", data(4, 5, 6), moment="m", stop=2)
    writer.abort("gone", "cancelled")
    assert len(packs(storage)) == 4
    collector = Collector(opened(storage), NOW)
    assert [collector.step() for _ in range(3)] == [Stage.PLANNED, Stage.CONDEMNED, Stage.DRAIN]
    kit.write_disk(writer, "open", data(4, 5, 6), moment="m")
    writer.commit("open", kit.draft(writer, "open", "m"))
    assert collect(storage)[-1] is Stage.DONE
    assert len(packs(storage)) == 4  # three chunks and a node
    assert_sound(storage, open=data(4, 5, 6))


def test_the_grace_is_waited_for_whatever_the_clocks_say(storage: MemoryStorage) -> None:
    kit.back_up(opened(storage), "one", data(1, 2))
    delete(storage, "one")
    options = Options(grace_seconds=3600, limits=NOW.limits)
    assert collect(storage, options)[-1] is Stage.GRACE
    CLOCK.advance(1800)
    collector = Collector(opened(storage), options)
    assert collector.step() is Stage.GRACE
    CLOCK.advance(1799)
    assert collector.step() is Stage.GRACE
    CLOCK.advance(1)
    assert collector.step() is Stage.DECIDED


def test_a_committed_backup_whose_manifest_is_not_written_yet_keeps_its_packs(
    storage: MemoryStorage,
) -> None:
    writer = opened(storage)
    writer.begin_session("one")
    kit.write_disk(writer, "one", data(1, 2), moment="at-one")
    collector = Collector(opened(storage), NOW)
    assert collector.step() is Stage.PLANNED
    made = writer.endings._manifest("one", kit.draft(writer, "one", "at-one"))
    writer.endings._decide("one", State.COMMITTED, "", made)
    assert collect(storage)[-1] is Stage.DONE
    assert len(packs(storage)) == 3
    opened(storage).settle_sessions()
    assert_sound(storage, one=data(1, 2))


def test_a_manifest_that_comes_back_after_it_was_collected_stays_dead(
    storage: MemoryStorage,
) -> None:
    kit.back_up(opened(storage), "one", data(1, 2))
    (name,) = [found.name for found in storage.list_objects("backups/")]
    kept = storage.get(name)
    delete(storage, "one")
    collect(storage)
    storage.put_if_absent(name, kept)  # by a process that had slept
    repository = opened(storage)
    assert repository.list_backups() == []
    with pytest.raises(NotFound):
        repository.get_backup("one")
    repository.commit("one", kit.draft(repository, "one", "at-one"))  # a step that runs again
    collect(storage)
    assert list(storage.list_objects("backups/")) == []
    repository.commit("one", kit.draft(repository, "one", "at-one"))
    assert list(storage.list_objects("backups/")) == []
    assert_sound(storage)


def test_a_backup_that_vanished_stops_the_run(storage: MemoryStorage) -> None:
    repository = opened(storage)
    kit.back_up(repository, "one", data(1, 2))
    kit.back_up(repository, "two", data(3, 4))
    collect(storage)
    storage.delete(repository.get_backup("one").name)
    delete(storage, "two")
    collect(storage)  # the outcome holds it too
    assert_sound(storage, one=data(1, 2))
    storage.delete(repository.get_backup("one").name)
    storage.delete("outcomes/one")
    before = packs(storage)
    with pytest.raises(Corrupt) as caught:
        collect(storage)
    assert caught.value.kind == "backup-missing"
    assert packs(storage) == before


def test_more_than_the_usual_share_goes_only_when_confirmed(storage: MemoryStorage) -> None:
    repository = opened(storage)
    kit.back_up(repository, "one", data(1, 2, 3))
    kit.back_up(repository, "two", data(4))
    delete(storage, "one")
    careful = Options(grace_seconds=0, limits=Limits(condemn_bytes=0))
    with pytest.raises(Conflict) as caught:
        collect(storage, careful)
    assert caught.value.kind == "gc-share-exceeded"
    sure = Options(grace_seconds=0, limits=careful.limits, is_confirmed=True)
    assert collect(storage, sure)[-1] is Stage.DONE
    assert_sound(storage, two=data(4))


def test_two_collectors_work_on_one_generation(storage: MemoryStorage) -> None:
    # kopia: two owners of maintenance at once.
    repository = opened(storage)
    kit.back_up(repository, "one", data(1, 2))
    kit.back_up(repository, "two", data(1, 3))
    delete(storage, "one")
    first, second = Collector(opened(storage), NOW), Collector(opened(storage), NOW)
    stages = [collector.step() for _ in range(4) for collector in (first, second)]
    assert stages == [
        Stage.PLANNED,
        Stage.CONDEMNED,
        Stage.DECIDED,
        Stage.DELETING,
        Stage.DELETING,
        Stage.DONE,
        Stage.PLANNED,
        Stage.CONDEMNED,
    ]
    assert_sound(storage, two=data(1, 3))


def test_an_abandoned_generation_deletes_nothing_and_the_next_one_begins(
    storage: MemoryStorage,
) -> None:
    repository = opened(storage)
    kit.back_up(repository, "one", data(1, 2))
    delete(storage, "one")
    collector = Collector(opened(storage), NOW)
    assert [collector.step() for _ in range(2)] == [Stage.PLANNED, Stage.CONDEMNED]
    before = packs(storage)
    assert collector.abandon(1) is Stage.DECIDED
    assert collector.step() is Stage.DONE
    assert packs(storage) == before
    assert collect(storage)[-1] is Stage.DONE
    assert packs(storage) == set()
    assert_sound(storage)


def test_a_damaged_list_stops_writers_until_the_generation_is_abandoned(
    storage: MemoryStorage,
) -> None:
    repository = opened(storage)
    kit.back_up(repository, "one", data(1, 2))
    collector = Collector(opened(storage), NOW)
    assert [collector.step() for _ in range(2)] == [Stage.PLANNED, Stage.CONDEMNED]
    name = records.name(1, records.Part.CONDEMNED)
    damaged = bytearray(storage.get(name))
    damaged[80] ^= 1
    storage.delete(name)
    storage.put_if_absent(name, bytes(damaged))
    with pytest.raises(Corrupt) as caught:
        opened(storage).begin_session("two")
    assert caught.value.kind == "gc-list-corrupt"
    assert kit.restore(opened(storage), "one") == data(1, 2)
    assert collector.step() is Stage.DECIDED
    assert collector.step() is Stage.DONE
    opened(storage).begin_session("three")


def test_sparse_packs_are_rewritten_and_what_was_in_them_stays(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "TARGET_BYTES", 8 * CHUNK)
    repository = opened(storage)
    kit.back_up(repository, "one", data(1, 2, 3, 4, 5, 6))
    kit.back_up(repository, "two", data(1, 2))
    delete(storage, "one")
    options = Options(grace_seconds=0, limits=Limits(sparse_share=0.5, condemn_bytes=1 << 40))
    before = opened(storage).storage_bytes()
    reader = opened(storage).open_disk_reader("two", kit.KEY)
    assert reader.read(0, CHUNK) == data(1)
    assert collect(storage, options)[-1] is Stage.DONE
    assert opened(storage).storage_bytes() < before - 3 * CHUNK
    assert reader.read(CHUNK, CHUNK) == data(2)  # it looks at the index again
    reader.close()
    assert_sound(storage, two=data(1, 2))
    assert collect(storage, options)[-1] is Stage.DONE
    assert_sound(storage, two=data(1, 2))


def test_a_session_cannot_take_a_collectors_name(storage: MemoryStorage) -> None:
    with pytest.raises(Invalid, match="kept for garbage collection"):
        opened(storage).begin_session("gc.1")


def test_a_record_of_another_generation_is_corrupt(storage: MemoryStorage) -> None:
    made = Plan(2, b"", CLOCK.now(), ())
    records.put(kit.keyed(storage), made)
    data_of = storage.get(records.name(2, records.Part.PLAN))
    storage.put_if_absent(records.name(3, records.Part.PLAN), data_of)
    with pytest.raises(Corrupt, match="another generation"):
        records.get(Plan, kit.keyed(storage), 3)
