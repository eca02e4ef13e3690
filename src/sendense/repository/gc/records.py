"""What garbage collection writes: four objects for each generation, each created once.

    gc/<n>/plan        which deleted backups go
    gc/<n>/condemned   which packs nobody may refer to any more
    gc/<n>/final       what is deleted, and which index segments count from now on
    gc/<n>/done        it is deleted; who was dead before stays on record

None of them is ever removed: a free name could be won by a collector that slept meanwhile.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Self, TypeVar

import blake3

from sendense.core.errors import Exists, NotFound, Unavailable
from sendense.repository import format, record
from sendense.repository.chunk import ID_LENGTH
from sendense.repository.format import Frame
from sendense.repository.keyed import KeyedStorage
from sendense.repository.manifest import NAME_BYTES
from sendense.repository.pack import Kind, name_of

FOLDER = "gc/"
DIGITS = 8  # of a generation in names: so that they sort; one a minute would last 190 years
SESSION = "gc."  # what a collector's packs and segments name as their session begins so

# What one generation takes on; the rest waits for the next. Together they take 6 MB of a frame.
PACKS_MAX = 50_000  # 1.6 TB in packs of 32 MiB
STRUCK_MAX = 20_000
ENDED_MAX = 40_000
PAGE_BYTES_MAX = 6 << 20  # of a `done`, 400,000 ids; its successor begins a page of its own

R = TypeVar("R", "Plan", "Condemned", "Final", "Done")


class Part(StrEnum):
    """The objects of a generation, in the order in which they come to be."""

    PLAN = "plan"
    CONDEMNED = "condemned"
    FINAL = "final"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Struck:
    """A deleted backup: its manifest's object id, and its tombstone's.

    The tombstone is None where the manifest came back after it was collected, put by a process
    that had slept.
    """

    manifest: str
    tomb: str | None


@dataclass(frozen=True, slots=True)
class Plan:
    """A generation has begun; `struck` were deleted before it looked at any session."""

    generation: int
    nonce: bytes
    at: datetime
    struck: tuple[Struck, ...]


@dataclass(frozen=True, slots=True)
class Condemned:
    """Packs that no writer refers to from now on: ids of 32 bytes, one behind the other.

    Attributes:
        data, meta: packs by kind. copies: segments that say where the live chunks of those among
            them lie now that were rewritten; they do not count before `final` names them.
    """

    generation: int
    nonce: bytes
    at: datetime
    data: bytes
    meta: bytes
    copies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Final:
    """What goes, and nothing else ever does.

    Attributes:
        abandoned: the generation was given up; everything else is empty and means nothing.
        data, meta: packs to delete, as in Condemned. pack_bytes: their sizes together.
        segments: names to delete. struck: manifests to delete, and then their tombstones.
        index: all segments that count for backups in `live` and for dead ones.
        live: object ids of the manifests that stay, 16 bytes each, one behind the other.
        ended: digests of the sessions whose outcomes were looked at since the generation before.
    """

    generation: int
    nonce: bytes
    at: datetime
    abandoned: bool
    data: bytes
    meta: bytes
    pack_bytes: int
    segments: tuple[str, ...]
    struck: tuple[Struck, ...]
    index: tuple[str, ...]
    live: bytes
    ended: bytes

    @classmethod
    def give_up(cls, generation: int, *, nonce: bytes, at: datetime) -> Self:
        """Return what ends a generation without deleting anything."""
        return cls(
            generation, nonce, at, abandoned=True, data=b"", meta=b"", pack_bytes=0,
            segments=(), struck=(), index=(), live=b"", ended=b"",
        )  # fmt: skip

    def packs(self) -> frozenset[bytes]:
        """Return the ids of the packs to delete."""
        return frozenset(split(self.data + self.meta, ID_LENGTH))

    @property
    def pack_count(self) -> int:
        """How many packs are deleted."""
        return (len(self.data) + len(self.meta)) // ID_LENGTH

    def names(self) -> Iterator[str]:
        """Yield what is deleted, in this order: a tombstone goes after its manifest."""
        for kind, joined in ((Kind.DATA, self.data), (Kind.META, self.meta)):
            for pack_id in split(joined, ID_LENGTH):
                yield name_of(kind, pack_id)
        yield from self.segments
        for one in self.struck:
            yield f"backups/{one.manifest}"
        for one in self.struck:
            if one.tomb is not None:
                yield f"tombs/{one.tomb}"


@dataclass(frozen=True, slots=True)
class Done:
    """A generation is over.

    Attributes:
        base: the generation whose `done` says what came before `dead` and `ended`, 0 for none.
        dead: object ids of all manifests collected since. ended: as in Final, all since.
    """

    generation: int
    at: datetime
    base: int
    dead: bytes
    ended: bytes


FRAMES: dict[Part, Frame] = {
    Part.PLAN: Frame.GC_PLAN,
    Part.CONDEMNED: Frame.GC_CONDEMNED,
    Part.FINAL: Frame.GC_FINAL,
    Part.DONE: Frame.GC_DONE,
}
PARTS: dict[type, Part] = {
    Plan: Part.PLAN,
    Condemned: Part.CONDEMNED,
    Final: Part.FINAL,
    Done: Part.DONE,
}


def session_of(generation: int) -> str:
    """Return what packs and segments of a generation's collectors name as their session."""
    return f"{SESSION}{generation}"


def is_collector(session_id: str) -> bool:
    """Return whether a session's id is a collector's; `Repository` gives it to nobody else."""
    return session_id.startswith(SESSION)


def generation_of(session_id: str) -> int:
    """Return the generation of a collector's session, 0 where the name has none."""
    digits = session_id.removeprefix(SESSION).partition("-")[0]
    return int(digits) if digits.isascii() and digits.isdigit() else 0


def name(generation: int, part: Part) -> str:
    """Return the name of a generation's object."""
    return f"{FOLDER}{generation:0{DIGITS}d}/{part}"


def list_parts(storage: KeyedStorage) -> dict[int, set[Part]]:
    """Return which objects there are of each generation."""
    found: dict[int, set[Part]] = {}
    for stored in storage.list_objects(FOLDER):
        number, _, part = stored.name.removeprefix(FOLDER).partition("/")
        if len(number) == DIGITS and number.isascii() and number.isdigit() and part in set(Part):
            found.setdefault(int(number), set()).add(Part(part))
    return found


def get(kind: type[R], storage: KeyedStorage, generation: int) -> R:
    """Read an object of a generation. Raises NotFound or Corrupt."""
    part = PARTS[kind]
    where = name(generation, part)
    found = record.load(kind, format.get_frame(storage, FRAMES[part], where), name=where)
    if found.generation != generation or any(
        len(getattr(found, field, b"")) % width
        for field, width in (
            ("data", ID_LENGTH),
            ("meta", ID_LENGTH),
            ("live", NAME_BYTES),
            ("dead", NAME_BYTES),
            ("ended", NAME_BYTES),
        )
    ):
        raise format.corrupt(where, "it is of another generation, or an id in it is cut off")
    return found


def put(storage: KeyedStorage, made: R) -> R:
    """Create an object of a generation; return what counts: the one that came first.

    Of several collectors one wins, and all go on with what that one wrote.
    """
    part = PARTS[type(made)]
    try:
        format.put_frame(storage, FRAMES[part], name(made.generation, part), record.dump(made))
    except (Exists, Unavailable):
        # "Exists" may be the echo of our own try, and a failure may have come after the deed.
        # What is stored decides.
        with contextlib.suppress(NotFound):
            return get(type(made), storage, made.generation)
        raise
    return made


def split(joined: bytes, width: int) -> list[bytes]:
    """Return the ids in a row of them."""
    return [joined[start : start + width] for start in range(0, len(joined), width)]


def join(ids: Iterable[bytes]) -> bytes:
    """Return ids one behind the other, ascending."""
    return b"".join(sorted(ids))


def digest(session_id: str) -> bytes:
    """Return what stands for a session in `ended`."""
    return blake3.blake3(session_id.encode()).digest(length=NAME_BYTES)
