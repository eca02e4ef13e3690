"""The contract of every storage: whole, immutable, named objects of bytes.

One suite (tests/contract/test_storage.py) holds every implementation to this page.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from sendense.core.errors import Invalid
from sendense.repository.storage.locks import Locks

Buffer: TypeAlias = bytes | bytearray | memoryview

NAME_LENGTH_MAX = 512  # the longest of ours, a checkpoint's, has about 160
PART_LENGTH_MAX = 128  # half of what ext4, XFS and SMB allow, so that a temporary name fits too
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as a listing shows it."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Capacity:
    """How large the place is and how much of it this process may still fill."""

    total_bytes: int
    free_bytes: int


class Storage(Protocol):
    """Named objects of bytes. Safe to use from several threads and several processes at once.

    Errors of every method: NoSpace where the place is full, Denied where it may not be written or
    read, Unavailable where asking again may help, Invalid for a name that no storage may hold.
    """

    def put_if_absent(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        """Store an object, whole or not at all; when this returns it survives a power cut.

        Raises Exists where the name is taken, and changes nothing: then what is stored under the
        name is durable too. After Unavailable the object may or may not be there: read it back.
        Of several callers at once exactly one succeeds.
        """
        ...

    def get(self, name: str) -> bytes:
        """Return an object's bytes. Raises NotFound. Ask `size` first where it may be large."""
        ...

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`.

        Raises NotFound, and Corrupt (kind `object-truncated`) where the object is shorter.
        """
        ...

    def map(self, name: str) -> memoryview:
        """Return a read-only view of an object that need not be held in memory.

        Valid as long as somebody holds it, also after `delete` and `close`. Raises NotFound.
        """
        ...

    def size(self, name: str) -> int:
        """Return an object's size. Raises NotFound."""
        ...

    def list_objects(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield the objects whose names start with `prefix`, in ascending order of name.

        Shows whole objects only. An object put or deleted meanwhile may be shown or not.
        """
        ...

    def list_top(self) -> list[str]:
        """Return what lies at the top, whole objects or not: for the question whether it is empty.

        Leaves out what a put in progress makes and what a fresh file system has.
        """
        ...

    def delete(self, name: str) -> None:
        """Remove an object. Raises NotFound, or Denied (kind `object-locked`) while locked."""
        ...

    def tidy(self) -> int:
        """Remove what crashes left long ago that is no object; return how much it was."""
        ...

    def capacity(self) -> Capacity | None:
        """Return size and free space, or None where the place has no such limit."""
        ...

    def listing_seconds(self) -> float:
        """Return how old a listing may be, in seconds: what it leaves out may be there by then.

        0 where a listing shows all that was put before.
        """
        ...

    def locks(self) -> Locks | None:
        """Return what locks objects here, or None where nothing can."""
        ...

    def close(self) -> None:
        """Let go of handles. Objects stay."""
        ...


def check_name(name: str) -> str:
    """Return the name, or raise Invalid for one that could leave its place or hide in it.

    A name is parts of `A-Z a-z 0-9 . _ -` joined by `/`; no part starts with a dot or a hyphen.
    """
    parts = name.split("/")
    if len(name) > NAME_LENGTH_MAX or not all(
        _PART.fullmatch(part) and len(part) <= PART_LENGTH_MAX for part in parts
    ):
        raise Invalid(
            f"{name!r} is no name for an object", kind="object-name-invalid", name=name[:200]
        )
    return name


def buffers_of(data: Buffer | Sequence[Buffer]) -> list[memoryview]:
    """Return one or many buffers as a list of views of bytes, without copying."""
    many = [data] if isinstance(data, bytes | bytearray | memoryview) else data
    return [memoryview(buffer).cast("B") for buffer in many if len(buffer)]
