"""A writer that goes on where another one stopped, in the cases that small disks do not reach."""

import random

import pytest

from sendense.repository import index, pack
from sendense.repository.check import check
from sendense.repository.storage.memory import MemoryStorage
from tests import repository_kit as kit
from tests.repository_kit import CHUNK, Kit

CHUNKS = 600  # more than two leaves of a map


def _disk(seed: int, chunks: int = CHUNKS) -> bytes:
    """Return a disk of chunks that all differ and compress to nearly nothing."""
    randomness = random.Random(seed)
    return b"".join(randomness.randbytes(16).ljust(CHUNK, b"\1") for _ in range(chunks))


def test_a_map_whose_nodes_fill_packs_is_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "TARGET_BYTES", 4096)
    monkeypatch.setattr(pack, "META_TARGET_BYTES", 4096)
    data = _disk(1)
    repository = Kit(MemoryStorage()).create()
    repository.begin_session("one")
    kit.write_disk(repository, "one", data, moment="at-one", stop=CHUNKS - 50)

    kit.back_up(repository, "one", data)

    assert kit.restore(repository, "one") == data
    assert check(repository, read_data=True).clean


def test_what_was_inherited_is_cut_into_segments_that_can_be_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pack, "TARGET_BYTES", 4096)
    monkeypatch.setattr(index, "ENTRIES_MAX", 64)
    monkeypatch.setattr(index, "ENTRIES_LIMIT", 128)
    data = _disk(2)
    repository = Kit(MemoryStorage()).create()
    repository.begin_session("one")
    kit.write_disk(repository, "one", data, moment="at-one", stop=CHUNKS - 50)

    kit.back_up(repository, "one", data)

    assert kit.restore(repository, "one") == data
    assert check(repository, read_data=True).clean


def test_a_disk_is_written_again_at_another_moment_of_the_same_session() -> None:
    first, second = _disk(3, 5), _disk(4, 5)
    repository = Kit(MemoryStorage()).create()
    repository.begin_session("one")
    kit.write_disk(repository, "one", first, moment="a-moment-that-was-lost")

    kit.back_up(repository, "one", second)

    assert kit.restore(repository, "one") == second
    assert check(repository, read_data=True).clean


def test_a_full_read_follows_an_incremental_that_died_before_it_was_done() -> None:
    first, second = _disk(5, 5), _disk(6, 5)
    storage = MemoryStorage()
    repository = Kit(storage).create()
    kit.back_up(repository, "one", first)
    repository.begin_session("two", parents=["one"])
    kit.write_disk(repository, "two", second, moment="at-two", parent="one", changed=range(5))
    done = next(one.name for one in storage.list_objects("sessions/two/") if "/done-" in one.name)
    storage.delete(done)

    kit.back_up(repository, "two", second)

    assert kit.restore(repository, "two") == second
    assert check(repository, read_data=True).clean
