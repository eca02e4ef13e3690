"""Garbage collection beside damage, strangers, old listings and other collectors."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import pytest

from sendense.core.clock import ManualClock
from sendense.core.errors import Corrupt, Invalid, NoSpace, NotFound, Unavailable
from sendense.repository import descriptor, index, pack, record
from sendense.repository.check import check
from sendense.repository.gc import mark, protocol, records, rewrite
from sendense.repository.gc.protocol import Collector, Options, Stage
from sendense.repository.gc.records import Condemned, Done, Final, Part, Plan
from sendense.repository.gc.state import Collected
from sendense.repository.gc.verdict import Limits
from sendense.repository.pack import Kind, PackRef
from sendense.repository.session import State
from sendense.repository.storage.base import Buffer, StoredObject
from sendense.repository.storage.memory import MemoryStorage
from tests import repository_kit as kit
from tests.gc_kit import CLOCK, NOW, SPARSE, assert_sound, collect, data, delete, opened, packs
from tests.repository_kit import CHUNK, Kit


class OddStorage(MemoryStorage):
    """Lists what is gone, hides what is there, and loses answers, as told to."""

    def __init__(self) -> None:
        super().__init__()
        self.ghosts: set[str] = set()
        self.hidden: set[str] = set()
        self.fail: Callable[[str], None] = lambda _name: None

    def list_objects(self, prefix: str = "") -> Iterator[StoredObject]:
        found = [one for one in super().list_objects(prefix) if one.name not in self.hidden]
        found += [StoredObject(name, 1) for name in self.ghosts if name.startswith(prefix)]
        return iter(sorted(found, key=lambda one: one.name))

    def put_if_absent(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        super().put_if_absent(name, data)
        self.fail(name)


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> OddStorage:
    """A repository whose packs hold one chunk each, with one backup that is deleted."""
    monkeypatch.setattr(pack, "TARGET_BYTES", 1)
    storage = OddStorage()
    Kit(storage, clock=CLOCK).create()
    repository = opened(storage)
    kit.back_up(repository, "one", data(1, 2))
    kit.back_up(repository, "two", data(1, 3))
    delete(storage, "one")
    return storage


def damage(storage: MemoryStorage, name: str) -> None:
    content = bytearray(storage.get(name))
    content[80] ^= 1
    storage.delete(name)
    storage.put_if_absent(name, bytes(content))


def steps(storage: MemoryStorage, count: int, options: Options = NOW) -> Collector:
    collector = Collector(opened(storage), options)
    for _ in range(count):
        collector.step()
    return collector


# Damage and strangers.


def test_a_damaged_node_stops_the_run_and_costs_nothing(storage: OddStorage) -> None:
    (root,) = (disk.root for disk in opened(storage).get_backup("two").disks)
    place = opened(storage).segments.locate([root])[0]
    damage(storage, place.pack.name)
    content = bytearray(storage.get(place.pack.name))
    content[place.offset + pack.BLOB.size + 50] ^= 1
    storage.delete(place.pack.name)
    storage.put_if_absent(place.pack.name, bytes(content))
    before = packs(storage)
    with pytest.raises(Corrupt):
        collect(storage)
    assert packs(storage) == before
    storage.delete(place.pack.name)
    with pytest.raises(Corrupt, match="it is gone"):
        collect(storage)


def test_a_chunk_that_is_nowhere_stops_the_run(
    storage: OddStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "merge_tables", lambda _tables: index.build_table([]), raising=True)
    with pytest.raises(Corrupt) as caught:
        collect(storage)
    assert caught.value.kind == "chunk-missing"


def test_a_backup_without_an_outcome_stops_the_run(storage: OddStorage) -> None:
    storage.delete("outcomes/two")
    with pytest.raises(Corrupt) as caught:
        collect(storage)
    assert caught.value.kind == "index-corrupt"


def test_a_damaged_manifest_stops_the_run(storage: OddStorage) -> None:
    damage(storage, opened(storage).get_backup("two").name)
    storage.delete("outcomes/two")
    with pytest.raises(Corrupt):
        collect(storage)


def test_files_of_strangers_are_left_alone(storage: OddStorage) -> None:
    strangers = [
        "packs/readme",
        "packs/aa/00",
        "meta/00/" + "00" * 32,
        "gc/readme",
        "gc/00000001/notes",
        "sessions/UPPER/x",
        "outcomes/UPPER",
        "index/UPPER-1.1",
        "index/gc.x-1.1",
    ]
    for name in strangers:
        storage.put_if_absent(name, b"?")
    collect(storage)
    collect(storage)
    assert {found.name for found in storage.list_objects()} >= set(strangers)
    assert kit.restore(opened(storage), "two") == data(1, 3)


def test_a_strangers_file_among_backups_stops_the_run(storage: OddStorage) -> None:
    storage.put_if_absent("backups/readme", b"?")
    collector = steps(storage, 1)
    with pytest.raises(Corrupt):
        collector.step()


def test_a_pack_in_the_wrong_folder_is_left_alone(storage: OddStorage) -> None:
    name = next(name for name in packs(storage) if name.startswith("meta/"))
    wrong = name.replace("meta/", "packs/")
    storage.put_if_absent(wrong, storage.get(name))
    kept = PackRef(bytes.fromhex(name[-64:]), Kind.META, storage.size(name))
    assert kept.name == name
    collect(storage)
    assert wrong in packs(storage) or name not in packs(storage)
    assert_sound(storage, two=data(1, 3))


def test_a_damaged_checkpoint_stops_nothing(storage: OddStorage) -> None:
    writer = opened(storage)
    writer.begin_session("open")
    kit.write_disk(writer, "open", data(7, 8, 9), moment="m", stop=2)
    checkpoints = [
        found.name for found in storage.list_objects("sessions/") if "-0000" in found.name
    ]
    damage(storage, checkpoints[0])
    before = packs(storage)
    assert collect(storage)[-1] is Stage.DRAIN
    writer.abort("open", "cancelled")
    collect(storage)
    collect(storage)
    assert len(packs(storage)) < len(before)
    assert_sound(storage, two=data(1, 3))


# Old listings.


def test_a_manifest_that_a_listing_leaves_out_keeps_its_packs(storage: OddStorage) -> None:
    collect(storage)
    kit.back_up(opened(storage), "three", data(4))
    storage.hidden = {found.name for found in storage.list_objects("backups/")}
    collect(storage)
    storage.hidden = set()
    assert_sound(storage, two=data(1, 3), three=data(4))


def test_what_is_gone_when_it_is_read_has_ended(storage: OddStorage) -> None:
    storage.ghosts = {
        "sessions/ghost/registration-0",
        "outcomes/ghost",
        "meta/00/" + "11" * 32,
    }
    collector = steps(storage, 2)
    assert collector.step() is Stage.DRAIN
    assert collector.waiting == ("ghost",)
    opened(storage).abort("ghost", "it is one")
    assert collector.step() is Stage.DECIDED


def test_a_listing_that_may_be_old_is_waited_out(storage: OddStorage) -> None:
    clock = ManualClock()
    storage.listing_seconds = lambda: 120.0  # type: ignore[method-assign]
    repository = Kit(storage, clock=clock).open(seed=9)
    collector = Collector(repository, NOW)
    while collector.step() is not Stage.DONE:
        pass
    assert clock.monotonic() == 7 * 240.0


# Other collectors, and collectors that were stopped.


def test_who_fails_because_another_was_faster_goes_on(
    storage: OddStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = steps(storage, 1)
    original = mark.mark

    def be_slow(*_arguments: object, **_options: object) -> object:
        monkeypatch.setattr(mark, "mark", original)
        collect(storage)
        raise Corrupt("a pack is gone", kind="object-corrupt")

    monkeypatch.setattr(mark, "mark", be_slow)
    assert collector.step() is Stage.OVERTAKEN
    assert collector.step() is Stage.PLANNED
    assert_sound(storage, two=data(1, 3))


def test_an_answer_that_is_lost_is_found_again(storage: OddStorage) -> None:
    def lose(name: str) -> None:
        if name.startswith("gc/"):
            raise Unavailable("the answer is lost", kind="injected")

    storage.fail = lose
    collect(storage)
    storage.fail = lambda _name: None
    assert_sound(storage, two=data(1, 3))


def test_a_record_that_could_not_be_put_says_so() -> None:
    class Broken(MemoryStorage):
        def put_if_absent(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
            raise Unavailable(f"{name} of {len(data)} bytes", kind="injected")

    with pytest.raises(Unavailable):
        records.put(kit.keyed(Broken()), Plan(1, b"", CLOCK.now(), ()))


def test_copies_of_a_collector_that_died_are_garbage_of_the_next_generation(
    storage: OddStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.back_up(opened(storage), "three", data(4, 5))
    monkeypatch.setattr(pack, "TARGET_BYTES", 8 * CHUNK)
    kit.back_up(opened(storage), "wide", data(11, 12, 13, 14))
    kit.back_up(opened(storage), "narrow", data(11))
    delete(storage, "wide")
    collector = steps(storage, 1, SPARSE)
    put = records.put

    class Died(Exception):
        pass

    def die(*_: object) -> None:
        raise Died

    monkeypatch.setattr(records, "put", die)
    with pytest.raises(Died):
        collector.step()
    monkeypatch.setattr(records, "put", put)
    left = {found.name for found in storage.list_objects("index/gc.")}
    assert left
    assert collect(storage, SPARSE)[-1] is Stage.DONE
    assert collect(storage, SPARSE)[-1] is Stage.DONE
    assert not left & {found.name for found in storage.list_objects("index/")}
    assert_sound(storage, two=data(1, 3), three=data(4, 5), narrow=data(11))
    named = {ref.name for segment in opened(storage).segments.counted for ref in segment.packs()}
    assert packs(storage) == named


def test_copies_that_are_lost_let_the_generation_be_given_up(
    storage: OddStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "TARGET_BYTES", 8 * CHUNK)
    kit.back_up(opened(storage), "wide", data(11, 12, 13, 14))
    kit.back_up(opened(storage), "narrow", data(11))
    delete(storage, "wide")
    collector = steps(storage, 2, SPARSE)
    for found in list(storage.list_objects("index/gc.")):
        storage.delete(found.name)
    before = packs(storage)
    assert collector.step() is Stage.DECIDED
    assert collector.step() is Stage.DONE
    assert packs(storage) == before
    assert collect(storage, SPARSE)[-1] is Stage.DONE
    assert_sound(storage, two=data(1, 3), narrow=data(11))


def test_without_room_for_copies_what_is_wholly_dead_still_goes(
    storage: OddStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.back_up(opened(storage), "wide", data(11, 12, 13, 14))
    monkeypatch.setattr(pack, "TARGET_BYTES", 8 * CHUNK)
    kit.back_up(opened(storage), "broad", data(21, 22, 23, 24))
    kit.back_up(opened(storage), "narrow", data(21))
    delete(storage, "wide", "broad")

    def be_full(_self: object, _size: int) -> None:
        raise NoSpace("full", kind="repository-full")

    monkeypatch.setattr("sendense.repository.repository.Repository.require_room", be_full)
    before = packs(storage)
    assert collect(storage, SPARSE)[-1] is Stage.DONE
    assert len(before) - len(packs(storage)) >= 5
    monkeypatch.undo()
    assert_sound(storage, two=data(1, 3), narrow=data(21))


def test_no_more_is_rewritten_than_a_run_may(
    storage: OddStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "TARGET_BYTES", 8 * CHUNK)
    kit.back_up(opened(storage), "wide", data(11, 12, 13, 14))
    kit.back_up(opened(storage), "narrow", data(11))
    delete(storage, "wide")
    limits = Limits(sparse_share=0.9, rewrite_bytes=0, condemn_bytes=1 << 40)
    collect(storage, Options(grace_seconds=0, limits=limits))
    assert next(iter(storage.list_objects("gc/"))).name == records.name(1, Part.CONDEMNED)
    assert records.get(Condemned, kit.keyed(storage), 1).copies == ()
    assert_sound(storage, two=data(1, 3), narrow=data(11))


# Many.


def test_copies_fill_as_many_packs_and_segments_as_they_need(
    storage: OddStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "TARGET_BYTES", 16 * CHUNK)
    kit.back_up(opened(storage), "wide", data(*range(11, 25)))
    kit.back_up(opened(storage), "narrow", data(*range(11, 16)))
    delete(storage, "wide")
    monkeypatch.setattr(pack, "TARGET_BYTES", 2 * CHUNK)
    monkeypatch.setattr(index, "ENTRIES_MAX", 2)
    collect(storage, SPARSE)
    assert len(records.get(Condemned, kit.keyed(storage), 1).copies) >= 2
    assert_sound(storage, two=data(1, 3), narrow=data(*range(11, 16)))


def test_many_small_segments_are_merged(
    storage: OddStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewrite, "SMALL_MAX", 2)
    for number in range(4):
        kit.back_up(opened(storage), f"b{number}", data(30 + number, 1))
    collect(storage)
    collect(storage)
    assert len(list(storage.list_objects("index/"))) == 1
    content = {f"b{number}": data(30 + number, 1) for number in range(4)}
    assert_sound(storage, two=data(1, 3), **content)


def test_a_disk_of_several_levels_is_walked(storage: OddStorage) -> None:
    disk = data(5) + bytes(255 * CHUNK) + data(6) + data(5)
    kit.back_up(opened(storage), "deep", disk)
    delete(storage, "two")
    collect(storage)
    assert_sound(storage, deep=disk)


def test_who_is_dead_is_on_record_in_pages(
    storage: OddStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "PAGE_BYTES_MAX", 1)
    manifests = {one.backup_id: one for one in opened(storage).backups.list_manifests()[0]}
    collect(storage)
    delete(storage, "two")
    collect(storage)
    kit.back_up(opened(storage), "three", data(4))
    collect(storage)
    assert records.get(Done, kit.keyed(storage), 3).base == 2
    view = Collected(kit.keyed(storage)).refresh()
    assert all(view.is_dead(manifests[name].object_id) for name in ("one", "two"))
    # A page that is damaged is put together from what was decided.
    damage(storage, records.name(2, Part.DONE))
    view = Collected(kit.keyed(storage)).refresh()
    assert all(view.is_dead(manifests[name].object_id) for name in ("one", "two"))
    assert view.damaged == ()
    collect(storage)
    assert_sound(storage, three=data(4))


def test_deleting_keeps_to_its_rate(storage: OddStorage) -> None:
    clock = ManualClock()
    repository = Kit(storage, clock=clock).open(seed=9)
    collector = Collector(repository, dataclasses.replace(NOW, deletes_per_second=0.5))
    while collector.step() is not Stage.DONE:
        pass
    names = list(records.get(Final, kit.keyed(storage), 1).names())
    assert clock.monotonic() == len(names) * 2


# Lists that are damaged, and features that are unknown.


def test_a_damaged_final_stops_writers_and_no_reader(storage: OddStorage) -> None:
    collect(storage)
    damage(storage, records.name(1, Part.FINAL))
    assert kit.restore(opened(storage), "two") == data(1, 3)
    with pytest.raises(Corrupt) as caught:
        opened(storage).begin_session("three")
    assert caught.value.kind == "gc-list-corrupt"
    kinds = [problem.kind for problem in check(opened(storage)).problems]
    assert "gc-list-corrupt" in kinds
    with pytest.raises(Corrupt):
        collect(storage)


def test_a_repository_with_an_unknown_feature_is_not_collected() -> None:
    storage = MemoryStorage()
    Kit(storage, root_key=None).create()
    found = descriptor.get(storage)
    features = dataclasses.replace(found.features, gc=("later",))
    storage.delete(descriptor.NAME)
    storage.put_if_absent(
        descriptor.NAME, record.dump(dataclasses.replace(found, features=features))
    )
    with pytest.raises(Invalid, match="collecting"):
        Collector(Kit(storage, root_key=None).open())


def test_a_lost_segment_of_a_collector_is_rebuilt(storage: OddStorage) -> None:
    collect(storage)
    writer = opened(storage)
    writer.begin_session("open")
    kit.write_disk(writer, "open", data(7, 8, 9), moment="m", stop=2)
    (name,) = [found.name for found in storage.list_objects("index/gc.")]
    storage.delete(name)
    opened(storage).mend_index()
    assert storage.size(name) > 0
    writer.abort("open", "cancelled")
    assert_sound(storage, two=data(1, 3))


def test_a_lost_segment_of_copies_is_rebuilt(
    storage: OddStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "TARGET_BYTES", 8 * CHUNK)
    kit.back_up(opened(storage), "wide", data(11, 12, 13, 14))
    kit.back_up(opened(storage), "narrow", data(11))
    delete(storage, "wide")
    collect(storage, SPARSE)
    monkeypatch.setattr(rewrite, "SMALL_MAX", 0)
    collect(storage, SPARSE)  # its one segment holds what the first generation copied
    for found in list(storage.list_objects("index/gc.")):
        storage.delete(found.name)
    assert opened(storage).mend_index() != []
    assert_sound(storage, two=data(1, 3), narrow=data(11))


def test_a_pack_that_several_segments_name_is_named_once(storage: OddStorage) -> None:
    entry = pack.Entry(bytes(31) + b"\1", 208, 1, 1, 1, 0)
    ref = PackRef(bytes(32), Kind.DATA, 999)
    old = [
        index.Segment(
            memoryview(
                b"".join(
                    index.seal_segment(
                        index.build_table([(0, entry)]), [ref], session_id="s", keys=kit.KEYS
                    )
                )
            ),
            keys=kit.KEYS,
            name=f"index/s-{number}.1",
        )
        for number in range(2)
    ]
    (name,) = rewrite.Copier(opened(storage), 1).compact(old, gone=set())
    made = index.Segment(storage.map(name), keys=kit.KEYS, name=name)
    assert (len(made), made.packs()) == (1, [ref])


def test_a_segment_that_a_listing_leaves_out_is_not_replaced(storage: OddStorage) -> None:
    name = opened(storage).get_backup("two").segments[0]
    storage.hidden = {name}
    before = storage.get(name)
    assert opened(storage).mend_index() == []
    assert storage.get(name) == before


def test_a_session_that_ended_otherwise_is_not_fenced(storage: OddStorage) -> None:
    repository = opened(storage)
    repository.begin_session("three")
    repository.abort("three", "cancelled")
    assert repository.endings.fence("three").state is State.ABORTED


def test_a_pack_that_a_collector_removes_during_a_check_is_no_problem(
    storage: OddStorage,
) -> None:
    repository = opened(storage)
    report = check(
        repository,
        progress=lambda what, done, _total: (
            _discard(collect(storage)) if (what, done) == ("packs", 0) else None
        ),
    )
    assert report.problems == ()


def _discard(_: object) -> None:
    """Turn work with a result into one without."""


def test_a_collectors_session_has_a_generation() -> None:
    assert records.generation_of("gc.12") == 12
    assert records.generation_of("gc.x") == 0
    assert protocol._is_over("gc.x", frozenset(), 3) is False


def test_a_reader_that_ends_while_readers_are_tidied_is_gone_already(
    storage: OddStorage,
) -> None:
    opened(storage).open_disk_reader("two", kit.KEY)
    (name,) = [found.name for found in storage.list_objects("sessions/")]
    storage.ghosts = {name + "-gone"}
    CLOCK.advance(40 * 24 * 3600.0)
    collect(storage)
    with pytest.raises(NotFound):
        storage.get(name)
