"""When each pack was last found well: objects under `health/`, which may be lost at any time.

Each object holds all that its writer knew, so that the newest would do; of several, as two
verifications at once leave them, all count. What is lost is verified again, nothing else.
"""

import contextlib
import struct
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime

from sendense.core.clock import Clock
from sendense.core.errors import Corrupt, NotFound
from sendense.core.ids import IdSource
from sendense.repository import format, record
from sendense.repository.chunk import ID_LENGTH
from sendense.repository.format import Frame
from sendense.repository.keyed import KeyedStorage

FOLDER = "health/"
TOKEN_LENGTH = 8
ENTRY = struct.Struct("<32sII")  # pack, and seconds since 1970 at which V1 and V2 held, 0 for never
ENTRIES_MAX = 200_000  # 6 TB in packs of 32 MiB, 16 MB of text. Of more the oldest go


@dataclass(frozen=True, slots=True)
class Health:
    """An object's record; `packs` are entries one behind the other."""

    at: datetime
    packs: bytes


@dataclass(frozen=True, slots=True)
class Proof:
    """When a pack was found well, in seconds since 1970; 0 for never.

    Attributes:
        stored: its stored bytes hashed to its name (V1). decoded: its blobs to their ids (V2).
    """

    stored: int = 0
    decoded: int = 0

    def merge(self, other: "Proof") -> "Proof":
        """Return what both know."""
        return Proof(max(self.stored, other.stored), max(self.decoded, other.decoded))


NEVER = Proof()


class HealthRecord:
    """What is known of packs, as read once and then added to."""

    def __init__(self, storage: KeyedStorage) -> None:
        self._storage = storage
        self._names: list[str] = []  # of the objects that the next one replaces
        self._proofs: dict[bytes, Proof] = {}

    def load(self) -> None:
        """Read what earlier runs have left; damaged objects are passed over."""
        for stored in self._storage.list_objects(FOLDER):
            with contextlib.suppress(NotFound):
                try:
                    body = format.get_frame(self._storage, Frame.HEALTH, stored.name)
                    found = record.load(Health, body, name=stored.name)
                    self._merge(found.packs)
                except (Corrupt, struct.error):
                    pass
                self._names.append(stored.name)

    def get(self, pack_id: bytes) -> Proof:
        """Return what is known of a pack."""
        return self._proofs.get(pack_id, NEVER)

    def note(self, pack_id: bytes, *, decoded: bool, at: datetime) -> None:
        """Take note that a pack is well."""
        seconds = int(at.timestamp())
        self._add(pack_id, Proof(seconds, seconds if decoded else 0))

    def forget(self, pack_id: bytes) -> None:
        """Take note that a pack is not well."""
        self._proofs.pop(pack_id, None)

    def keep(self, packs: Collection[bytes]) -> None:
        """Forget all packs but these: the others are gone."""
        self._proofs = {key: proof for key, proof in self._proofs.items() if key in packs}

    def save(self, clock: Clock, ids: IdSource) -> None:
        """Store all that is known, and remove what it replaces."""
        newest = sorted(self._proofs.items(), key=lambda one: -one[1].stored)[:ENTRIES_MAX]
        packed = b"".join(ENTRY.pack(key, one.stored, one.decoded) for key, one in newest)
        now = clock.now()
        name = f"{FOLDER}{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{ids.token(TOKEN_LENGTH)}"
        body = record.dump(Health(now, packed))
        format.put_frame(self._storage, Frame.HEALTH, name, body)
        for old in self._names:
            with contextlib.suppress(NotFound):
                self._storage.delete(old)
        self._names = [name]

    def _merge(self, packed: bytes) -> None:
        for pack_id, stored, decoded in ENTRY.iter_unpack(packed):
            self._add(pack_id, Proof(stored, decoded))

    def _add(self, pack_id: bytes, proof: Proof) -> None:
        self._proofs[pack_id] = self._proofs.get(pack_id, NEVER).merge(proof)


assert ENTRY.size == ID_LENGTH + 8
