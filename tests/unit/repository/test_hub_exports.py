"""Exports of a hub in a repository: whole or not there, and nobody else's."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
import zstandard

from sendense.core.clock import ManualClock
from sendense.core.errors import Corrupt, Unavailable
from sendense.core.ids import SeededIds
from sendense.repository import format, hub_exports, record
from sendense.repository.format import Frame
from sendense.repository.hub_exports import About, Export, Packed, Row
from sendense.repository.keyed import KeyedStorage
from sendense.repository.storage.memory import MemoryStorage
from tests.crash.faulty import Death, Fault, FaultyStorage

ROOT, OTHER = bytes(range(32)), bytes(range(1, 33))
CALLS_MAX = 100
ROWS: list[Row] = [
    ("vms", {"id": "vm-telling", "name": "wéb", "tags": {"a": [1, None]}}),
    ("vms", {"id": "vm-2", "name": None, "tags": {}}),
    ("jobs", {"id": "job-1", "progress": 0.5}),
]


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def place(storage: MemoryStorage) -> KeyedStorage:
    return hub_exports.open_place(storage, ROOT)


@pytest.fixture
def now() -> datetime:
    return ManualClock().now()


def _put(place: KeyedStorage, at: datetime, rows: list[Row] = ROWS, *, seed: int = 1) -> Export:
    about = About("hub-telling", at, "0.1", "0010", {"settings": {"port": 1}})
    return hub_exports.put(place, about, hub_exports.compress(rows), SeededIds(seed))


def _scan(place: KeyedStorage) -> list[Export]:
    found, damaged = hub_exports.scan(place)
    assert damaged == []
    return found


def test_an_export_comes_back_row_by_row(place: KeyedStorage, now: datetime) -> None:
    made = _put(place, now)
    (found,) = _scan(place)
    assert found == made
    assert found.head.tables == {"vms": 2, "jobs": 1}
    assert found.head.more == {"settings": {"port": 1}}
    assert list(hub_exports.read(place, found)) == ROWS


def test_an_export_without_rows_comes_back(place: KeyedStorage, now: datetime) -> None:
    made = _put(place, now, [])
    assert (made.head.part_count, list(hub_exports.read(place, made))) == (0, [])


def test_many_rows_are_cut_into_parts(
    place: KeyedStorage, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_exports, "PART_BYTES", 1000)
    rows: list[Row] = [("vms", {"id": f"vm-{number}"}) for number in range(500)]
    made = _put(place, now, rows)
    assert made.head.part_count > 10
    assert list(hub_exports.read(place, made)) == rows


def test_nothing_of_it_can_be_read_with_another_key(
    storage: MemoryStorage, place: KeyedStorage, now: datetime
) -> None:
    made = _put(place, now)
    assert all(
        word not in storage.get(stored.name)
        for stored in storage.list_objects()
        for word in (b"vm-telling", b"settings", b"hub-telling")
    )
    other = hub_exports.open_place(storage, OTHER)
    assert _scan(other) == []
    assert hub_exports.count_of_other_keys(other) == 1
    assert hub_exports.count_of_other_keys(place) == 0
    with pytest.raises(Corrupt):
        list(hub_exports.read(other, made))


def test_the_newest_stay_and_older_ones_go(place: KeyedStorage, now: datetime) -> None:
    made = [_put(place, now + timedelta(hours=n), seed=n) for n in range(hub_exports.KEPT + 3)]
    assert _scan(place) == made[-hub_exports.KEPT :]
    assert len({one.name.rpartition("/")[0] for one in place.list_objects()}) == hub_exports.KEPT


def test_another_hubs_exports_are_left_alone(storage: MemoryStorage, now: datetime) -> None:
    other = hub_exports.open_place(storage, OTHER)
    theirs = _put(other, now - timedelta(days=400))
    for number in range(hub_exports.KEPT + 1):
        _put(hub_exports.open_place(storage, ROOT), now + timedelta(hours=number), seed=number)
    assert _scan(other) == [theirs]


@pytest.mark.parametrize("fault", Fault)
def test_at_whatever_call_it_stops_what_is_listed_is_whole(
    monkeypatch: pytest.MonkeyPatch, now: datetime, fault: Fault
) -> None:
    monkeypatch.setattr(hub_exports, "PART_BYTES", 60)
    monkeypatch.setattr(hub_exports, "KEPT", 1)
    for number in range(1, CALLS_MAX):
        storage = MemoryStorage()
        place = hub_exports.open_place(storage, ROOT)
        before = _put(place, now)
        faulty = hub_exports.open_place(FaultyStorage(storage, at=number, fault=fault), ROOT)
        try:
            after = _put(faulty, now + timedelta(days=2), seed=2)
        except (Death, Unavailable):
            found = _scan(place)
            assert found
            assert all(list(hub_exports.read(place, one)) == ROWS for one in found)
            last = _put(place, now + timedelta(days=4), seed=3)
            assert _scan(place) == [last]
            assert all(one.name.startswith(last.folder) for one in place.list_objects())
            continue
        assert _scan(place) == [after] != [before]
        assert number > len(ROWS) + 3
        return
    raise AssertionError("it never came through")


@pytest.mark.parametrize("change", ["flip", "cut", "lose", "swap"])
def test_a_damaged_part_is_told(
    storage: MemoryStorage, place: KeyedStorage, now: datetime, change: str
) -> None:
    made = _put(place, now)
    name = made.folder + "part-000000"
    data = bytearray(storage.get(name))
    storage.delete(name)
    if change == "flip":
        data[len(data) // 2] ^= 1
    elif change == "cut":
        del data[-1]
    elif change == "swap":
        other = _put(place, now + timedelta(hours=1), [("vms", {"id": "x"})], seed=2)
        data = bytearray(storage.get(other.folder + "part-000000"))
    if change != "lose":
        storage.put_if_absent(name, data)
    with pytest.raises(Corrupt, match="part-000000"):
        list(hub_exports.read(place, made))


def test_a_damaged_head_is_told_and_the_others_found(
    storage: MemoryStorage, place: KeyedStorage, now: datetime
) -> None:
    made = _put(place, now)
    good = _put(place, now + timedelta(hours=1), seed=2)
    data = bytearray(storage.get(made.folder + "head"))
    storage.delete(made.folder + "head")
    data[100] ^= 1
    storage.put_if_absent(made.folder + "head", data)
    found, damaged = hub_exports.scan(place)
    assert found == [good]
    assert [one.fields["name"] for one in damaged] == [made.folder + "head"]


def test_damage_is_found_without_any_key(
    storage: MemoryStorage, place: KeyedStorage, now: datetime
) -> None:
    made = _put(place, now)
    assert list(hub_exports.find_damaged(storage)) == []
    name = made.folder + "part-000000"
    data = storage.get(name)
    for wrong in (data[:-1], b"short", data + b"x", data[:20] + b"?" + data[21:]):
        storage.delete(name)
        storage.put_if_absent(name, wrong)
        assert [one.fields["name"] for one in hub_exports.find_damaged(storage)] == [name]
    storage.delete(name)
    vanishing = Vanishing()
    _put(hub_exports.open_place(vanishing, ROOT), now)
    assert list(hub_exports.find_damaged(vanishing)) == []


class Vanishing(MemoryStorage):
    """A storage whose listings are older than what it holds."""

    def get(self, name: str) -> bytes:
        if name.endswith("/head"):
            self.delete(name)
        return super().get(name)

    def size(self, name: str) -> int:
        return len(self._objects[name])


def test_an_export_that_goes_while_it_is_listed_is_none(now: datetime) -> None:
    place = hub_exports.open_place(Vanishing(), ROOT)
    _put(place, now)
    assert hub_exports.scan(place) == ([], [])


@pytest.mark.parametrize(
    "part",
    [
        b"no zstd",
        zstandard.ZstdCompressor().compress(bytes(hub_exports.PART_BYTES_MAX + 1)),
        zstandard.ZstdCompressor(write_content_size=False).compress(b"{}"),
        hub_exports._compress([b"no json"]),
        hub_exports._compress([b"[]"]),
        hub_exports._compress([b'{"table": "vms"}']),
        hub_exports._compress([b'{"table": "vms", "row": 5}']),
        hub_exports._compress([b"[" * 100_000]),
    ],
)
def test_rows_that_do_not_parse_are_damage(place: KeyedStorage, now: datetime, part: bytes) -> None:
    about = About("hub-telling", now, "0.1", "0010", {})
    made = hub_exports.put(place, about, Packed((part,), {}), SeededIds(1))
    with pytest.raises(Corrupt, match="its rows"):
        list(hub_exports.read(place, made))


def test_a_head_with_half_a_hash_is_damage(place: KeyedStorage, now: datetime) -> None:
    made = _put(place, now)
    cut = replace(made.head, parts=made.head.parts[:-1])
    place.delete(made.folder + "head")
    format.put_frame(place, Frame.HUB_EXPORT, made.folder + "head", record.dump(cut))
    found, damaged = hub_exports.scan(place)
    assert (found, [one.kind for one in damaged]) == ([], ["object-corrupt"])


def test_what_another_process_is_putting_is_left_alone(place: KeyedStorage, now: datetime) -> None:
    half = f"hub/{place.keys.domain.hex()}/{now:%Y%m%dT%H%M%SZ}-abc/part-000000"
    place.put_if_absent(half, b"x")
    _put(place, now + timedelta(hours=23))
    assert place.size(half) == 1
    _put(place, now + timedelta(hours=25), seed=2)
    assert half not in {one.name for one in place.list_objects()}


def test_strangers_names_are_left_alone(place: KeyedStorage, now: datetime) -> None:
    own = f"hub/{place.keys.domain.hex()}/"
    for name in (f"{own}stray", f"{own}no-time/part-000000"):
        place.put_if_absent(name, b"x")
    made: Any = _put(place, now)
    assert _scan(place) == [made]
    names = {one.name for one in place.list_objects()}
    assert f"{own}stray" in names
    assert f"{own}no-time/part-000000" not in names  # parts of an export that never ended
