"""What garbage collection has decided, as everybody else needs it.

Writers refuse condemned packs, the index follows the newest `final`, and a manifest that was
collected stays dead, whatever shows up later.
"""

import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from sendense.core.errors import Corrupt, NotFound
from sendense.repository import format
from sendense.repository.chunk import ID_LENGTH
from sendense.repository.gc import records
from sendense.repository.gc.records import Condemned, Done, Final, Part
from sendense.repository.keyed import KeyedStorage
from sendense.repository.manifest import NAME_BYTES

K = TypeVar("K", Condemned, Final, Done)


EPOCH = datetime.fromtimestamp(0, tz=UTC)  # of a page that was put together, not read


@dataclass(frozen=True, slots=True)
class View:
    """What is decided, at one moment.

    Attributes:
        generation: the newest, 0 before the first. parts: which of its objects are there.
        final: the newest one that was not abandoned; None before the first, or where it is damaged.
        condemned: packs of all lists without a `done`.
        index: segments that count by `final`. live, dead: object ids of manifests, from it and
            from all before.
        damaged: what of the lists cannot be read. A writer must not go on then.
    """

    generation: int = 0
    parts: frozenset[Part] = frozenset()
    final: Final | None = None
    condemned: frozenset[bytes] = frozenset()
    index: frozenset[str] = frozenset()
    live: frozenset[bytes] = frozenset()
    dead: frozenset[bytes] = frozenset()
    damaged: tuple[Corrupt, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether a generation has begun that is not over."""
        return self.generation > 0 and Part.DONE not in self.parts

    def is_dead(self, object_id: str) -> bool:
        """Return whether a manifest was collected."""
        return bytes.fromhex(object_id) in self.dead

    def is_settled(self, object_id: str) -> bool:
        """Return whether `index` speaks for a manifest's segments, so that its outcome does not."""
        raw = bytes.fromhex(object_id)
        return raw in self.live or raw in self.dead

    def require_whole(self) -> None:
        """Raise Corrupt where a list is damaged: nobody knows what it condemns."""
        if self.damaged:
            raise self.damaged[0]


class Collected:
    """Reads what collectors have decided. Safe to use from several threads."""

    def __init__(self, storage: KeyedStorage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._known: dict[tuple[type, int], Condemned | Final | Done] = {}
        self._used: set[tuple[type, int]] = set()
        self._damaged: list[Corrupt] = []

    def refresh(self) -> View:
        """Return what is decided now. One listing, and one read for each new object."""
        with self._lock:
            self._used, self._damaged = set(), []
            view = self._look(records.list_parts(self._storage))
            self._known = {key: self._known[key] for key in self._used}
            return view

    def list_ended(self) -> frozenset[bytes]:
        """Return the digests of all sessions whose outcomes collectors have looked at."""
        with self._lock:
            self._used, self._damaged = set(), []
            found = records.list_parts(self._storage)
            pages = self._pages(_newest_done(found))
            return frozenset(
                ended for page in pages for ended in records.split(page.ended, NAME_BYTES)
            )

    def read_page(self, number: int) -> Done:
        """Return the `done` of a generation.

        Of one that is damaged, or of none, what the `final`s say: then outcomes are looked at anew.
        """
        with self._lock:
            self._used, self._damaged = set(), []
            return self._page(number)

    def _look(self, found: dict[int, set[Part]]) -> View:
        newest = max(found, default=0)
        condemned: set[bytes] = set()
        for number, parts in found.items():
            if Part.CONDEMNED in parts and Part.DONE not in parts:
                one = self._find(Condemned, number)
                for joined in (one.data, one.meta) if one else ():
                    condemned.update(records.split(joined, ID_LENGTH))
        final = self._newest_final(found)
        dead = {
            one
            for page in self._pages(_newest_done(found))
            for one in records.split(page.dead, NAME_BYTES)
        }
        if final is not None:
            dead.update(bytes.fromhex(one.manifest) for one in final.struck)
        return View(
            generation=newest,
            parts=frozenset(found.get(newest, ())),
            final=final,
            condemned=frozenset(condemned),
            index=frozenset(final.index if final else ()),
            live=frozenset(records.split(final.live, NAME_BYTES) if final else ()),
            dead=frozenset(dead),
            damaged=tuple(self._damaged),
        )

    def _newest_final(self, found: dict[int, set[Part]]) -> Final | None:
        """Return the newest `final` that was not abandoned."""
        for number in sorted(found, reverse=True):
            if found[number] & {Part.FINAL, Part.DONE}:
                one = self._find(Final, number)
                if one is None or not one.abandoned:
                    return one
        return None

    def _pages(self, number: int) -> list[Done]:
        """Return a generation's `done` and those that it builds on."""
        pages = []
        while number:
            pages.append(self._page(number))
            number = pages[-1].base
        return pages

    def _page(self, number: int) -> Done:
        damaged = list(self._damaged)
        page = self._find(Done, number) if number else None
        if page is None:
            self._damaged = damaged  # nothing is lost with it
            finals = [self._find(Final, earlier) for earlier in range(1, number + 1)]
            struck = {one.manifest for final in finals if final for one in final.struck}
            dead = records.join(bytes.fromhex(one) for one in struck)
            page = Done(number, EPOCH, base=0, dead=dead, ended=b"")
        return page

    def _find(self, kind: type[K], number: int) -> K | None:
        """Return a record, or None where it is damaged, which is noted."""
        key = (kind, number)
        if key not in self._known:
            try:
                self._known[key] = records.get(kind, self._storage, number)
            except (Corrupt, NotFound) as error:
                self._damaged.append(
                    format.corrupt(
                        records.name(number, records.PARTS[kind]),
                        f"it cannot be read: {error.message}",
                        kind="gc-list-corrupt",
                    )
                )
                return None
        self._used.add(key)
        one = self._known[key]
        assert isinstance(one, kind)
        return one


def _newest_done(found: dict[int, set[Part]]) -> int:
    return max((number for number in found if Part.DONE in found[number]), default=0)
