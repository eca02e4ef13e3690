"""Decides how a disk is read: all of it, or what changed. Pure: no I/O, no clock.

It is decided twice by the same function: before the snapshot (is there a base worth asking the
platform for?) and after it (did the platform keep the base?). Whenever the chain's identity does
not match, everything is read and deduplicated: cheap to store, never wrong, and the reason is told.
"""

from dataclasses import dataclass
from enum import StrEnum

from sendense.connectors.base import DiskSnapshot, Tracking
from sendense.core import units
from sendense.repository.manifest import Mode

__all__ = [
    "INCREMENTAL",
    "Decision",
    "Mode",
    "Parent",
    "Reason",
    "Wish",
    "decide_mode",
    "lost_tracking",
    "sample_differed",
]


class Wish(StrEnum):
    """What the user asked for."""

    FULL = "full"
    INCREMENTAL = "incremental"  # preferred, never forced: a full read is always right
    AUTO = "auto"


class Reason(StrEnum):
    """Why a disk is read in full; stable words for programs."""

    REQUESTED = "full-requested"
    FIRST_BACKUP = "first-backup"
    NO_TRACKING = "no-change-tracking"
    PARENT_DELETED = "parent-deleted"
    PARENT_DAMAGED = "parent-damaged"
    PARENT_WITHOUT_CHANGE_ID = "parent-without-change-id"
    CHAIN_SUSPECT = "chain-suspect"
    CHUNK_SIZE_CHANGED = "chunk-size-changed"
    DISK_REPLACED = "disk-replaced"
    DISK_GROWN = "disk-grown"
    DISK_SHRUNK = "disk-shrunk"
    TRACKING_LOST = "tracking-lost"
    SAMPLE_DIFFERED = "sample-differed"


@dataclass(frozen=True, slots=True)
class Decision:
    """How to read a disk, and for a full read why.

    Attributes:
        code: None for an incremental.
        reason: the same for people, in lower case without a full stop; "" for an incremental.
    """

    mode: Mode
    code: Reason | None = None
    reason: str = ""

    @property
    def is_fallback(self) -> bool:
        """Whether an incremental could have been expected: the user should see the reason."""
        return self.code not in {None, Reason.REQUESTED, Reason.FIRST_BACKUP}

    @property
    def suspect_reason(self) -> str | None:
        """Why the chain must not be trusted any more: change tracking was caught lying."""
        return self.reason if self.code is Reason.SAMPLE_DIFFERED else None


INCREMENTAL = Decision(Mode.INCREMENTAL)


@dataclass(frozen=True, slots=True)
class Parent:
    """The newest backup of this disk in this repository, as its manifest tells.

    Attributes:
        change_id: None where the platform tracked nothing when it was made.
        deleted: it has a tombstone.
        suspect_reason: why its chain is not trusted any more, or None.
    """

    uuid: str
    size_bytes: int
    chunk_size: int
    change_id: str | None
    deleted: bool = False
    suspect_reason: str | None = None


def decide_mode(
    wish: Wish,
    parent: Parent | None,
    *,
    tracking: Tracking,
    chunk_size: int,
    snapshot: DiskSnapshot | None = None,
) -> Decision:
    """Decide how to read a disk; the first reason against an incremental wins.

    Args:
        wish: what the user asked for.
        parent: None where this repository holds no backup of the disk.
        tracking: whether the platform can tell changes of this disk.
        chunk_size: the repository's, for new backups.
        snapshot: the disk in the snapshot, or None before it is taken: then the answer says whether
            to ask the platform for the parent's change id.
    """
    refusal = (
        _refuse_by_wish(wish)
        or _refuse_by_parent(parent, chunk_size=chunk_size)
        or _refuse_by_platform(tracking)
        or _refuse_by_snapshot(parent, snapshot)
    )
    return refusal or INCREMENTAL


def parent_deleted() -> Decision:
    """Return the decision where the parent is gone, perhaps since the backup began."""
    return _full(Reason.PARENT_DELETED, "the parent backup was deleted")


def parent_damaged() -> Decision:
    """Return the decision where what the parent's map needs lies in packs that were found bad."""
    return _full(Reason.PARENT_DAMAGED, "the parent backup is damaged")


def lost_tracking(why: str) -> Decision:
    """Return the decision where the platform could not list changes after all."""
    return _full(Reason.TRACKING_LOST, f"change tracking lost: {why}")


def sample_differed(*, start: int) -> Decision:
    """Return the decision where a chunk differs that the platform called unchanged."""
    return _full(
        Reason.SAMPLE_DIFFERED,
        f"change tracking is wrong: bytes at {start} differ though reported as unchanged",
    )


def _full(code: Reason, reason: str) -> Decision:
    return Decision(Mode.FULL, code, reason)


def _refuse_by_wish(wish: Wish) -> Decision | None:
    return _full(Reason.REQUESTED, "a full read was requested") if wish is Wish.FULL else None


def _refuse_by_parent(parent: Parent | None, *, chunk_size: int) -> Decision | None:
    if parent is None:
        return _full(Reason.FIRST_BACKUP, "first backup of this disk in this repository")
    if parent.deleted:
        return parent_deleted()
    if parent.suspect_reason is not None:
        return _full(Reason.CHAIN_SUSPECT, f"the chain is suspect: {parent.suspect_reason}")
    if parent.chunk_size != chunk_size:
        sizes = f"{units.format_size(parent.chunk_size)} to {units.format_size(chunk_size)}"
        return _full(Reason.CHUNK_SIZE_CHANGED, f"the chunk size changed from {sizes}")
    return None


def _refuse_by_platform(tracking: Tracking) -> Decision | None:
    if tracking is Tracking.UNSUPPORTED:
        return _full(Reason.NO_TRACKING, "the source has no change tracking for this disk")
    return None


def _refuse_by_snapshot(parent: Parent | None, snapshot: DiskSnapshot | None) -> Decision | None:
    assert parent is not None, "refused before by its absence"
    if parent.change_id is None:
        return _full(
            Reason.PARENT_WITHOUT_CHANGE_ID, "nothing was tracked when the parent backup was made"
        )
    if snapshot is None:
        return None
    if snapshot.uuid != parent.uuid:
        return _full(
            Reason.DISK_REPLACED, f"the disk was replaced: {snapshot.uuid} is not {parent.uuid}"
        )
    if snapshot.size_bytes != parent.size_bytes:
        grown = snapshot.size_bytes > parent.size_bytes
        return _full(
            Reason.DISK_GROWN if grown else Reason.DISK_SHRUNK,
            f"the disk {'grew' if grown else 'shrank'} from "
            f"{parent.size_bytes} to {snapshot.size_bytes} bytes",
        )
    if snapshot.base_lost_reason is not None:
        return lost_tracking(snapshot.base_lost_reason)
    return None
