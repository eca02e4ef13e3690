"""A storage that stops its process, or only fails, at the n-th call."""

import threading
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import TypeVar

from sendense.core.errors import Unavailable
from sendense.repository.storage.base import Buffer, Capacity, Storage, StoredObject
from sendense.repository.storage.locks import Locks

R = TypeVar("R")


class Fault(Enum):
    """What happens at the n-th call."""

    DIE_BEFORE = "the process dies before the call does anything"
    DIE_AFTER = "the process dies after the deed and before the answer"
    FAIL_BEFORE = "the call fails and does nothing"
    FAIL_AFTER = "the call does its work, and its answer is lost"


class Death(BaseException):
    """The process is dead; no handler of the code under test may catch this."""


class FaultyStorage:
    """Wraps a storage. Calls are counted from 1; a dead process can call nothing any more."""

    def __init__(self, inner: Storage, *, at: int, fault: Fault) -> None:
        self._inner = inner
        self._at = at
        self._fault = fault
        self._lock = threading.Lock()
        self._dead = False
        self.calls = 0

    def _call(self, work: Callable[[], R]) -> R:
        with self._lock:
            if self._dead:
                raise Death
            self.calls += 1
            if self.calls != self._at:
                return work()
            self._dead = self._fault in {Fault.DIE_BEFORE, Fault.DIE_AFTER}
            if self._fault in {Fault.DIE_AFTER, Fault.FAIL_AFTER}:
                work()
            if self._dead:
                raise Death
            raise Unavailable("injected", kind="injected")

    def put_if_absent(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        self._call(lambda: self._inner.put_if_absent(name, data))

    def get(self, name: str) -> bytes:
        return self._call(lambda: self._inner.get(name))

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        return self._call(lambda: self._inner.get_range(name, offset, length))

    def map(self, name: str) -> memoryview:
        return self._call(lambda: self._inner.map(name))

    def size(self, name: str) -> int:
        return self._call(lambda: self._inner.size(name))

    def list_objects(self, prefix: str = "") -> Iterator[StoredObject]:
        return iter(self._call(lambda: list(self._inner.list_objects(prefix))))

    def list_top(self) -> list[str]:
        return self._call(self._inner.list_top)

    def delete(self, name: str) -> None:
        self._call(lambda: self._inner.delete(name))

    def tidy(self) -> int:
        return self._call(self._inner.tidy)

    def capacity(self) -> Capacity | None:
        return self._inner.capacity()

    def listing_seconds(self) -> float:
        return self._inner.listing_seconds()

    def locks(self) -> Locks | None:
        return self._inner.locks()

    def close(self) -> None:
        self._inner.close()
