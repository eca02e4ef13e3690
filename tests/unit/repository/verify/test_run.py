"""Verification: what it finds, what it keeps on record, and what becomes of bad packs."""

import random
from collections.abc import Iterator, Sequence
from datetime import timedelta

import pytest

from sendense.core import units
from sendense.core.errors import Corrupt, Denied
from sendense.repository import pack, quarantine
from sendense.repository.check import check
from sendense.repository.gc import run as collection
from sendense.repository.gc.protocol import Collector, Options, Stage
from sendense.repository.index import Place
from sendense.repository.manifest import Mode
from sendense.repository.repository import Repository
from sendense.repository.salvage import Salvage
from sendense.repository.segments import Segments
from sendense.repository.storage.base import Storage, StoredObject
from sendense.repository.storage.memory import MemoryStorage
from sendense.repository.verify.run import Budget, Level, verify
from tests import repository_kit as kit
from tests.repository_kit import CHUNK, KEY, Kit

DATA = random.Random(4).randbytes(12 * CHUNK)
LEVELS = [Level.STORED, Level.DECODED, Level.MAPS, Level.DISKS]
FIRST_BLOB = pack.HEADER.size + pack.BLOB.size + 10
NOW = Options(grace_seconds=0, is_confirmed=True)


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "TARGET_BYTES", 2 * CHUNK)


@pytest.fixture(params=[None, units.GIB], ids=["distant", "near"])
def made(request: pytest.FixtureRequest) -> Kit:
    """A repository whose packs are read whole, or piece by piece where reads cost nothing."""
    return Kit(MemoryStorage(capacity_bytes=request.param))


@pytest.fixture
def repository(made: Kit) -> Repository:
    repository = made.create()
    kit.back_up(repository, "one", DATA)
    return repository


def spoil(storage: Storage, name: str, *, at: int = FIRST_BLOB) -> None:
    """Flip a bit of an object."""
    data = bytearray(storage.get(name))
    data[at] ^= 4
    storage.delete(name)
    storage.put_if_absent(name, bytes(data))


def lose(storage: Storage, name: str) -> None:
    storage.delete(name)


def packs(repository: Repository, folder: str = "packs/") -> list[str]:
    return [found.name for found in repository.storage.list_objects(folder)]


@pytest.mark.parametrize("level", Level)
def test_a_whole_repository_is_found_so(repository: Repository, level: Level) -> None:
    report = verify(repository, level)
    assert (report.clean, report.bad, report.left_count) == (True, (), 0)
    expected = 0 if level is Level.INVENTORY else report.pack_count
    assert (report.verified_count, report.pack_count) == (expected, 7)
    assert report.disks == (1 if level is Level.DISKS else 0)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("folder", ["packs/", "meta/"])
def test_a_spoilt_pack_is_found_and_named_with_what_it_hurts(
    repository: Repository, level: Level, folder: str
) -> None:
    victim = packs(repository, folder)[0]
    spoil(repository.storage, victim)
    report = verify(repository, level)
    assert (report.clean, report.bad, report.quarantined_count) == (False, (victim,), 1)
    assert report.check is not None
    hurt = [one for one in report.check.problems if one.backup_id == "one"]
    assert {one.disk_key for one in hurt} == {KEY}
    assert sum(one.length or 0 for one in hurt) == (2 * CHUNK if folder == "packs/" else len(DATA))
    found = quarantine.get(repository.storage, bytes.fromhex(victim.rpartition("/")[2]))
    assert found.pack == victim
    assert not verify(repository, level).clean  # it stays so


@pytest.mark.parametrize("level", [Level.INVENTORY, Level.DECODED])
@pytest.mark.parametrize("change", ["lost", "longer"])
def test_the_inventory_alone_finds_what_is_gone_or_has_another_size(
    repository: Repository, change: str, level: Level
) -> None:
    victim = packs(repository)[1]
    data = repository.storage.get(victim)
    lose(repository.storage, victim)
    if change == "longer":
        repository.storage.put_if_absent(victim, data + b"more")
    report = verify(repository, level)
    assert report.bad == (victim,)
    assert not report.clean
    again = verify(repository, Level.DECODED)
    assert (again.bad, again.quarantined_count, again.clean) == ((), 1, False)


def test_a_budget_ends_a_run_and_the_next_one_goes_on(made: Kit, repository: Repository) -> None:
    seen: list[int] = []
    for turn in range(4):
        made.clock.advance(60)
        report = verify(made.open(seed=turn), budget=Budget(bytes_max=5 * CHUNK))
        seen.append(report.verified_count)
        assert report.left_count == 7 - report.verified_count
        if turn == 0:
            assert report.oldest_at is None
    assert sum(seen[:3]) >= 7
    assert len(list(repository.storage.list_objects("health/"))) == 1
    spent = verify(made.open(seed=9), budget=Budget(seconds_max=0))
    assert spent.verified_count == 1
    assert spent.oldest_at is not None


def test_a_level_that_was_not_reached_is_due_first(made: Kit, repository: Repository) -> None:
    verify(repository, Level.STORED)
    made.clock.advance(60)
    first = verify(made.open(seed=3), Level.DECODED, Budget(seconds_max=0))
    assert (first.verified_count, first.oldest_at) == (1, None)
    deeper = verify(made.open(seed=4), Level.STORED, Budget(seconds_max=0))
    assert deeper.oldest_at is not None


def test_what_a_stopped_run_has_verified_is_on_record(made: Kit, repository: Repository) -> None:
    def stop(_what: str, done: int, _total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(repository, progress=stop)
    made.clock.advance(timedelta(days=1).total_seconds())
    report = verify(made.open(seed=5), budget=Budget(bytes_max=1))
    assert report.verified_count == 1
    assert report.oldest_at is None
    again = verify(made.open(seed=6), budget=Budget(bytes_max=10 * CHUNK))
    assert again.left_count < 7


def test_a_long_run_keeps_its_record_now_and_then(made: Kit, repository: Repository) -> None:
    names = []

    def look(what: str, _done: int, _total: int) -> None:
        made.clock.advance(200)
        if what == "packs":
            names.append([one.name for one in repository.storage.list_objects("health/")])

    verify(repository, progress=look)
    assert names[0] == []
    assert names[-1] != []


def test_damaged_or_lost_health_costs_time_only(made: Kit, repository: Repository) -> None:
    verify(repository)
    (name,) = (one.name for one in repository.storage.list_objects("health/"))
    spoil(repository.storage, name, at=-40)
    report = verify(made.open(seed=7), budget=Budget(seconds_max=0))
    assert report.oldest_at is None
    (new,) = (one.name for one in repository.storage.list_objects("health/"))
    assert new != name


def test_a_copy_that_cannot_be_written_is_verified_too(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = packs(repository)[0]
    spoil(repository.storage, victim)

    def refuse(_self: MemoryStorage, _name: str, _data: object) -> None:
        raise Denied("mounted read-only", kind="read-only")

    monkeypatch.setattr(MemoryStorage, "put_if_absent", refuse)
    report = verify(repository)
    assert report.bad == (victim,)
    assert not report.clean


def test_an_incremental_stores_lost_chunks_again_and_heals_the_parent(
    made: Kit, repository: Repository
) -> None:
    spoil(repository.storage, packs(repository)[2])
    assert not verify(repository).clean
    with pytest.raises(Corrupt):
        kit.restore(repository, "one")
    again = made.open(seed=11)
    again.begin_session("two", parents=["one"])
    with again.open_disk_writer(
        "two", kit.identity(len(DATA)), moment="m", mode=Mode.INCREMENTAL, parent_backup_id="one"
    ) as writer:
        lost = {extent.start // CHUNK for extent in writer.list_lost()}
    assert len(lost) == 2
    kit.write_disk(again, "two", DATA, moment="m", parent="one", changed=lost)
    again.commit("two", kit.draft(again, "two", "m"))

    assert kit.restore(made.open(seed=12), "one") == DATA
    assert kit.restore(made.open(seed=13), "two") == DATA
    healed = made.open(seed=14)
    assert check(healed).clean
    assert collection.run(healed, NOW).pack_count == 1
    assert list(healed.storage.list_objects("quarantine/")) == []
    assert check(healed, read_data=True).clean
    assert kit.restore(healed, "one") == DATA


def test_lost_nodes_of_a_parent_ask_for_a_full_read(made: Kit, repository: Repository) -> None:
    (meta,) = packs(repository, "meta/")
    spoil(repository.storage, meta)
    assert verify(repository).bad == (meta,)
    again = made.open(seed=11)
    again.begin_session("two", parents=["one"])
    with (
        again.open_disk_writer(
            "two",
            kit.identity(len(DATA)),
            moment="m",
            mode=Mode.INCREMENTAL,
            parent_backup_id="one",
        ) as writer,
        pytest.raises(Corrupt) as caught,
    ):
        writer.list_lost()
    assert caught.value.kind == "parent-damaged"
    kit.write_disk(again, "two", DATA, moment="m", parent="one")
    again.commit("two", kit.draft(again, "two", "m"))
    assert kit.restore(made.open(seed=12), "one") == DATA


def test_a_bad_pack_stays_as_long_as_its_doubles_are_not_proven(
    made: Kit, repository: Repository
) -> None:
    old = packs(repository)
    spoil(repository.storage, old[2])
    verify(repository)
    again = made.open(seed=11)
    again.begin_session("two", parents=["one"])
    kit.write_disk(again, "two", DATA, moment="m", parent="one", changed=set(range(12)))
    again.commit("two", kit.draft(again, "two", "m"))
    (double,) = set(packs(repository)) - set(old)
    spoil(repository.storage, double)

    collection.run(made.open(seed=12), NOW)
    assert old[2] in packs(repository)

    spoil(repository.storage, double)  # flips it back
    collection.run(made.open(seed=13), NOW)
    assert old[2] not in packs(repository)
    lost = made.open(seed=14)
    assert kit.restore(lost, "two") == DATA
    repository.storage.delete(double)
    collection.run(made.open(seed=15), NOW)


def test_a_chunk_that_lies_twice_is_read_where_it_is_well(
    made: Kit, repository: Repository
) -> None:
    other = made.open(seed=21)
    other.begin_session("two")
    names = set(packs(repository))
    quarantined = [bytes.fromhex(name.rpartition("/")[2]) for name in names]
    refs = {ref.id: ref for one in other.segments.counted for ref in one.packs()}
    for pack_id in quarantined:
        quarantine.put(other.storage, refs[pack_id], at=made.clock.now(), why="a test")
    kit.write_disk(other, "two", DATA, moment="m")
    other.commit("two", kit.draft(other, "two", "m"))
    quarantine.forget(other.storage, quarantined)
    for number, name in enumerate(packs(repository)):
        if name in names and number % 2:
            spoil(repository.storage, name)
        elif name in names:
            lose(repository.storage, name)
    reading = made.open(seed=22)
    assert kit.restore(reading, "one") == DATA
    with reading.open_disk_reader("one", KEY) as reader:
        assert reader.read(5, 3 * CHUNK) == DATA[5 : 5 + 3 * CHUNK]


def test_a_node_that_lies_twice_is_read_where_it_is_well(made: Kit, repository: Repository) -> None:
    other = made.open(seed=21)
    (meta,) = packs(repository, "meta/")
    ref = next(ref for one in other.segments.counted for ref in one.packs() if ref.name == meta)
    quarantine.put(other.storage, ref, at=made.clock.now(), why="a test")
    other.begin_session("two")
    kit.write_disk(other, "two", DATA, moment="m")
    other.commit("two", kit.draft(other, "two", "m"))
    quarantine.forget(other.storage, [ref.id])
    for damage in (spoil, lose):
        damage(repository.storage, meta)
        assert kit.restore(made.open(seed=22), "one") == DATA
    double = next(name for name in packs(repository, "meta/"))
    spoil(repository.storage, double)
    with pytest.raises(Corrupt):
        kit.restore(made.open(seed=23), "one")


def _salvage(repository: Repository, key: int = KEY) -> tuple[bytes, Salvage]:
    salvage = Salvage()
    with repository.open_disk_reader("one", key, salvage=salvage) as reader:
        found = bytearray(reader.size_bytes)
        for offset, data in reader.read_chunks():
            found[offset : offset + len(data)] = data
    return bytes(found), salvage


@pytest.mark.parametrize("damage", [spoil, lose])
def test_a_salvage_gives_back_all_but_what_is_lost(repository: Repository, damage: object) -> None:
    damage(repository.storage, packs(repository)[1])  # type: ignore[operator]
    found, salvage = _salvage(repository)
    lost = salvage.list()
    assert sum(one.length for one in lost) == (CHUNK if damage is spoil else 2 * CHUNK)
    expected = bytearray(DATA)
    for one in lost:
        assert one.reason
        expected[one.start : one.start + one.length] = bytes(one.length)
    assert found == bytes(expected)


def test_a_salvage_tells_of_lost_nodes_and_of_chunks_that_no_index_has(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = repository.identify(DATA[3 * CHUNK : 4 * CHUNK])
    find = Segments.find

    def find_less(self: Segments, ids: Sequence[bytes]) -> list[Place | None]:
        places = find(self, ids)
        return [None if one == gone else at for one, at in zip(ids, places, strict=True)]

    monkeypatch.setattr(Segments, "find", find_less)
    found, salvage = _salvage(repository)
    (lost,) = salvage.list()
    assert (lost.start, lost.length) == (3 * CHUNK, CHUNK)
    assert found[: 3 * CHUNK] == DATA[: 3 * CHUNK]

    monkeypatch.setattr(Segments, "find", find)
    (meta,) = packs(repository, "meta/")
    lose(repository.storage, meta)
    found, salvage = _salvage(repository)
    (lost,) = salvage.list()
    assert (lost.start, lost.length) == (0, len(DATA))
    assert found == bytes(len(DATA))


def test_a_disk_whose_bytes_make_another_map_is_named(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sendense.repository.verify.run._read_root", lambda *_: b"another".ljust(32)
    )
    report = verify(repository, Level.DISKS)
    assert report.differing == (f"disk {KEY} of backup one",)
    assert not report.clean


def test_what_a_collector_removes_meanwhile_is_no_damage(made: Kit, repository: Repository) -> None:
    kit.back_up(repository, "two", DATA)  # a disk like the first one's is compared once
    kit.back_up(repository, "three", bytes(CHUNK) + DATA[::-1])
    repository.delete_backup("three", who="test", why="test")
    verifying = made.open(seed=31)
    steps = []

    def collect(what: str, done: int, _total: int) -> None:
        steps.append(what)
        if len(steps) == 1:
            assert (what, done) == ("packs", 0)
            assert collection.run(made.open(seed=32), NOW).pack_count > 1

    report = verify(verifying, Level.DISKS, progress=collect)
    assert (report.clean, report.bad, report.disks) == (True, (), 1)
    assert report.verified_count < report.pack_count


def test_an_old_listing_and_a_deleted_backup_are_no_damage(
    made: Kit, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.back_up(repository, "two", bytes(CHUNK) + DATA[::-1])
    hidden = packs(repository)[0]
    listing = MemoryStorage.list_objects

    def list_less(self: MemoryStorage, prefix: str = "") -> Iterator[StoredObject]:
        return (one for one in listing(self, prefix) if one.name != hidden)

    monkeypatch.setattr(MemoryStorage, "list_objects", list_less)

    def delete(what: str, done: int, _total: int) -> None:
        if (what, done) == ("disks", 1):
            repository.delete_backup("two", who="test", why="test")

    report = verify(made.open(seed=33), Level.DISKS, progress=delete)
    assert (report.clean, report.bad) == (True, ())
    assert verify(made.open(seed=34), Level.DISKS).disks == 1


def test_a_pack_that_is_gone_before_the_inventory_is_looked_at_is_no_damage(
    made: Kit, repository: Repository
) -> None:
    kit.back_up(repository, "two", DATA[::-1])
    repository.delete_backup("two", who="test", why="test")
    verifying = made.open(seed=35)
    real = verifying.storage.list_objects

    def collect_first(prefix: str = "") -> Iterator[StoredObject]:
        if prefix == "health/":
            collection.run(made.open(seed=36), NOW)
        return real(prefix)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verifying.storage, "list_objects", collect_first, raising=False)
        report = verify(verifying)
    assert (report.clean, report.bad) == (True, ())


def test_lost_neighbours_are_told_as_one_and_strangers_are_passed_over(
    made: Kit, repository: Repository
) -> None:
    salvage = Salvage()
    for start, reason in ((0, "a"), (10, "a"), (20, "b"), (40, "b")):
        salvage.add(start, 10, Corrupt(reason))
    assert [(one.start, one.length, one.reason) for one in salvage.list()] == [
        (0, 20, "a"),
        (20, 10, "b"),
        (40, 10, "b"),
    ]
    for name in ("quarantine/readme", "quarantine/abcd"):
        repository.storage.put_if_absent(name, b"a stranger's")
    assert quarantine.list_ids(repository.storage) == frozenset()
    assert verify(made.open(seed=37)).clean


def test_a_full_read_does_not_compare_with_a_parent_whose_map_is_lost(
    made: Kit, repository: Repository
) -> None:
    (meta,) = packs(repository, "meta/")
    spoil(repository.storage, meta)
    assert verify(repository).bad == (meta,)
    again = made.open(seed=11)
    again.begin_session("two", parents=["one"])
    with again.open_disk_writer(
        "two", kit.identity(len(DATA)), moment="m", parent_backup_id="one"
    ) as writer:
        assert writer.parent_id(0) is None
        assert writer.list_lost() == []
    with (
        again.open_disk_writer(
            "two",
            kit.identity(len(DATA)),
            moment="m2",
            mode=Mode.INCREMENTAL,
            parent_backup_id="one",
        ) as writer,
        pytest.raises(Corrupt),
    ):
        writer.parent_id(0)


def test_a_double_that_goes_bad_between_two_looks_keeps_the_other(
    made: Kit, repository: Repository
) -> None:
    old = packs(repository)
    spoil(repository.storage, old[2])
    verify(repository)
    again = made.open(seed=11)
    again.begin_session("again", parents=["one"])
    kit.write_disk(again, "again", DATA, moment="m", parent="one", changed=set(range(12)))
    again.commit("again", kit.draft(again, "again", "m"))
    (double,) = set(packs(repository)) - set(old)
    collector = Collector(made.open(seed=12), NOW)
    while collector.step() is not Stage.CONDEMNED:
        pass
    spoil(repository.storage, double)
    assert verify(made.open(seed=13)).bad == (double,)
    while collector.step() is not Stage.DONE:
        pass
    assert old[2] in packs(repository)
    assert double in packs(repository)
    spoil(repository.storage, old[2])  # somebody brings the file back
    assert kit.restore(made.open(seed=14), "one") == DATA
