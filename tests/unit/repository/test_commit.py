"""The commit, where the storage holds something else than it should or gives no answer."""

import random
from collections.abc import Iterator

import pytest

from sendense.core.errors import Exists, Unavailable
from sendense.repository.storage.memory import MemoryStorage
from tests import repository_kit as kit
from tests.crash.faulty import Fault, FaultyStorage
from tests.repository_kit import CHUNK, Kit

DATA = random.Random(5).randbytes(2 * CHUNK)


def test_another_manifest_under_a_commit_s_name_is_never_taken_for_it() -> None:
    repository = Kit(MemoryStorage()).create()
    one = kit.back_up(repository, "one", DATA)
    two = kit.back_up(repository, "two", DATA)
    storage = repository.storage
    other = storage.get(one.name)
    storage.delete(two.name)
    storage.put_if_absent(two.name, other)

    with pytest.raises(Exists):
        repository.commit("two", kit.draft(repository, "two", "at-two"))

    assert storage.get(two.name) == other


def commit_with_each_fault(fault: Fault) -> Iterator[tuple[MemoryStorage, bool]]:
    """Yield the storage after a commit one of whose calls failed, and whether it said "done"."""
    for at in range(1, 100):
        storage = MemoryStorage()
        repository = Kit(storage).create()
        repository.begin_session("s")
        kit.write_disk(repository, "s", DATA, moment="m")
        faulty = FaultyStorage(storage, at=at, fault=fault)
        try:
            committing = Kit(faulty).open()
            committing.commit("s", kit.draft(committing, "b", "m"))
        except Unavailable:
            yield storage, False
        else:
            if faulty.calls < at:
                return
            yield storage, True
    pytest.fail("a commit makes more calls than expected")


def test_a_commit_that_was_not_stored_is_none() -> None:
    """Whichever call of a commit fails, either all of it was stored or it can be made again."""
    none = 0
    for storage, is_done in commit_with_each_fault(Fault.FAIL_BEFORE):
        none += not is_done and not list(storage.list_objects("outcomes/"))
        again = Kit(storage).open(seed=3)
        again.commit("s", kit.draft(again, "b", "m"))
        assert kit.restore(again, "b") == DATA
    assert none


def test_a_commit_whose_answer_was_lost_is_one() -> None:
    """Whichever call does its work and says that it failed, what is stored decides."""
    made_all_the_same = 0
    for storage, is_done in commit_with_each_fault(Fault.FAIL_AFTER):
        if is_done:
            made_all_the_same += 1
            assert kit.restore(Kit(storage).open(seed=3), "b") == DATA
    assert made_all_the_same
