"""Locks: until a date nobody deletes or changes an object, neither by us nor with our credentials.

What a storage's `locks` returns. An object is locked for itself, after it was put; a lock can be
extended and never shortened.
"""

from datetime import datetime
from enum import StrEnum
from typing import Protocol

from sendense.core.errors import Denied, Invalid


class LockMode(StrEnum):
    """Who may break a lock.

    GOVERNANCE: whoever has the store's permission to bypass it. COMPLIANCE: nobody, not even the
    store's owner. ATTRIBUTE: the root user of the machine that holds the directory.
    """

    GOVERNANCE = "governance"
    COMPLIANCE = "compliance"
    ATTRIBUTE = "attribute"


class Locks(Protocol):
    """Locks the objects of one storage. Safe to use from several threads and processes at once.

    Errors of every method: as Storage's.
    """

    def require(self, mode: LockMode) -> None:
        """Raise Invalid (kind `storage-cannot-lock`) where the place cannot lock so.

        It is found out by asking or trying, not by what the place says of itself.
        """
        ...

    def lock(self, name: str, mode: LockMode, until: datetime) -> None:
        """Lock an object, or extend its lock; one that lasts longer stays. Raises NotFound."""
        ...

    def locked_until(self, name: str) -> datetime | None:
        """Return until when an object is locked, or None where it is not. Raises NotFound.

        A date that has passed may be returned too: it locks nothing any more.
        """
        ...


def locked(name: str, until: datetime | None) -> Denied:
    """Return the error of deleting a locked object."""
    date = until.isoformat(timespec="seconds") if until else "a date that is not known"
    return Denied(
        f"object {name} is locked until {date}",
        kind="object-locked",
        hint="garbage collection removes it once the lock is over",
        name=name,
        until=date,
    )


def cannot_lock(mode: LockMode, why: str, hint: str) -> Invalid:
    """Return the error of a place that cannot lock."""
    return Invalid(
        f"the place cannot lock objects by {mode}: {why}", kind="storage-cannot-lock", hint=hint
    )
