"""Packs that were found bad: `quarantine/<pack id>`, until the pack goes.

Nothing new refers to what lies in one, so the next backup stores it again; where a chunk lies in
another pack besides, that one is read. The name alone counts: whoever could put one without a key
would only make backups store more.
"""

import contextlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sendense.core.errors import Exists, NotFound
from sendense.repository import format, record
from sendense.repository.chunk import ID_LENGTH
from sendense.repository.format import Frame
from sendense.repository.keyed import KeyedStorage
from sendense.repository.pack import PackRef

FOLDER = "quarantine/"
WHY_LENGTH_MAX = 500


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A pack that was found bad."""

    pack: str
    at: datetime
    why: str


def name_of(pack_id: bytes) -> str:
    """Return the name of a pack's mark."""
    return f"{FOLDER}{pack_id.hex()}"


def put(storage: KeyedStorage, ref: PackRef, *, at: datetime, why: str) -> None:
    """Mark a pack as bad, durably. Nothing is changed where it is so already."""
    made = Quarantined(ref.name, at, why[:WHY_LENGTH_MAX])
    with contextlib.suppress(Exists):
        format.put_frame(storage, Frame.QUARANTINED, name_of(ref.id), record.dump(made))


def get(storage: KeyedStorage, pack_id: bytes) -> Quarantined:
    """Return what is known of a bad pack. Raises NotFound or Corrupt."""
    name = name_of(pack_id)
    body = format.get_frame(storage, Frame.QUARANTINED, name)
    return record.load(Quarantined, body, name=name)


def list_ids(storage: KeyedStorage) -> frozenset[bytes]:
    """Return the ids of all packs that were found bad."""
    return frozenset(
        pack_id
        for stored in storage.list_objects(FOLDER)
        if (pack_id := _parse(stored.name.removeprefix(FOLDER))) is not None
    )


def forget(storage: KeyedStorage, packs: Collection[bytes]) -> None:
    """Remove the marks of packs that are gone, or well again; without a mark nothing is done."""
    for pack_id in list_ids(storage) & frozenset(packs):
        with contextlib.suppress(NotFound):
            storage.delete(name_of(pack_id))


def _parse(text: str) -> bytes | None:
    try:
        pack_id = bytes.fromhex(text)
    except ValueError:
        return None
    return pack_id if len(pack_id) == ID_LENGTH else None
