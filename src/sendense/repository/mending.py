"""Rebuilds index segments that are damaged or gone from the packs, which describe themselves.

A pack's header names its session and its directory the blobs, so a segment holds nothing that the
packs of its session do not. What is rebuilt may say more than what was lost, never less: where one
of these packs cannot be read, nothing is replaced.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator

from sendense.core.errors import Corrupt, Exists, NotFound
from sendense.repository import format, index, pack, session
from sendense.repository.gc import records
from sendense.repository.keyed import KeyedStorage
from sendense.repository.pack import Kind, PackRef
from sendense.repository.segments import Segments, is_collectors, open_segment, session_of

_log = logging.getLogger(__name__)


def mend_index(
    storage: KeyedStorage, segments: Segments, list_expected: Callable[[], set[str]]
) -> list[str]:
    """Rebuild what is missing of the segments that should be there, or damaged; return their names.

    Reads the header of every pack where there is something to rebuild, otherwise nothing. Safe
    beside others who do the same. Raises Corrupt (kind `index-corrupt`) where a pack is damaged
    too, and whatever the storage raises for a write.
    """
    if segments.view.damaged:
        return []  # nobody knows what should be there
    if not _list_missing(segments, list_expected):
        return []
    segments.refresh()  # a collector may have put others in their place
    missing = _list_missing(segments, list_expected)
    lost = [name for name in missing if not _is_whole(storage, name)]
    if not lost:
        return []
    by_session: dict[str, list[PackRef]] = {session_of(name): [] for name in lost}
    collectors = [name for name in lost if is_collectors(name)]
    known = {ref.id for segment in segments.counted for ref in segment.packs()}
    known |= segments.view.condemned  # what goes must not come back
    for session_id, ref in list_packs(storage):
        if ref.id in known:
            continue
        if session_id in by_session:
            by_session[session_id].append(ref)
        elif collectors and _is_over(storage, session_id):
            # A collector's segment holds what those of many sessions held before.
            by_session[session_of(collectors[0])].append(ref)
    for name in lost:
        # The first segment of a session gets all that its packs hold, the others nothing.
        data = _build(storage, session_of(name), by_session[session_of(name)], name=name)
        by_session[session_of(name)] = []
        with contextlib.suppress(NotFound):
            storage.delete(name)
        with contextlib.suppress(Exists):  # somebody else rebuilds it too
            storage.put_if_absent(name, data)
        _log.warning("index segment %s was lost and is rebuilt from its packs", name)
    segments.refresh()
    return lost


def list_packs(storage: KeyedStorage) -> Iterator[tuple[str, PackRef]]:
    """Yield all packs with the sessions that wrote them; those without a header are nobody's."""
    for kind in Kind:
        for found in storage.list_objects(kind.folder + "/"):
            try:
                head = storage.get_range(found.name, 0, pack.HEADER.size)
                header = pack.parse_header(head, keys=storage.keys, name=found.name)
                pack_id = bytes.fromhex(found.name.rpartition("/")[2])
            except (Corrupt, NotFound, ValueError):
                continue
            yield header.session_id, PackRef(pack_id, kind, found.size, header.wrapped)


def _list_missing(segments: Segments, list_expected: Callable[[], set[str]]) -> list[str]:
    return sorted(list_expected() - {segment.name for segment in segments.counted})


def _is_whole(storage: KeyedStorage, name: str) -> bool:
    """Return whether a segment is there after all: a listing may be old."""
    try:
        open_segment(storage, name)
    except (Corrupt, NotFound):
        return False
    return True


def _is_over(storage: KeyedStorage, session_id: str) -> bool:
    """Return whether whoever wrote a pack has ended, and made it count where it should."""
    if records.is_collector(session_id):
        return True
    return session.find_outcome(storage, session_id) is not None


def _build(
    storage: KeyedStorage, session_id: str, refs: list[PackRef], *, name: str
) -> list[bytes]:
    entries = []
    for ordinal, ref in enumerate(refs):
        try:
            entries += [(ordinal, entry) for entry in pack.read_directory(storage, ref)]
        except (Corrupt, NotFound) as error:
            raise format.corrupt(
                name, f"it is lost, and so is what it would be rebuilt from: {error.message}"
            ) from error
    if len(entries) > index.ENTRIES_LIMIT:
        raise format.corrupt(name, f"it is lost, and {len(entries)} entries do not fit one segment")
    table = index.build_table(entries)
    return index.seal_segment(table, refs, session_id=session_id, keys=storage.keys)
