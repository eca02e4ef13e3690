"""The repository's index as one process sees it: the segments that count.

A segment counts only if a committed outcome or the newest `final` of garbage collection names it.
Otherwise a writer that was ended while it slept could publish a segment late and revive packs that
a collector has deleted. For backups that `final` knows, it alone speaks: what it leaves out is
superseded.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from sendense.core.errors import Corrupt, Invalid, NotFound
from sendense.repository import format, pack, quarantine, session
from sendense.repository.chunk import ID_LENGTH
from sendense.repository.gc import records
from sendense.repository.gc.state import Collected, View
from sendense.repository.index import Ids, Place, Positions, Segment
from sendense.repository.keyed import KeyedStorage
from sendense.repository.manifest import Manifest

FOLDER = "index/"


def segment_name(session_id: str, disk_key: int, ending: str) -> str:
    """Return the name of a session's segment. The ending tells apart attempts, owners and turns."""
    return f"{FOLDER}{session_id}-{disk_key}.{ending}"


def session_of(name: str) -> str:
    """Return the session in a segment's name."""
    return name.removeprefix(FOLDER).rpartition("-")[0]


def is_collectors(name: str) -> bool:
    """Return whether a collector wrote a segment, by its name."""
    return name.startswith(FOLDER + records.SESSION)


def open_segment(storage: KeyedStorage, name: str) -> Segment:
    """Map and check a segment. Raises NotFound or Corrupt."""
    found = Segment(storage.map(name), keys=storage.keys, name=name)
    # A MAC binds the bytes, not the name: an older segment must not come back under a newer name.
    if found.session_id != session_of(name):
        raise format.corrupt(name, f"it is a segment of session {found.session_id}")
    return found


# Collections that may move a blob while one process looks and reads: a frozen one meets several.
LOOKS_MAX = 10
T = TypeVar("T")
_Flags: TypeAlias = npt.NDArray[np.bool_]


def _flag_packs(segments: Iterable[Segment], packs: frozenset[bytes]) -> dict[str, _Flags]:
    """Return for each segment that names one of some packs which of its own are among them."""
    flagged: dict[str, _Flags] = {}
    for segment in segments if packs else ():
        flags = np.array([ref.id in packs for ref in segment.packs()], dtype=bool)
        if flags.any():
            flagged[segment.name] = flags
    return flagged


def _held(segment: Segment, found: Positions, refused: dict[str, _Flags]) -> _Flags:
    """Return for each position that `segment.find` gave whether it is one in a pack not refused."""
    held = found >= 0
    if segment.name in refused:
        held[held] = ~refused[segment.name][segment.table.places[found[held], 0]]
    return held


class Segments:
    """All segments that count. Safe to use from several threads."""

    def __init__(self, storage: KeyedStorage, collected: Collected) -> None:
        self._storage = storage
        self._collected = collected
        self.view = View()
        self._lock = threading.Lock()
        self._by_name: dict[str, Segment] = {}
        self._counted: tuple[Segment, ...] = ()
        self._committed: dict[str, Manifest] = {}  # of sessions with segments in the listing
        self._refused: dict[str, _Flags] = {}  # of segments with condemned or bad packs
        self._bad: dict[str, _Flags] = {}  # of segments with bad packs
        self._suspects: frozenset[bytes] = frozenset()
        self.quarantined: frozenset[bytes] = frozenset()
        self.damaged: dict[str, Corrupt] = {}

    def suspect(self, pack_id: bytes) -> None:
        """Take a pack for bad from the next refresh on, whether or not that could be written."""
        with self._lock:
            self._suspects |= {pack_id}

    def refresh(self) -> None:
        """Look for segments that have come or gone, and for what is condemned."""
        with self._lock:
            # Before the index: a `final` that comes in between leaves what it supersedes in place
            # until the generation after it, which waits for whoever looks now.
            self.view = self._collected.refresh()
            self.quarantined = quarantine.list_ids(self._storage) | self._suspects
            listed = {found.name for found in self._storage.list_objects(FOLDER)}
            # Of what `final` names, no listing is asked: an old one must not hide it.
            names = sorted(listed | self.view.index)
            self.damaged.clear()
            counted = [name for name in names if self._counts(name)]
            for name in set(self._by_name) - set(counted):
                del self._by_name[name]
            for name in counted:
                if name not in self._by_name:
                    self._open(name)
            self._counted = tuple(self._by_name.values())
            self._bad = _flag_packs(self._counted, self.quarantined)
            self._refused = _flag_packs(self._counted, self.quarantined | self.view.condemned)

    def find_known(self, ids: Sequence[bytes]) -> _Flags:
        """Return for each id whether a new backup may refer to it: it lies in a sound pack."""
        return self._look_up(ids, self._refused)

    def find_held(self, ids: Sequence[bytes]) -> _Flags:
        """Return for each id whether a segment has it, in whatever pack."""
        return self._look_up(ids, {})

    def list_lost(self) -> frozenset[bytes]:
        """Return the ids of all chunks and nodes that lie in bad packs and in no sound one.

        Of many bad packs with whole blobs it may be much: 100 bytes for each.
        """
        held = [
            segment.table.ids.take(np.flatnonzero(self._bad[segment.name][places[:, 0]]))
            for segment in self._counted
            if segment.name in self._bad
            for places in (segment.table.places,)
        ]
        suspects = b"".join(ids.to_bytes() for ids in held)
        ids = [suspects[at : at + ID_LENGTH] for at in range(0, len(suspects), ID_LENGTH)]
        sound = self._look_up(ids, self._bad)
        return frozenset(one for one, is_sound in zip(ids, sound, strict=True) if not is_sound)

    def _look_up(self, ids: Sequence[bytes], refused: dict[str, _Flags]) -> _Flags:
        known = np.zeros(len(ids), dtype=bool)
        if not ids:
            return known
        wanted = Ids.of(ids)
        for segment in self._counted:
            known |= _held(segment, segment.find(wanted), refused)
        return known

    def locate(self, ids: Sequence[bytes], *, refresh: bool = True) -> list[Place]:
        """Return where blobs lie. Raises Corrupt (kind `chunk-missing`) where one is nowhere."""
        places = self.find(ids)
        if refresh and None in places:
            self.refresh()  # a collector may have moved them, or another process committed them
            places = self.find(ids)
        found = [place for place in places if place is not None]
        if len(found) != len(places):
            hint = "damaged segments: " + (", ".join(self.damaged) or "none")
            raise nowhere(ids[places.index(None)], hint=hint)
        return found

    def find(self, ids: Sequence[bytes]) -> list[Place | None]:
        """Return where blobs lie, None for those that no segment has.

        Of several places one in a pack that nobody found bad is returned, where there is one.
        """
        places: list[Place | None] = [None] * len(ids)
        if not ids:
            return places
        wanted = Ids.of(ids)
        pending = np.arange(len(ids))
        for refused in (self._bad, {}) if self._bad else ({},):
            for segment in self._counted:
                if not len(pending):
                    return places
                found = segment.find(wanted.take(pending))
                held = _held(segment, found, refused)
                for position in np.flatnonzero(held):
                    places[int(pending[position])] = segment.place(int(found[position]))
                pending = pending[~held]
        return places

    def find_all(self, blob_id: bytes) -> list[Place]:
        """Return all places of a blob, those in packs that nobody found bad first."""
        wanted = Ids.of([blob_id])
        found = [
            segment.place(int(at))
            for segment in self._counted
            if (at := segment.find(wanted)[0]) >= 0
        ]
        return sorted(found, key=lambda one: one.pack.id in self.quarantined)

    def read_anywhere(self, blob_id: bytes, read: Callable[[Place], T]) -> T:
        """Return what `read` makes of the first of a blob's places that it can read.

        Where a pack is gone a collector may have moved the blob; then the index is looked at again,
        for as long as that shows new places. Raises the Corrupt that was met first, and what is no
        Corrupt and no NotFound at once.
        """
        tried: set[Place] = set()
        first: Corrupt | None = None
        for _ in range(LOOKS_MAX):
            is_gone = False
            for place in self.find_all(blob_id):
                if place in tried:
                    continue
                tried.add(place)
                try:
                    return read(place)
                except NotFound:
                    is_gone, first = True, first or pack.missing(place.pack)
                except Corrupt as error:
                    first = first or error
            if not is_gone:
                break
            self.refresh()
        raise first or nowhere(blob_id)

    def __len__(self) -> int:
        return sum(len(segment) for segment in self._counted)

    @property
    def counted(self) -> tuple[Segment, ...]:
        """The segments that count."""
        return self._counted

    def list_expected(self, manifests: Iterable[Manifest]) -> set[str]:
        """Return the segments that should be there: by `final`, and by backups made since."""
        since = [one for one in manifests if not self.view.is_settled(one.object_id)]
        return set(self.view.index).union(*(one.segments for one in since))

    def _counts(self, name: str) -> bool:
        if name in self.view.index:
            return True
        if is_collectors(name):
            # Without a `final` to name them, all of them together may be what readers need.
            return bool(self.view.damaged)
        try:
            made = self._manifest_of(session_of(name))
        except Corrupt as error:
            self.damaged[name] = error  # without its outcome nobody can say whether it counts
            return False
        return (
            made is not None and name in made.segments and not self.view.is_settled(made.object_id)
        )

    def _manifest_of(self, session_id: str) -> Manifest | None:
        """Return what a session committed, which never changes, or None."""
        if session_id not in self._committed:
            try:
                outcome = session.find_outcome(self._storage, session_id)
            except Invalid:
                return None  # a stranger's file, which no session of ours can have named
            if outcome is None or outcome.manifest is None:
                return None
            self._committed[session_id] = outcome.manifest
        return self._committed[session_id]

    def _open(self, name: str) -> None:
        try:
            self._by_name[name] = open_segment(self._storage, name)
        except NotFound:
            return  # deleted since the listing
        except Corrupt as error:
            self.damaged[name] = error


def nowhere(blob_id: bytes, *, hint: str = "") -> Corrupt:
    """Return the error for a blob that no segment knows."""
    return Corrupt(
        f"no index segment says where {blob_id.hex()} lies",
        hint=hint,
        kind="chunk-missing",
        chunk_id=blob_id.hex(),
    )
