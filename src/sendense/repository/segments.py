"""The repository's index as one process sees it: the segments that count.

A segment counts only if a committed outcome names it. Otherwise a writer that was ended while it
slept could publish a segment late and revive packs that a collector has deleted.
"""

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sendense.core.errors import Corrupt, Invalid, NotFound
from sendense.repository import session
from sendense.repository.index import Ids, Place, Segment
from sendense.repository.storage.base import Storage

FOLDER = "index/"


def segment_name(session_id: str, disk_key: int, owner: int, number: int) -> str:
    """Return the name of a session's segment: unique to the disk, its owner and a counter."""
    return f"{FOLDER}{session_id}-{disk_key}.{owner}.{number}"


def session_of(name: str) -> str:
    """Return the session in a segment's name."""
    return name.removeprefix(FOLDER).rpartition("-")[0]


def open_segment(storage: Storage, name: str) -> Segment:
    """Map and check a segment. Raises NotFound or Corrupt."""
    return Segment(storage.map(name), name=name)


class Segments:
    """All segments that count. Safe to use from several threads."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._by_name: dict[str, Segment] = {}
        self._counted: tuple[Segment, ...] = ()
        self._committed: dict[str, frozenset[str]] = {}  # of sessions with segments in the listing
        self.damaged: dict[str, Corrupt] = {}

    def refresh(self) -> None:
        """Look for segments that have come or gone."""
        with self._lock:
            names = [found.name for found in self._storage.list_objects(FOLDER)]
            self.damaged.clear()
            counted = [name for name in names if self._counts(name)]
            for name in set(self._by_name) - set(counted):
                del self._by_name[name]
            for name in counted:
                if name not in self._by_name:
                    self._open(name)
            self._counted = tuple(self._by_name.values())

    def find_known(self, ids: Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """Return for each id whether a committed segment has it."""
        known = np.zeros(len(ids), dtype=bool)
        if not ids:
            return known
        wanted = Ids.of(ids)
        for segment in self._counted:
            known |= segment.find(wanted) >= 0
        return known

    def locate(self, ids: Sequence[bytes], *, refresh: bool = True) -> list[Place]:
        """Return where blobs lie. Raises Corrupt (kind `chunk-missing`) where one is nowhere."""
        places = self.find(ids)
        if refresh and None in places:
            self.refresh()  # a collector may have moved them, or another process committed them
            places = self.find(ids)
        found = [place for place in places if place is not None]
        if len(found) != len(places):
            missing = ids[places.index(None)].hex()
            raise Corrupt(
                f"no index segment says where {missing} lies",
                hint="damaged segments: " + (", ".join(self.damaged) or "none"),
                kind="chunk-missing",
                chunk_id=missing,
            )
        return found

    def find(self, ids: Sequence[bytes]) -> list[Place | None]:
        """Return where blobs lie, None for those that no segment has."""
        places: list[Place | None] = [None] * len(ids)
        if not ids:
            return places
        wanted = Ids.of(ids)
        pending = np.arange(len(ids))
        for segment in self._counted:
            found = segment.find(wanted.take(pending))
            for position in np.flatnonzero(found >= 0):
                places[int(pending[position])] = segment.place(int(found[position]))
            pending = pending[found < 0]
            if not len(pending):
                break
        return places

    def __len__(self) -> int:
        return sum(len(segment) for segment in self._counted)

    @property
    def counted(self) -> tuple[Segment, ...]:
        """The segments that count."""
        return self._counted

    def _counts(self, name: str) -> bool:
        try:
            return name in self._segments_of(session_of(name))
        except Corrupt as error:
            self.damaged[name] = error  # without its outcome nobody can say whether it counts
            return False

    def _segments_of(self, session_id: str) -> frozenset[str]:
        """Return the segments that a session's outcome made count; an outcome never changes."""
        if session_id not in self._committed:
            try:
                outcome = session.find_outcome(self._storage, session_id)
            except Invalid:
                return frozenset()  # a stranger's file, which no session of ours can have named
            if outcome is None:
                return frozenset()
            manifest = outcome.manifest
            self._committed[session_id] = frozenset(manifest.segments if manifest else ())
        return self._committed[session_id]

    def _open(self, name: str) -> None:
        try:
            self._by_name[name] = open_segment(self._storage, name)
        except NotFound:
            return  # deleted since the listing
        except Corrupt as error:
            self.damaged[name] = error
