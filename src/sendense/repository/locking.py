"""Locks the objects of a repository whose backups are immutable, where its storage can.

A commit locks what it put. What older backups put, and newer ones refer to, is locked further by
each garbage collection, a while ahead so that most collections find nothing to do.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta

from sendense.core.clock import Clock
from sendense.core.errors import Denied, Invalid, NotFound
from sendense.repository.descriptor import Descriptor
from sendense.repository.storage.base import Storage
from sendense.repository.storage.locks import Locks

AHEAD = timedelta(days=10)  # an object that stays needed is locked anew so often
IN_FLIGHT = 16  # requests at once; each takes some milliseconds
LOCKED_KIND = "object-locked"


@dataclass(frozen=True, slots=True)
class Locking:
    """Locks objects of one repository; does nothing where it is to lock nothing."""

    storage: Storage
    descriptor: Descriptor
    clock: Clock

    def extend(
        self, names: Iterable[str], *, progress: Callable[[int], None] = lambda _done: None
    ) -> None:
        """Lock objects for as long as backups made now are immutable; longer locks stay.

        Objects that are gone are passed over. Raises Denied where it may not be done.
        """
        mode = self.descriptor.lock_mode
        if mode is None:
            return
        locks = self._locks()
        least = self.clock.now() + timedelta(days=self.descriptor.immutable_days)

        def extend(name: str) -> None:
            try:
                until = locks.locked_until(name)
                if until is None or until < least:
                    locks.lock(name, mode, least + AHEAD)
            except NotFound:
                return

        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            for done, _ in enumerate(pool.map(extend, names), start=1):
                progress(done)

    def find_locked(self, names: Iterable[str]) -> dict[str, datetime]:
        """Return until when objects are locked, of those that are so now."""
        locks = self.storage.locks()
        if self.descriptor.lock_mode is None or locks is None:
            return {}
        now = self.clock.now()

        def find(name: str) -> datetime | None:
            try:
                return locks.locked_until(name)
            except NotFound:
                return None

        names = list(names)
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            found = zip(names, pool.map(find, names), strict=True)
            return {name: until for name, until in found if until is not None and until > now}

    def _locks(self) -> Locks:
        locks = self.storage.locks()
        if locks is None:
            raise Invalid(
                "the repository is to lock its objects, and the place where it lies cannot",
                kind="storage-cannot-lock",
                hint="it was moved or copied: bring it to a place that can, or make a new one",
            )
        return locks


def delete(storage: Storage, name: str) -> None:
    """Remove an object, or leave one that is locked. Raises NotFound."""
    try:
        storage.delete(name)
    except Denied as error:
        if error.kind != LOCKED_KIND:
            raise
