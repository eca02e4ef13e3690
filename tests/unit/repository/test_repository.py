import random
from pathlib import Path

import pytest

from sendense.core.errors import (
    Conflict,
    Corrupt,
    Denied,
    Exists,
    Invalid,
    NoSpace,
    NotFound,
    SendenseError,
)
from sendense.core.extent import Extent
from sendense.core.ids import SeededIds
from sendense.core.units import GIB, MIB, SECTOR, TIB
from sendense.repository import chunk, descriptor, mending, pack
from sendense.repository.check import Severity, check
from sendense.repository.descriptor import RepositorySettings
from sendense.repository.gc.protocol import Collector
from sendense.repository.manifest import DiskTotals, Mode
from sendense.repository.repository import Repository, Reserve
from sendense.repository.storage.base import Storage
from sendense.repository.storage.local import LocalStorage
from sendense.repository.storage.memory import MemoryStorage
from tests import repository_kit as kit
from tests.repository_kit import CHUNK, KEY, Kit


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def repository(storage: MemoryStorage) -> Repository:
    return Kit(storage).create()


def _data(chunks: int, seed: int = 7) -> bytes:
    return random.Random(seed).randbytes(chunks * CHUNK)


def _flip(data: bytes, *indexes: int) -> bytes:
    new = bytearray(data)
    for index in indexes:
        new[index * CHUNK] ^= 1
    return bytes(new)


class TestCreateAndOpen:
    def test_what_is_created_can_be_opened(self, storage: MemoryStorage) -> None:
        made = Kit(storage).create()
        opened = Kit(storage).open()
        assert (opened.id, opened.chunk_size) == (made.id, CHUNK)
        assert len(made.id) == 32
        assert opened.list_backups() == []

    def test_a_second_creation_is_refused(self, repository: Repository) -> None:
        with pytest.raises(Exists) as caught:
            Kit(repository.storage).create()
        assert caught.value.kind == "repository-exists"

    def test_a_folder_with_strangers_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "holiday.jpg").write_bytes(b"x")
        with pytest.raises(Conflict) as caught:
            Kit(LocalStorage(tmp_path)).create()
        assert caught.value.kind == "repository-folder-not-empty"
        assert [found.name for found in tmp_path.iterdir()] == ["holiday.jpg"]

    def test_a_hidden_file_makes_a_folder_not_empty(self, tmp_path: Path) -> None:
        (tmp_path / ".config").write_bytes(b"x")
        with pytest.raises(Conflict):
            Kit(LocalStorage(tmp_path)).create()

    def test_a_fresh_file_system_counts_as_empty(self, tmp_path: Path) -> None:
        (tmp_path / "lost+found").mkdir()
        Kit(LocalStorage(tmp_path)).create()

    @pytest.mark.parametrize("size", [0, 1, 64 * 1024, 500_000, 8 * MIB])
    def test_an_impossible_chunk_size_is_refused(self, storage: MemoryStorage, size: int) -> None:
        made = Kit(storage)
        with pytest.raises(Invalid):
            Repository.create(
                storage, RepositorySettings(chunk_size=size), clock=made.clock, ids=made_ids()
            )
        assert storage.list_top() == []

    @pytest.mark.parametrize("level", [-1, 20])
    def test_an_impossible_level_is_refused(self, storage: MemoryStorage, level: int) -> None:
        settings = RepositorySettings(compression_level=level)
        with pytest.raises(Invalid):
            Repository.create(storage, settings, clock=Kit(storage).clock, ids=made_ids())
        assert storage.list_top() == []

    def test_a_strange_folder_is_no_repository(self, storage: MemoryStorage) -> None:
        with pytest.raises(NotFound) as caught:
            Kit(storage).open()
        assert caught.value.kind == "not-a-repository"
        storage.put_if_absent(descriptor.NAME, b'{"format":"something else"}')
        with pytest.raises(NotFound) as caught:
            Kit(storage).open()
        assert caught.value.kind == "not-a-repository"

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (b'"version":1', b'"version":2'),
            (b'"read":[]', b'"read":["sealed"]'),
        ],
    )
    def test_a_later_format_is_refused(self, old: bytes, new: bytes) -> None:
        text = Kit(MemoryStorage(), root_key=None).create().storage.get(descriptor.NAME)
        assert old in text
        other = MemoryStorage()
        other.put_if_absent(descriptor.NAME, text.replace(old, new))
        with pytest.raises(Invalid) as caught:
            Kit(other).open()
        assert caught.value.kind == "repository-version-unknown"

    def test_the_layout_of_an_early_draft_is_told_from_damage(self) -> None:
        text = Kit(MemoryStorage(), root_key=None).create().storage.get(descriptor.NAME)
        for features in (b'"read":["draft"]', b'"read":[]'):
            early = text.replace(b'"read":[]', features).replace(b'"mac":null,', b"")
            other = MemoryStorage()
            other.put_if_absent(descriptor.NAME, early)
            kind: type[Exception] = Invalid if b"draft" in features else Corrupt
            with pytest.raises(kind):
                Kit(other).open()

    def test_what_was_made_as_a_draft_is_continued(self) -> None:
        storage = MemoryStorage()
        repository = Kit(storage, root_key=None).create()
        kit.back_up(repository, "b", _data(2))
        text = storage.get(descriptor.NAME)
        storage.delete(descriptor.NAME)
        storage.put_if_absent(descriptor.NAME, text.replace(b'"read":[]', b'"read":["draft"]'))
        opened = Kit(storage, root_key=None).open()
        kit.back_up(opened, "c", _data(3), parent="b", changed={2})
        assert kit.restore(opened, "c") == _data(3)
        Collector(opened).step()

    @pytest.mark.parametrize("name", ["read.odd", "odd", "other.kind"])
    def test_a_feature_that_came_later_is_refused(self, name: str) -> None:
        storage = MemoryStorage()
        Kit(storage).create()
        storage.put_if_absent(f"features/{name}", b"")
        with pytest.raises(Invalid) as caught:
            Kit(storage).open()
        assert caught.value.kind == "repository-version-unknown"

    def test_a_feature_for_writing_that_came_later_forbids_only_writing(self) -> None:
        storage = MemoryStorage()
        repository = Kit(storage).create()
        kit.back_up(repository, "b", _data(2))
        storage.put_if_absent("features/gc.odd", b"")
        kit.back_up(Kit(storage).open(), "c", _data(3))
        with pytest.raises(Invalid, match="collecting"):
            Collector(Kit(storage).open())
        storage.put_if_absent("features/write.odd", b"")
        opened = Kit(storage).open()
        with pytest.raises(Invalid, match="writing"):
            opened.begin_session("s")
        lost = next(one.name for one in storage.list_objects("index/"))
        storage.delete(lost)
        with pytest.raises(Corrupt):  # nor is the index rebuilt
            assert kit.restore(Kit(storage).open(), "b") == kit.restore(opened, "c")
        assert not any(one.name == lost for one in storage.list_objects("index/"))

    def test_a_feature_for_writing_forbids_only_writing(self) -> None:
        repository = Kit(MemoryStorage(), root_key=None).create()
        kit.back_up(repository, "b", _data(2))
        other = MemoryStorage()
        for found in repository.storage.list_objects():
            data = repository.storage.get(found.name)
            if found.name == descriptor.NAME:
                data = data.replace(b'"write":[]', b'"write":["odd"]')
            other.put_if_absent(found.name, data)
        opened = Kit(other, root_key=None).open()
        assert kit.restore(opened, "b") == _data(2)
        with pytest.raises(Invalid):
            opened.begin_session("s")

    @pytest.mark.parametrize(
        "text", [b"", b"{", b"[]", b'{"a":1,"a":2}', b"\xff", b'{"format":' * 9, b"[" * 60_000]
    )
    def test_a_damaged_descriptor_is_told_apart(self, text: bytes) -> None:
        storage = MemoryStorage()
        storage.put_if_absent(descriptor.NAME, text)
        with pytest.raises((Corrupt, NotFound)):
            Kit(storage).open()


def made_ids() -> SeededIds:
    return SeededIds(5)


class TestBackUpAndRestore:
    @pytest.mark.parametrize(
        "size", [SECTOR, CHUNK - SECTOR, CHUNK, CHUNK + SECTOR, 3 * CHUNK + 7 * SECTOR, 1]
    )
    def test_odd_sizes_come_back(self, repository: Repository, size: int) -> None:
        data = random.Random(size).randbytes(size)
        kit.back_up(repository, "b", data)
        assert kit.restore(repository, "b") == data

    def test_an_incremental_stores_what_changed_and_is_a_full_when_read(
        self, repository: Repository
    ) -> None:
        first = _data(300)
        kit.back_up(repository, "one", first)
        before = repository.storage_bytes()
        second = _flip(first, 5, 299)
        made = kit.back_up(repository, "two", second, parent="one", changed={5, 299})
        assert repository.storage_bytes() - before < 2 * CHUNK + 32 * 1024
        assert made.disks[0].parent_backup_id == "one"
        assert made.disks[0].mode is Mode.INCREMENTAL
        opened = Kit(repository.storage).open()
        assert kit.restore(opened, "two") == second
        assert kit.restore(opened, "one") == first

    def test_any_backup_of_a_chain_may_be_deleted(self, repository: Repository) -> None:
        datas = [_data(4)]
        kit.back_up(repository, "b0", datas[0])
        for number in (1, 2):
            datas.append(_flip(datas[-1], number))
            parent = f"b{number - 1}"
            kit.back_up(repository, f"b{number}", datas[-1], parent=parent, changed={number})
        for gone in ("b1", "b0"):
            repository.delete_backup(gone, who="tester", why="test")
            with pytest.raises(NotFound) as caught:
                kit.restore(repository, gone)
            assert caught.value.kind == "backup-unknown"
            with pytest.raises(NotFound):
                repository.delete_backup(gone, who="tester", why="again")
        opened = Kit(repository.storage).open()
        assert [one.backup_id for one in opened.list_backups()] == ["b2"]
        assert kit.restore(opened, "b2") == datas[2]
        assert check(opened, read_data=True).problems == ()
        assert [tomb.backup_id for tomb in opened.backups.list_deleted()] == ["b1", "b0"]

    @pytest.mark.parametrize("size", [109_521_666_048, 8 * TIB, 2 * TIB + SECTOR])
    def test_a_huge_sparse_disk_costs_next_to_nothing(
        self, repository: Repository, size: int
    ) -> None:
        middle = size // CHUNK // 2
        data = b"x" * CHUNK
        repository.begin_session("s")
        with repository.open_disk_writer("s", kit.identity(size), moment="m") as writer:
            writer.put_zero(0, middle)
            writer.put_chunk(middle, kit.KEYS.identify(data), *chunk.encode(data, 1), len(data))
            writer.put_zero(middle + 1, writer.chunk_count - middle - 1)
            writer.finish(DiskTotals(Mode.FULL))
        repository.commit("s", kit.draft(repository, "b", "m"))
        text = repository.storage.size(descriptor.READER_NAME)
        assert repository.storage_bytes() - text < 16 * 1024
        with repository.open_disk_reader("b", KEY) as reader:
            extents = list(reader.list_extents())
            assert extents == [
                Extent(0, middle * CHUNK, zero=True),
                Extent(middle * CHUNK, CHUNK),
                Extent((middle + 1) * CHUNK, size - (middle + 1) * CHUNK, zero=True),
            ]
            assert list(reader.read_chunks()) == [(middle * CHUNK, data)]
            assert reader.read(middle * CHUNK - 2, 4) == b"\0\0xx"
            assert reader.read(size - 3, 3) == bytes(3)
        assert check(repository).problems == ()

    def test_a_disk_that_has_grown_keeps_its_parents_chunks(self, repository: Repository) -> None:
        first = _data(256) + b"short end"
        kit.back_up(repository, "one", first)
        # Beyond 65,536 chunks the map needs another level above the parent's root.
        size = 70_000 * CHUNK
        repository.begin_session("two", parents=["one"])
        seam = (first[256 * CHUNK :]).ljust(CHUNK, b"\0")
        far = b"y" * CHUNK
        with repository.open_disk_writer(
            "two", kit.identity(size), moment="m", mode=Mode.INCREMENTAL, parent_backup_id="one"
        ) as writer:
            assert writer.parent_id(3) == kit.KEYS.identify(first[3 * CHUNK : 4 * CHUNK])
            assert writer.parent_id(69_000) == chunk.ZERO_ID
            for index, data in ((256, seam), (69_000, far)):
                writer.put_chunk(index, kit.KEYS.identify(data), *chunk.encode(data, 1), CHUNK)
            writer.finish(DiskTotals(Mode.INCREMENTAL))
        repository.commit("two", kit.draft(repository, "two", "m"))
        with repository.open_disk_reader("two", KEY) as reader:
            assert reader.read(0, len(first) + 100) == first + bytes(100)
            assert reader.read(69_000 * CHUNK - 1, CHUNK + 2) == b"\0" + far + b"\0"
            assert list(reader.list_extents())[-1].end == size
        assert check(repository).problems == ()

    def test_the_short_end_of_a_grown_disk_must_be_read_again(self, repository: Repository) -> None:
        first = _data(2) + b"short end"
        kit.back_up(repository, "one", first)
        repository.begin_session("two", parents=["one"])
        with pytest.raises(Invalid) as caught:
            kit.write_disk(
                repository,
                "two",
                first + bytes(CHUNK),
                moment="m",
                parent="one",
                changed={3},
            )
        assert caught.value.kind == "grown-chunk-unread"

    def test_two_disks_of_one_session_make_one_backup(self, repository: Repository) -> None:
        datas = {2000: _data(3, 1), 2001: _data(3, 2)}
        repository.begin_session("s")
        for key, data in datas.items():
            kit.write_disk(repository, "s", data, moment="m", key=key)
        repository.commit("s", kit.draft(repository, "b", "m", datas))
        opened = Kit(repository.storage).open()
        for key, data in datas.items():
            assert kit.restore(opened, "b", key=key) == data
        with pytest.raises(NotFound) as caught:
            opened.open_disk_reader("b", 2002)
        assert caught.value.kind == "disk-unknown"

    def test_the_same_data_is_stored_once(self, repository: Repository) -> None:
        data = _data(8)
        kit.back_up(repository, "one", data)
        before = repository.storage_bytes()
        made = kit.back_up(repository, "two", data)
        assert repository.storage_bytes() - before < 4 * 1024
        assert made.disks[0].bytes_stored == 0
        assert made.disks[0].bytes_deduplicated == len(data)
        stats = repository.stats()
        assert stats.chunk_bytes == len(data)
        assert stats.disk_bytes == 2 * len(data)
        assert stats.dedup_ratio is not None
        assert stats.dedup_ratio > 1.9

    def test_a_write_protected_repository_can_be_read(self, tmp_path: Path) -> None:
        made = Kit(LocalStorage(tmp_path)).create()
        kit.back_up(made, "b", _data(2))

        class Protected(LocalStorage):
            def put_if_absent(self, name: str, data: object) -> None:
                del data
                raise Denied(f"cannot write {name}", kind="repository-read-only")

        opened = Kit(Protected(tmp_path)).open()
        assert kit.restore(opened, "b") == _data(2)
        assert check(opened, read_data=True).clean
        with pytest.raises(Denied) as caught:
            opened.begin_session("s")
        assert caught.value.kind == "repository-read-only"

    def test_a_reader_registers_and_leaves_no_trace(self, repository: Repository) -> None:
        kit.back_up(repository, "b", _data(2))
        with repository.open_disk_reader("b", KEY):
            assert len(list(repository.storage.list_objects("sessions/reader-"))) == 1
        with pytest.raises(NotFound):
            repository.open_disk_reader("gone", KEY)
        assert list(repository.storage.list_objects("sessions/")) == []

    def test_the_latest_backup_of_a_disk_is_found_though_the_clock_went_back(
        self, storage: MemoryStorage
    ) -> None:
        early, late = Kit(storage), Kit(storage)
        late.clock.advance(3600)
        early.create()
        kit.back_up(late.open(), "one", _data(2))
        kit.back_up(early.open(seed=9), "two", _data(2))
        found = late.open(seed=10).find_latest(
            source_uuid="source-1", vm_uuid="vm-1", disk_key=KEY, disk_uuid="disk-a"
        )
        assert found is not None
        assert (found.backup_id, found.disk.change_id) == ("two", "change-at-two")

    @pytest.mark.parametrize(
        "other",
        [
            {"source_uuid": "x"},
            {"vm_uuid": "x"},
            {"disk_key": 2001},
            {"disk_uuid": "x"},
        ],
    )
    def test_another_disk_is_no_parent(
        self, repository: Repository, other: dict[str, object]
    ) -> None:
        kit.back_up(repository, "one", _data(1))
        wanted = {
            "source_uuid": "source-1",
            "vm_uuid": "vm-1",
            "disk_key": KEY,
            "disk_uuid": "disk-a",
        } | other
        assert repository.find_latest(**wanted) is None  # type: ignore[arg-type]


class TestSessions:
    def test_a_deleted_parent_is_told(self, repository: Repository) -> None:
        kit.back_up(repository, "one", _data(2))
        repository.delete_backup("one", who="tester", why="test")
        for act in (
            lambda: repository.begin_session("s", parents=["one"]),
            lambda: repository.open_disk_writer(
                "s", kit.identity(2 * CHUNK), moment="m", parent_backup_id="one"
            ),
        ):
            with pytest.raises(Conflict) as caught:
                act()
            assert caught.value.kind == "parent-deleted"

    def test_a_session_begins_once_however_often_it_is_begun(self, repository: Repository) -> None:
        for _ in range(3):
            repository.begin_session("s")
        assert len(list(repository.storage.list_objects("sessions/s/"))) == 1

    def test_a_session_that_has_ended_does_not_begin_again(self, repository: Repository) -> None:
        repository.begin_session("s")
        repository.abort("s", "cancelled")
        with pytest.raises(Conflict) as caught:
            repository.begin_session("s")
        assert caught.value.kind == "session-ended"
        with pytest.raises(Conflict) as caught:
            repository.commit("s", kit.draft(repository, "b", "m"))
        assert caught.value.kind == "session-aborted"
        assert "cancelled" in caught.value.message
        assert list(repository.storage.list_objects("sessions/")) == []

    def test_an_abort_after_the_commit_finds_the_backup(self, repository: Repository) -> None:
        made = kit.back_up(repository, "b", _data(1))
        assert repository.abort("b", "too late").manifest == made
        assert repository.commit("b", kit.draft(repository, "b", "at-b")) == made
        assert kit.restore(repository, "b") == _data(1)

    def test_an_unfinished_disk_cannot_be_committed(self, repository: Repository) -> None:
        repository.begin_session("s")
        kit.write_disk(repository, "s", _data(2), moment="m")
        for keys, moment in (((2000, 2001), "m"), ((2000,), "another")):
            with pytest.raises(Conflict) as caught:
                repository.commit("s", kit.draft(repository, "b", moment, keys))
            assert caught.value.kind == "disk-unfinished"
        assert repository.find_outcome("s") is None

    def test_an_id_belongs_to_one_backup(self, repository: Repository) -> None:
        kit.back_up(repository, "b", _data(1))
        repository.begin_session("s")
        kit.write_disk(repository, "s", _data(1), moment="m")
        with pytest.raises(Conflict) as caught:
            repository.commit("s", kit.draft(repository, "b", "m"))
        assert caught.value.kind == "backup-exists"

    @pytest.mark.parametrize("session_id", ["", "../x", "A", "a b", "-a", "a" * 64, "ä", "a/b"])
    def test_an_impossible_session_id_is_refused(
        self, repository: Repository, session_id: str
    ) -> None:
        with pytest.raises(Invalid):
            repository.begin_session(session_id)
        assert list(repository.storage.list_objects("sessions/")) == []

    def test_a_segment_counts_only_if_a_committed_outcome_names_it(
        self, repository: Repository
    ) -> None:
        data = _data(3)
        repository.begin_session("late")
        kit.write_disk(repository, "late", data, moment="m")
        repository.abort("late", "fenced while it slept")
        assert list(repository.storage.list_objects("index/late"))
        opened = Kit(repository.storage).open()
        repository.begin_session("s")
        with opened.open_disk_writer("s", kit.identity(len(data)), moment="m") as writer:
            assert writer.find_known([kit.KEYS.identify(data[:CHUNK])]) == [False]
        storage_copy = repository.storage
        storage_copy.put_if_absent("index/stranger", b"junk")
        storage_copy.put_if_absent("index/Str anger-1.1.1".replace(" ", ""), b"junk")
        assert Kit(storage_copy).open().list_backups() == []


class TestFullPlaces:
    def test_a_place_smaller_than_the_reserve_is_full(self) -> None:
        small = MemoryStorage(capacity_bytes=64 * MIB)
        repository = Kit(small, reserve=Reserve()).create()
        with pytest.raises(NoSpace) as caught:
            repository.begin_session("s")
        assert caught.value.kind == "repository-full"

    def test_writers_stop_at_the_reserve_and_deletion_still_works(self) -> None:
        small = MemoryStorage(capacity_bytes=3 * MIB)
        repository = Kit(small, reserve=Reserve(share=0.5, bytes_min=MIB)).create()
        kit.back_up(repository, "one", _data(4))
        repository.begin_session("two")
        with pytest.raises(NoSpace) as caught:
            kit.write_disk(repository, "two", _data(16, seed=8), moment="m")
        assert caught.value.kind == "repository-full"
        repository.abort("two", "full")
        assert kit.restore(repository, "one") == _data(4)
        repository.delete_backup("one", who="tester", why="make room")
        assert check(repository).clean

    def test_a_place_that_fills_up_fails_cleanly(self) -> None:
        small = MemoryStorage(capacity_bytes=3 * MIB)
        repository = Kit(small).create()
        kit.back_up(repository, "one", _data(4))
        repository.begin_session("two")
        with pytest.raises(NoSpace):
            kit.write_disk(repository, "two", _data(24, seed=8), moment="m")
        assert check(repository, read_data=True).clean
        assert kit.restore(repository, "one") == _data(4)

    def test_the_reserve_is_a_share_and_a_minimum(self) -> None:
        capacity = MemoryStorage(capacity_bytes=10 * TIB).capacity()
        assert capacity is not None
        assert Reserve().of(capacity) == 10 * TIB // 100
        assert Reserve(share=0.0).of(capacity) == GIB


def _damage(storage: Storage, name: str, data: bytes | None) -> None:
    storage.delete(name)
    if data is not None:
        storage.put_if_absent(name, data)


class TestDamage:
    @pytest.mark.parametrize("way", ["delete", "truncate", "zero", "flip", "swap", "empty"])
    def test_damage_is_reported_and_never_becomes_wrong_bytes(self, way: str) -> None:
        whole = MemoryStorage()
        first = _data(5)
        second = _flip(first, 2)
        made = Kit(whole).create()
        kit.back_up(made, "one", first)
        kit.back_up(made, "two", second, parent="one", changed={2})
        names = [found.name for found in whole.list_objects()]
        randomness = random.Random(way)
        for name in names:
            if name in {descriptor.README_NAME, descriptor.READER_NAME}:
                continue
            storage = MemoryStorage()
            for other in names:
                storage.put_if_absent(other, whole.get(other))
            data = whole.get(name)
            position = randomness.randrange(len(data))
            damaged = {
                "delete": None,
                "truncate": data[:position],
                "zero": data[:position] + bytes(len(data) - position),
                "flip": data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :],
                "swap": next(
                    whole.get(other)
                    for other in [*reversed(names), *names]
                    if other != name and other.partition("/")[0] == name.partition("/")[0]
                )
                if "/" in name
                else b"{}",
                "empty": b"",
            }[way]
            _damage(storage, name, damaged)
            if name == descriptor.NAME:
                if damaged != data and way != "flip":
                    with pytest.raises(SendenseError):
                        Kit(storage).open()
                continue
            opened = Kit(storage).open()
            report = check(opened, read_data=True)
            if way == "delete" and name.startswith("backups/"):
                assert "manifest-missing" in {problem.kind for problem in report.problems}
            assert report.error_count or damaged == data, (way, name)
            for backup_id, expected in (("one", first), ("two", second)):
                try:
                    found = kit.restore(opened, backup_id)
                except (Corrupt, NotFound):
                    continue
                assert found == expected, (way, name, backup_id)

    def test_a_missing_pack_names_backups_disks_and_bytes(self, repository: Repository) -> None:
        first = _data(5)
        kit.back_up(repository, "one", first)
        kit.back_up(repository, "two", _flip(first, 2), parent="one", changed={2})
        (big, _) = sorted(repository.storage.list_objects("packs/"), key=lambda found: -found.size)
        repository.storage.delete(big.name)
        report = check(repository)
        assert not report.clean
        spoilt = {
            (problem.backup_id, problem.disk_key, problem.offset, problem.length)
            for problem in report.problems
            if problem.kind == "chunk-unreadable"
        }
        assert spoilt == {("one", KEY, n * CHUNK, CHUNK) for n in range(5)} | {
            ("two", KEY, n * CHUNK, CHUNK) for n in (0, 1, 3, 4)
        }

    def test_rotten_bytes_are_found_by_reading_only(self, tmp_path: Path) -> None:
        repository = Kit(LocalStorage(tmp_path)).create()
        kit.back_up(repository, "one", _data(5))
        (found,) = repository.storage.list_objects("packs/")
        path = tmp_path / found.name
        with path.open("r+b") as file:
            file.seek(pack.HEADER.size + pack.BLOB.size + 100)
            file.write(b"rot")
        assert check(repository).clean
        report = check(repository, read_data=True)
        assert "pack-corrupt" in {problem.kind for problem in report.problems}
        with pytest.raises(Corrupt):
            kit.restore(repository, "one")

    def test_a_damaged_segment_stops_writers_and_not_readers_of_the_rest(
        self, repository: Repository
    ) -> None:
        kit.back_up(repository, "one", _data(2, 1))
        kit.back_up(repository, "two", _data(2, 2))
        [name] = [one.name for one in repository.storage.list_objects("index/one-")]
        _damage(repository.storage, name, b"junk")
        for session_id, ref in mending.list_packs(repository.storage):
            if session_id == "one":  # else the segment would be rebuilt from them
                whole = repository.storage.get(ref.name)
                _damage(repository.storage, ref.name, whole[:-2] + b"??")
        opened = Kit(repository.storage).open()
        assert kit.restore(opened, "two") == _data(2, 2)
        opened.begin_session("s")
        with pytest.raises(Corrupt):
            opened.open_disk_writer("s", kit.identity(CHUNK), moment="m")

    def test_a_damaged_session_keeps_no_other_from_beginning(self, repository: Repository) -> None:
        repository.begin_session("bad")
        repository.storage.put_if_absent("outcomes/bad", b"junk")
        repository.storage.put_if_absent("sessions/STRANGE/file", b"junk")
        kit.back_up(repository, "b", _data(1))
        assert kit.restore(repository, "b") == _data(1)
        assert not check(repository).clean

    def test_an_unwritten_manifest_is_a_note_and_is_mended(self, repository: Repository) -> None:
        repository.begin_session("s")
        kit.write_disk(repository, "s", _data(2), moment="m")
        names = {found.name for found in repository.storage.list_objects("sessions/")}
        kept = {name: repository.storage.get(name) for name in names}
        made = repository.commit("s", kit.draft(repository, "b", "m"))
        repository.storage.delete(made.name)
        for name, data in kept.items():
            repository.storage.put_if_absent(name, data)
        opened = Kit(repository.storage).open()
        report = check(opened)
        assert [problem.kind for problem in report.problems] == ["manifest-unwritten"]
        assert report.problems[0].severity is Severity.NOTE
        assert report.clean
        opened.begin_session("another")
        assert kit.restore(opened, "b") == _data(2)
        assert check(opened).problems == ()


def test_nothing_readable_leaks_into_names(tmp_path: Path) -> None:
    repository = Kit(LocalStorage(tmp_path)).create()
    repository.begin_session("s1")
    kit.write_disk(repository, "s1", _data(1), moment="secret-moment")
    repository.commit("s1", kit.draft(repository, "backup-secret-vm", "secret-moment"))
    names = [str(found.relative_to(tmp_path)) for found in tmp_path.rglob("*")]
    assert len(names) > 10
    assert not [name for name in names if "secret" in name]
