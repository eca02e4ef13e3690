"""What is garbage: pure decisions over the catalog, the marks and the listing of packs."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime

from sendense.core import clock, units
from sendense.core.errors import Conflict
from sendense.repository.gc import records
from sendense.repository.gc.catalog import Catalog, Flags
from sendense.repository.pack import Kind, PackRef


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a generation may do.

    Attributes:
        sparse_share: a pack of which less than this is live is rewritten; 0 for never.
        rewrite_bytes: live bytes copied at most.
        condemn_share: of all packs' bytes; a run that would condemn more asks first.
        condemn_bytes: below this, no share is asked about.
    """

    sparse_share: float = 0.3
    rewrite_bytes: int = 4 * units.GIB
    condemn_share: float = 0.5
    condemn_bytes: int = units.GIB


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of packs.

    Attributes:
        dead: without a live blob, and orphans. sparse: to be rewritten, `live_bytes` of them.
        total_bytes: of all packs.
        locked_bytes: of packs that stay only because they are locked; None of them before
            `locked_until`.
    """

    dead: tuple[PackRef, ...]
    sparse: tuple[PackRef, ...]
    live_bytes: int
    total_bytes: int
    locked_bytes: int = 0
    locked_until: datetime | None = None

    @property
    def reclaimable_after(self) -> str | None:
        """When the first of the locked bytes can be freed, or None."""
        return clock.format_utc(self.locked_until) if self.locked_until else None

    @property
    def dead_bytes(self) -> int:
        """Bytes of the dead packs."""
        return sum(ref.size for ref in self.dead)

    @property
    def freed_bytes(self) -> int:
        """Bytes that come free in the end."""
        return self.dead_bytes + sum(ref.size for ref in self.sparse) - self.live_bytes


def decide(
    catalog: Catalog,
    live: Flags,
    listed: Iterable[PackRef],
    *,
    orphans: Collection[PackRef],
    stay: Collection[bytes],
    limits: Limits,
) -> Verdict:
    """Return what to condemn; at most `PACKS_MAX` packs, those that free most for least first.

    Packs that `stay` are neither deleted nor copied from.
    """
    listed = list(listed)
    there = {ref.id for ref in listed}
    used = catalog.live_bytes(live)
    dead = [ref for ref, count in zip(catalog.packs, used, strict=True) if not count]
    # What is not there any more needs no condemning, and is never concluded from.
    dead = [ref for ref in dead if ref.id in there and ref.id not in stay]
    dead = sorted([*dead, *orphans], key=lambda ref: ref.id)[: records.PACKS_MAX]
    sparse: list[PackRef] = []
    copied = 0
    candidates = [
        (int(count), ref)
        for ref, count in zip(catalog.packs, used, strict=True)
        if 0 < count < limits.sparse_share * ref.size and ref.id not in stay
    ]
    for count, ref in sorted(candidates, key=lambda one: (one[0] / one[1].size, one[1].id)):
        if copied + count > limits.rewrite_bytes or len(dead) + len(sparse) >= records.PACKS_MAX:
            break
        sparse.append(ref)
        copied += count
    return Verdict(tuple(dead), tuple(sparse), copied, sum(ref.size for ref in listed))


def require_share(verdict: Verdict, limits: Limits) -> None:
    """Raise Conflict (kind `gc-share-exceeded`) where more would go than is usual."""
    if verdict.dead_bytes <= max(
        limits.condemn_bytes, int(limits.condemn_share * verdict.total_bytes)
    ):
        return
    raise Conflict(
        f"{units.format_size(verdict.dead_bytes)} of {units.format_size(verdict.total_bytes)} "
        "would be deleted, which is more than a run may without being told to",
        hint="look at what a preview lists; if so many backups were deleted on purpose, confirm",
        kind="gc-share-exceeded",
        dead_bytes=verdict.dead_bytes,
        total_bytes=verdict.total_bytes,
    )


def join_ids(refs: Iterable[PackRef], kind: Kind) -> bytes:
    """Return the ids of the packs of a kind as a record holds them."""
    return records.join(ref.id for ref in refs if ref.kind is kind)
