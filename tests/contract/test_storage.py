"""One suite that every storage must pass."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sendense.core.errors import Corrupt, Exists, Invalid, NotFound
from sendense.repository.storage import locations
from sendense.repository.storage.base import Storage
from sendense.repository.storage.local import LocalStorage
from sendense.repository.storage.memory import MemoryStorage

WRITERS = 16


@pytest.fixture(params=["memory", "local", "s3", "s3 with locks"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    made: Storage
    if request.param == "memory":
        made = MemoryStorage()
    elif request.param == "local":
        made = LocalStorage(tmp_path)
    else:
        place = {"s3": "s3_url", "s3 with locks": "vault_url"}[request.param]
        made = locations.open_storage(request.getfixturevalue(place))
    yield made
    made.close()


def test_what_is_put_is_got(storage: Storage) -> None:
    storage.put_if_absent("packs/ab/one", b"hello")
    assert storage.get("packs/ab/one") == b"hello"
    assert storage.size("packs/ab/one") == 5
    assert bytes(storage.map("packs/ab/one")) == b"hello"


def test_many_buffers_become_one_object(storage: Storage) -> None:
    parts = [bytes([n % 256]) * (n % 5) for n in range(3000)]
    mixed = [bytearray(part) if n % 2 else memoryview(part) for n, part in enumerate(parts)]
    storage.put_if_absent("many", mixed)
    assert storage.get("many") == b"".join(parts)


def test_an_empty_object_is_an_object(storage: Storage) -> None:
    storage.put_if_absent("empty", b"")
    assert (storage.get("empty"), storage.size("empty")) == (b"", 0)
    assert bytes(storage.map("empty")) == b""
    assert storage.get_range("empty", 0, 0) == b""


def test_a_name_is_never_replaced(storage: Storage) -> None:
    storage.put_if_absent("a", b"first")
    with pytest.raises(Exists):
        storage.put_if_absent("a", b"second")
    assert storage.get("a") == b"first"


def test_of_many_writers_exactly_one_wins(storage: Storage) -> None:
    for round_number in range(10):
        name = f"outcomes/{round_number}"
        barrier = threading.Barrier(WRITERS)
        winners: list[int] = []

        def put(writer: int, name: str = name, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                storage.put_if_absent(name, b"%d" % writer)
            except Exists:
                assert storage.get(name)
            else:
                winners.append(writer)  # noqa: B023 - joined before the next round

        threads = [threading.Thread(target=put, args=(writer,)) for writer in range(WRITERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert storage.get(name) == b"%d" % winners[0]
        assert len(winners) == 1


def test_a_range_is_exact_or_refused(storage: Storage) -> None:
    storage.put_if_absent("a", b"0123456789")
    assert storage.get_range("a", 3, 4) == b"3456"
    assert storage.get_range("a", 9, 1) == b"9"
    with pytest.raises(Corrupt) as caught:
        storage.get_range("a", 8, 3)
    assert caught.value.kind == "object-truncated"


def test_a_missing_object_is_not_found(storage: Storage) -> None:
    storage.put_if_absent("folder/there", b"x")
    for name in ("gone", "folder/gone", "no/such/folder"):
        for call in (storage.get, storage.size, storage.map, storage.delete):
            with pytest.raises(NotFound):
                call(name)
        with pytest.raises(NotFound):
            storage.get_range(name, 0, 1)


def test_a_listing_is_sorted_and_keeps_to_its_prefix(storage: Storage) -> None:
    names = ["a", "a-b", "a.b", "b/c", "b/c-d", "b/c/d", "b/c0", "index/s-1", "index/s-2"]
    stored = [name for name in names if name not in {"a", "b/c"}]
    for name in reversed(stored):
        storage.put_if_absent(name, name.encode())
    assert [found.name for found in storage.list_objects()] == sorted(stored)
    assert [found.name for found in storage.list_objects("b/")] == ["b/c-d", "b/c/d", "b/c0"]
    assert [found.name for found in storage.list_objects("b/c-")] == ["b/c-d"]
    assert [found.name for found in storage.list_objects("index/s-")] == ["index/s-1", "index/s-2"]
    assert [found.size for found in storage.list_objects("b/")] == [5, 5, 4]
    assert list(storage.list_objects("nothing/here/")) == []


def test_a_listing_bears_deletions_meanwhile(storage: Storage) -> None:
    for number in range(20):
        storage.put_if_absent(f"tombs/{number:02d}", b"")
    listing = storage.list_objects("tombs/")
    first = next(listing)
    for number in range(1, 20):
        storage.delete(f"tombs/{number:02d}")
    assert {first.name} <= {first.name, *(found.name for found in listing)}


def test_what_is_deleted_is_gone_and_its_name_is_free(storage: Storage) -> None:
    storage.put_if_absent("sessions/s/x", b"1")
    storage.delete("sessions/s/x")
    with pytest.raises(NotFound):
        storage.get("sessions/s/x")
    storage.put_if_absent("sessions/s/x", b"2")
    assert storage.get("sessions/s/x") == b"2"


def test_a_mapped_object_outlives_its_deletion(storage: Storage) -> None:
    storage.put_if_absent("index/a", b"0123456789" * 1000)
    view = storage.map("index/a")
    storage.delete("index/a")
    assert bytes(view[-1:]) == b"9"
    assert view.readonly


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "/etc/passwd",
        "..",
        "a/../b",
        "a/..",
        "./a",
        "a//b",
        "a/",
        ".hidden",
        "a/.tmp-x",
        "-rf",
        "a\0b",
        "a\nb",
        "ä",
        "a" * 129,
        "/".join("a" * 100 for _ in range(6)),
    ],
)
def test_a_name_that_could_leave_its_place_is_refused(storage: Storage, name: str) -> None:
    for call in (storage.get, storage.size, storage.map, storage.delete):
        with pytest.raises(Invalid):
            call(name)
    with pytest.raises(Invalid):
        storage.put_if_absent(name, b"x")
    assert list(storage.list_objects()) == []


def test_the_top_shows_whether_a_place_is_empty(storage: Storage) -> None:
    assert storage.list_top() == []
    storage.put_if_absent("packs/ab/one", b"x")
    storage.put_if_absent("sendense.json", b"{}")
    assert storage.list_top() == ["packs", "sendense.json"]


def test_tidying_leaves_every_object_in_place(storage: Storage) -> None:
    storage.put_if_absent("sessions/a/one", b"1")
    storage.put_if_absent("sessions/b/two", b"2")
    storage.delete("sessions/b/two")
    assert storage.tidy() == 0  # nothing here is old
    assert [found.name for found in storage.list_objects()] == ["sessions/a/one"]
    storage.put_if_absent("sessions/b/three", b"3")
    assert storage.get("sessions/b/three") == b"3"
