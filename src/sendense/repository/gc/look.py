"""What one look at a repository finds: everything that a decision about garbage rests on."""

from dataclasses import dataclass

import numpy as np

from sendense.repository.gc.catalog import Catalog, Flags
from sendense.repository.gc.survey import Survey
from sendense.repository.index import Segment
from sendense.repository.pack import PackRef


@dataclass(frozen=True, slots=True)
class Look:
    """What a marking found: everything that a decision rests on."""

    survey: Survey
    segments: tuple[Segment, ...]  # that count, and those of copies
    expected: frozenset[str]  # names of segments that `final` or the backups found speak for
    whole: Catalog
    live: Flags
    packs: tuple[PackRef, ...]  # as listed
    over: frozenset[bytes]  # digests of the sessions that had ended before the index was read
    kept: frozenset[bytes]  # packs that checkpoints of open sessions name
    bad: frozenset[bytes]  # packs in quarantine: of doubles, theirs are never the ones that count

    def needed(self) -> set[bytes]:
        """Return the ids of packs that hold something live, or may come to."""
        used = self.whole.live_bytes(self.live)
        return {self.whole.packs[at].id for at in np.flatnonzero(used)} | self.kept

    def list_needed(self) -> list[PackRef]:
        """Return those packs, as they were listed."""
        needed = self.needed()
        return [ref for ref in self.packs if ref.id in needed]
