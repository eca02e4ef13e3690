"""What a trial finds out about stores that are wrong."""

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from sendense.core.errors import Conflict, Exists, NotFound
from sendense.repository.storage import base, probe
from sendense.repository.storage.base import Buffer, StoredObject
from sendense.repository.storage.memory import MemoryStorage


class LooksFirst(MemoryStorage):
    """Looks whether a name is free, and then writes: it passes every trial by one caller."""

    def put_if_absent(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        if name in self._objects:
            raise Exists(name)
        time.sleep(0.01)  # the others look meanwhile
        self._objects[name] = b"".join(base.buffers_of(data))


class IgnoresConditions(MemoryStorage):
    """Knows no conditional writes, and says nothing."""

    def put_if_absent(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        self._objects[name] = b"".join(base.buffers_of(data))


class ListsLate(MemoryStorage):
    """Shows an object no listing."""

    def list_objects(self, prefix: str = "") -> Iterator[StoredObject]:
        return iter(list(super().list_objects(prefix))[1:])


class ReadsLate(MemoryStorage):
    """Does not find what was just put."""

    def get(self, name: str) -> bytes:
        raise NotFound(name)


class Lies(MemoryStorage):
    """Gives other bytes back."""

    def get(self, name: str) -> bytes:
        return super().get(name) + b"!"


def test_a_store_that_is_right_is_fit_and_left_as_it_was() -> None:
    storage = MemoryStorage()
    storage.put_if_absent("other", b"x")
    found = probe.probe(storage, "t")
    assert found.fit
    assert (found.rounds, found.writers, found.failures) == (50, 16, ())
    assert list(storage.list_objects()) == [StoredObject("other", 1)]
    probe.require_fit(found)


@pytest.mark.parametrize(
    ("kind", "failure"),
    [
        (IgnoresConditions, "of 16 writers of one name 16 succeeded, not one"),
        (ListsLate, "a listing shows 49 objects where 50 are"),
        (ReadsLate, "what was put cannot be read at once"),
        (Lies, "what is read is not what the winner put"),
    ],
)
def test_a_store_that_is_wrong_is_found_out(kind: type[MemoryStorage], failure: str) -> None:
    storage = kind()
    found = probe.probe(storage, "t")
    assert failure in found.failures
    with pytest.raises(Conflict) as caught:
        probe.require_fit(found)
    assert caught.value.kind == "storage-unfit"
    assert list(MemoryStorage.list_objects(storage)) == []


def test_a_store_that_looks_first_is_found_out() -> None:
    """By many at once only; the number of those who succeed is chance."""
    storage = LooksFirst()
    storage.put_if_absent("a", b"x")
    with pytest.raises(Exists):
        storage.put_if_absent("a", b"x")
    found = probe.probe(storage, "t")
    assert not found.fit
    assert "succeeded, not one" in found.failures[0]


def test_a_trial_ends_after_a_few_failures() -> None:
    assert probe.probe(Lies(), "t").rounds == probe.FAILURES_TOLD_MAX


def test_a_trial_that_breaks_off_leaves_nothing() -> None:
    class Breaks(MemoryStorage):
        calls = itertools.count()

        def get(self, name: str) -> Any:
            if next(self.calls) == 3:
                raise RuntimeError(name)
            return super().get(name)

    storage = Breaks()
    with pytest.raises(RuntimeError):
        probe.probe(storage, "t")
    assert list(storage.list_objects()) == []
