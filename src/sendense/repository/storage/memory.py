"""Storage in this process's memory: for tests, demonstrations and measuring without a disk."""

import threading
from collections.abc import Iterator, Sequence
from datetime import datetime

from sendense.core.clock import Clock
from sendense.core.errors import Corrupt, Exists, NoSpace, NotFound
from sendense.repository.storage import base, locks
from sendense.repository.storage.base import Buffer, Capacity, StoredObject
from sendense.repository.storage.locks import LockMode, Locks


class MemoryStorage:
    """Objects in a dict. Passes the same contract suite as a directory.

    Args:
        capacity_bytes: refuse to hold more than this, or None for no limit.
        clock: objects can be locked, until a time of this clock; None where they cannot.
    """

    def __init__(self, *, capacity_bytes: int | None = None, clock: Clock | None = None) -> None:
        self._objects: dict[str, bytes] = {}
        self._capacity_bytes = capacity_bytes
        self._locks = MemoryLocks(self, clock) if clock else None
        self._lock = threading.Lock()

    def put_if_absent(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        """Store an object; see Storage."""
        base.check_name(name)
        whole = b"".join(base.buffers_of(data))
        with self._lock:
            if name in self._objects:
                raise Exists(f"object {name} exists already", name=name)
            used = sum(len(stored) for stored in self._objects.values())
            if self._capacity_bytes is not None and used + len(whole) > self._capacity_bytes:
                raise NoSpace(f"no room for object {name}", kind="repository-full", name=name)
            self._objects[name] = whole

    def get(self, name: str) -> bytes:
        """Return an object's bytes; see Storage."""
        base.check_name(name)
        with self._lock:
            if name not in self._objects:
                raise NotFound(f"there is no object {name}", kind="object-missing", name=name)
            return self._objects[name]

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Return part of an object; see Storage."""
        part = self.get(name)[offset : offset + length]
        if len(part) != length:
            raise Corrupt(
                f"object {name} ends before byte {offset + length}",
                kind="object-truncated",
                name=name,
            )
        return part

    def map(self, name: str) -> memoryview:
        """Return a view of an object; see Storage."""
        return memoryview(self.get(name))

    def size(self, name: str) -> int:
        """Return an object's size; see Storage."""
        return len(self.get(name))

    def list_objects(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield objects by name; see Storage."""
        with self._lock:
            found = sorted(
                (name, len(data)) for name, data in self._objects.items() if name.startswith(prefix)
            )
        for name, size in found:
            yield StoredObject(name, size)

    def list_top(self) -> list[str]:
        """Return the first parts of all names; see Storage."""
        with self._lock:
            return sorted({name.partition("/")[0] for name in self._objects})

    def delete(self, name: str) -> None:
        """Remove an object; see Storage."""
        base.check_name(name)
        if self._locks:
            self._locks.require_free(name)
        with self._lock:
            if self._objects.pop(name, None) is None:
                raise NotFound(f"there is no object {name}", kind="object-missing", name=name)

    def tidy(self) -> int:
        """Return 0: a crash leaves nothing here."""
        return 0

    def capacity(self) -> Capacity | None:
        """Return what was set when the storage was made, less what is used."""
        if self._capacity_bytes is None:
            return None
        with self._lock:
            used = sum(len(data) for data in self._objects.values())
        return Capacity(self._capacity_bytes, self._capacity_bytes - used)

    def listing_seconds(self) -> float:
        """Return 0: all threads see one dict."""
        return 0.0

    def locks(self) -> Locks | None:
        """Return what locks objects of this dict."""
        return self._locks

    def close(self) -> None:
        """Do nothing; the objects live as long as this object."""


class MemoryLocks:
    """Locks on the objects of a MemoryStorage, in every mode."""

    def __init__(self, storage: MemoryStorage, clock: Clock) -> None:
        self._storage = storage
        self._clock = clock
        self._until: dict[str, datetime] = {}

    def require(self, mode: LockMode) -> None:
        """Return: every mode is known; see Locks."""

    def lock(self, name: str, mode: LockMode, until: datetime) -> None:
        """Lock an object; see Locks."""
        del mode
        self._storage.size(name)
        self._until[name] = max(until, self._until.get(name, until))

    def locked_until(self, name: str) -> datetime | None:
        """Return until when an object is locked; see Locks."""
        self._storage.size(name)
        return self._until.get(name)

    def require_free(self, name: str) -> None:
        """Raise Denied where an object is locked now."""
        until = self._until.get(name)
        if until is not None and until > self._clock.now():
            raise locks.locked(name, until)
