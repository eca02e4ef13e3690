"""Reading a disk: small reads nearby, plans of many windows, and chunks that are too short."""

import dataclasses
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sendense.core import units
from sendense.core.errors import Corrupt, Invalid, NotFound
from sendense.repository import reader as reader_module
from sendense.repository.gc.state import Collected
from sendense.repository.index import Place
from sendense.repository.manifest import Mode
from sendense.repository.pack import Kind, PackRef
from sendense.repository.reader import DiskReader
from sendense.repository.segments import LOOKS_MAX, Segments
from sendense.repository.storage.local import LocalStorage
from sendense.repository.storage.memory import MemoryStorage
from tests import repository_kit as kit
from tests.repository_kit import CHUNK, KEY, Kit

DATA = random.Random(6).randbytes(5 * CHUNK + 100)


def test_a_plan_of_several_windows_reads_every_chunk_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "WINDOW_CHUNKS", 2)
    repository = Kit(MemoryStorage()).create()
    kit.back_up(repository, "one", DATA)
    with repository.open_disk_reader("one", KEY) as reader:
        found = list(reader.read_chunks(threads=2))
    assert len(found) == 6
    assert b"".join(data for _, data in sorted(found)) == DATA


def test_small_reads_nearby_fetch_a_chunk_once_while_it_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reader_module, "CACHE_BYTES", CHUNK)
    storage = MemoryStorage()
    repository = Kit(storage).create()
    kit.back_up(repository, "one", DATA)
    fetched: list[int] = []
    real = storage.get_range

    def get_range(name: str, offset: int, length: int) -> bytes:
        if name.startswith("packs/"):
            fetched.append(offset)
        return real(name, offset, length)

    monkeypatch.setattr(storage, "get_range", get_range)
    with repository.open_disk_reader("one", KEY) as reader:
        for offset, fetches in ((0, 1), (512, 1), (CHUNK, 2), (CHUNK + 9, 2), (0, 3)):
            assert reader.read(offset, 100) == DATA[offset : offset + 100]
            assert len(fetched) == fetches


def test_a_chunk_that_is_shorter_than_the_disk_needs_is_never_padded() -> None:
    repository = Kit(MemoryStorage()).create()
    made = kit.back_up(repository, "one", DATA)
    disk = dataclasses.replace(made.disks[0], size_bytes=6 * CHUNK)
    reader = DiskReader(
        disk,
        storage=repository.storage,
        segments=repository.segments,
        load_node=repository.get_node,
    )
    with pytest.raises(Corrupt, match="only 100 bytes"):
        reader.read(5 * CHUNK, 200)
    with reader, pytest.raises(Corrupt, match="only 100 bytes"):
        list(reader.read_chunks())


def test_a_segment_that_vanishes_after_the_listing_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = MemoryStorage()
    kit.back_up(Kit(storage).create(), "one", DATA)
    keyed = kit.keyed(storage)
    segments = Segments(keyed, Collected(keyed))
    real = storage.map

    def collected(name: str) -> memoryview:
        storage.delete(name)
        return real(name)

    monkeypatch.setattr(storage, "map", collected)
    segments.refresh()
    assert (segments.counted, segments.damaged) == ((), {})
    assert list(segments.find_known([])) == []


def test_a_repository_lets_go_of_its_storage(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    with Kit(storage).create() as repository:
        kit.back_up(repository, "one", DATA)
    assert storage._root == -1
    storage.close()  # twice does no harm


@pytest.mark.parametrize("size", [0, -1, 1 << 63])
def test_a_disk_of_an_impossible_size_is_refused(size: int) -> None:
    repository = Kit(MemoryStorage()).create()
    repository.begin_session("s")
    with pytest.raises(Invalid) as caught:
        repository.open_disk_writer("s", kit.identity(size), moment="m")
    assert caught.value.kind == "disk-size-invalid"


def test_an_incremental_needs_a_parent_that_holds_this_very_disk() -> None:
    repository = Kit(MemoryStorage()).create()
    kit.back_up(repository, "one", DATA)
    repository.begin_session("s", parents=["one"])
    for identity in (
        kit.identity(len(DATA), key=KEY + 1),
        kit.identity(len(DATA), uuid="another"),
        kit.identity(len(DATA) - 1),
    ):
        with pytest.raises(Invalid) as caught:
            repository.open_disk_writer(
                "s", identity, moment="m", mode=Mode.INCREMENTAL, parent_backup_id="one"
            )
        assert caught.value.kind == "parent-unfit"


def test_a_blob_that_moves_at_every_look_is_given_up_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repository = Kit(MemoryStorage()).create()
    looks = 0

    def find_all(_blob_id: bytes) -> list[Place]:
        nonlocal looks
        looks += 1
        return [Place(PackRef(looks.to_bytes(32, "big"), Kind.META, 1), 0, 1, 1)]

    def read(place: Place) -> bytes:
        raise NotFound("it has gone", name=place.pack.name)

    monkeypatch.setattr(repository.segments, "find_all", find_all)
    with pytest.raises(Corrupt) as caught:
        repository.segments.read_anywhere(bytes(32), read)
    assert (caught.value.kind, looks) == ("pack-missing", LOOKS_MAX)


def test_a_blob_that_nobody_knows_is_told() -> None:
    repository = Kit(MemoryStorage()).create()
    with pytest.raises(Corrupt) as caught:
        repository.get_node(bytes(31) + b"\1")
    assert caught.value.kind == "chunk-missing"


@pytest.mark.parametrize(("capacity", "threads"), [(None, 16), (units.GIB, 3)])
def test_a_distant_storage_gets_many_reads_at_once_and_a_near_one_a_few(
    monkeypatch: pytest.MonkeyPatch, capacity: int | None, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    asked: list[int] = []

    class Watched(ThreadPoolExecutor):
        def __init__(self, workers: int, thread_name_prefix: str) -> None:
            asked.append(workers)
            super().__init__(workers, thread_name_prefix)

    monkeypatch.setattr(reader_module, "ThreadPoolExecutor", Watched)
    repository = Kit(MemoryStorage(capacity_bytes=capacity)).create()
    kit.back_up(repository, "one", DATA)
    with repository.open_disk_reader("one", KEY) as reader:
        assert b"".join(data for _, data in sorted(reader.read_chunks())) == DATA
    assert asked == [threads]
