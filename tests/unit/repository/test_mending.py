"""Index segments that are damaged or gone come back from the packs."""

import random
from collections.abc import Callable

import pytest

from sendense.core.errors import Corrupt, Denied
from sendense.repository import index, mending
from sendense.repository.check import check
from sendense.repository.segments import open_segment
from sendense.repository.storage.memory import MemoryStorage
from tests import repository_kit as kit
from tests.repository_kit import CHUNK, Kit

FIRST = random.Random(1).randbytes(5 * CHUNK)
SECOND = FIRST[:CHUNK] + random.Random(2).randbytes(CHUNK) + FIRST[2 * CHUNK :]


def _damage(storage: MemoryStorage, name: str) -> None:
    storage.delete(name)
    storage.put_if_absent(name, b"junk")


LOSSES: dict[str, Callable[[MemoryStorage, str], None]] = {
    "damaged": _damage,
    "missing": lambda storage, name: storage.delete(name),
}


@pytest.fixture
def storage() -> MemoryStorage:
    made = MemoryStorage()
    repository = Kit(made).create()
    kit.back_up(repository, "one", FIRST)
    kit.back_up(repository, "two", SECOND, parent="one", changed={1})
    return made


def _segments(storage: MemoryStorage) -> list[str]:
    return [found.name for found in storage.list_objects("index/")]


@pytest.mark.parametrize("loss", list(LOSSES))
def test_the_next_restore_rebuilds_what_of_the_index_is_lost(
    storage: MemoryStorage, loss: str
) -> None:
    for name in _segments(storage):
        LOSSES[loss](storage, name)
    opened = Kit(storage).open()
    assert not check(opened).clean
    assert kit.restore(opened, "one") == FIRST
    assert kit.restore(Kit(storage).open(seed=5), "two") == SECOND
    assert check(Kit(storage).open(seed=6), read_data=True).clean


@pytest.mark.parametrize("loss", list(LOSSES))
def test_the_next_backup_rebuilds_it_too_and_is_incremental(
    storage: MemoryStorage, loss: str
) -> None:
    LOSSES[loss](storage, _segments(storage)[0])
    opened = Kit(storage).open()
    made = kit.back_up(opened, "three", FIRST, parent="two", changed={1})
    assert made.disks[0].bytes_new == 0
    assert kit.restore(opened, "three") == FIRST
    assert check(Kit(storage).open(seed=6), read_data=True).clean


def test_a_segment_is_not_replaced_where_a_pack_of_its_session_is_damaged(
    storage: MemoryStorage,
) -> None:
    name = _segments(storage)[0]
    _damage(storage, name)
    bad = next(
        ref for session_id, ref in mending.list_packs(kit.keyed(storage)) if session_id in name
    )
    whole = storage.get(bad.name)
    storage.delete(bad.name)
    storage.put_if_absent(bad.name, whole[:-2] + b"??")
    opened = Kit(storage).open()
    opened.begin_session("s")
    with pytest.raises(Corrupt):
        opened.open_disk_writer("s", kit.identity(CHUNK), moment="m")
    assert storage.get(name) == b"junk"


def test_what_is_no_pack_is_passed_over(storage: MemoryStorage) -> None:
    storage.put_if_absent("packs/00/junk", b"junk")
    head = storage.get(next(storage.list_objects("packs/")).name)
    storage.put_if_absent("packs/00/not-hexadecimal", head)
    storage.delete(_segments(storage)[0])
    assert kit.restore(Kit(storage).open(), "one") == FIRST


def test_a_place_that_cannot_be_written_is_read_as_far_as_it_goes(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.delete(next(name for name in _segments(storage) if "two" in name))

    def deny(*_: object) -> None:
        raise Denied("read-only", kind="repository-read-only")

    monkeypatch.setattr(storage, "put_if_absent", deny)
    opened = Kit(storage).open()
    assert kit.restore(opened, "one") == FIRST
    with pytest.raises(Corrupt):
        kit.restore(opened, "two")


def test_more_than_a_segment_may_hold_is_refused(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Kit(storage).open()
    expected = opened.segments.list_expected(opened.list_backups())
    storage.delete(_segments(storage)[0])
    opened.segments.refresh()
    monkeypatch.setattr(index, "ENTRIES_LIMIT", 1)
    with pytest.raises(Corrupt, match="do not fit"):
        mending.mend_index(kit.keyed(storage), opened.segments, lambda: expected)


def test_a_damaged_manifest_of_a_session_that_was_not_tidied_up_keeps_no_other_from_beginning(
    storage: MemoryStorage,
) -> None:
    repository = Kit(storage).open()
    manifest = repository.get_backup("one")
    _damage(storage, manifest.name)
    storage.put_if_absent("sessions/one/registration-0123456789abcdef", b"left by a crash")
    opened = Kit(storage).open(seed=5)
    assert opened.settle_sessions() == 0
    opened.begin_session("three")
    assert opened.find_outcome("one") is not None


def test_a_segment_under_the_name_of_another_session_s_is_damaged(storage: MemoryStorage) -> None:
    # Its seal is right, so whoever can write could bring an old index back under a new name.
    first, second = _segments(storage)
    storage.delete(second)
    storage.put_if_absent(second, storage.get(first))
    with pytest.raises(Corrupt, match="of session one"):
        open_segment(kit.keyed(storage), second)
    assert kit.restore(Kit(storage).open(), "two") == SECOND
