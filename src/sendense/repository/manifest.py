"""Manifests: what a backup is. Enough to rebuild the catalog from the repository alone.

A manifest is the commit record of one backup: small, framed, immutable. Its object's name is random
and tells nothing; every readable id is inside.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from sendense.repository import chunk, format, record

FOLDER = "backups/"
NAME_BYTES = 16


class Mode(StrEnum):
    """How a disk was read. Says nothing about storage: every backup is a full when read back."""

    FULL = "full"
    INCREMENTAL = "incremental"


@dataclass(frozen=True, slots=True)
class VmRecord:
    """The VM that was backed up.

    Attributes:
        source_type, source_name, source_uuid: the platform as registered, and its own identity
            ("" where it has none).
        uuid: identity of the VM within the source; names may repeat and change.
        config: hardware, firmware, annotations …, as JSON values of the connector's choice.
    """

    source_type: str
    source_name: str
    source_uuid: str
    uuid: str
    name: str
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DiskIdentity:
    """A disk about to be written.

    Attributes:
        key, index, label, uuid: as in the connectors' DiskDescription.
        lineage: names the chain whose change tracking the disk's change ids belong to, or "".
    """

    key: int
    index: int
    label: str
    uuid: str
    size_bytes: int
    lineage: str = ""


@dataclass(frozen=True, slots=True)
class DiskTotals:
    """What the engine knows when a disk is read.

    Attributes:
        mode: as it really ran; `mode_reason` says why it is not what was asked for, or "".
        change_id: token for the next incremental, or None where nothing is tracked.
        bytes_read: from the source. bytes_new: plain bytes of chunks that were stored.
        bytes_deduplicated: plain bytes of chunks that were read and need not be stored again.
    """

    mode: Mode
    mode_reason: str = ""
    change_id: str | None = None
    bytes_read: int = 0
    bytes_new: int = 0
    bytes_deduplicated: int = 0


@dataclass(frozen=True, slots=True)
class DiskRecord:
    """One disk in a manifest.

    Attributes:
        root: id of the root of its disk map, or the zero id for a disk of zeros.
        moment: the moment at which it was read.
        parent_backup_id: the backup whose map it was built on or compared with, or None.
        bytes_stored: what its chunks added to the repository, compressed.
    """

    key: int
    index: int
    label: str
    uuid: str
    size_bytes: int
    chunk_size: int
    root: bytes
    moment: str
    lineage: str
    change_id: str | None
    parent_backup_id: str | None
    mode: Mode
    mode_reason: str
    bytes_read: int
    bytes_new: int
    bytes_deduplicated: int
    bytes_stored: int

    @property
    def chunk_count(self) -> int:
        """Number of chunks, the last of which may be short."""
        return -(-self.size_bytes // self.chunk_size)

    def chunk_length(self, index: int) -> int:
        """Return the plain length of a chunk."""
        return min(self.chunk_size, self.size_bytes - index * self.chunk_size)


@dataclass(frozen=True, slots=True)
class SkippedDisk:
    """A disk that the backup leaves out, and why."""

    key: int
    index: int
    label: str
    reason: str


@dataclass(frozen=True, slots=True)
class ManifestDraft:
    """What `commit` needs to know beside the finished disks.

    Attributes:
        disk_keys: the disks the backup must hold; commit refuses while one is unfinished.
        moment: the moment all of them were read at.
        consistency: reached, a connector's word: filesystem, crash or none.
        requested_type: full, incremental or auto, as asked for.
    """

    backup_id: str
    vm: VmRecord
    disk_keys: tuple[int, ...]
    moment: str
    consistency: str
    requested_type: str
    created_at: datetime
    started_at: datetime
    job_id: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    skipped: tuple[SkippedDisk, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A committed backup.

    Attributes:
        object_id: hex; the object is `backups/<object_id>`.
        segments: names of the index segments that came with the backup.
        completed_at: when it was committed; within a VM it rises from backup to backup, even where
            the clock was set back.
        immutable_until: nobody deletes it before, or None.
        more: what a later version says besides, and no reader needs to understand.
    """

    object_id: str
    backup_id: str
    session_id: str
    job_id: str
    vm: VmRecord
    disks: tuple[DiskRecord, ...]
    skipped: tuple[SkippedDisk, ...]
    consistency: str
    requested_type: str
    created_at: datetime
    started_at: datetime
    completed_at: datetime
    tags: Mapping[str, str]
    warnings: tuple[str, ...]
    segments: tuple[str, ...]
    writer_version: str
    immutable_until: datetime | None = None
    more: Mapping[str, Any] = field(default_factory=dict, metadata=record.ABSENT_WHERE_EMPTY)

    @property
    def partial(self) -> bool:
        """Whether a disk of the VM had to be left out."""
        return bool(self.skipped)

    @property
    def name(self) -> str:
        """The object's name."""
        return FOLDER + self.object_id

    def find_disk(self, key: int) -> DiskRecord | None:
        """Return a disk by its key, or None."""
        return next((disk for disk in self.disks if disk.key == key), None)


def to_body(manifest: Manifest) -> bytes:
    """Return the body of a manifest's frame."""
    return record.dump(manifest)


def from_body(body: bytes, *, name: str) -> Manifest:
    """Return the manifest in an opened frame. Raises Corrupt."""
    manifest = record.load(Manifest, body, name=name)
    if manifest.name != name:
        raise format.corrupt(name, f"it is the manifest {manifest.name}")
    for disk in manifest.disks:
        check_disk(disk, name=name)
    return manifest


def check_disk(disk: DiskRecord, *, name: str) -> DiskRecord:
    """Return a disk's record, or raise Corrupt where a reader could not trust its numbers."""
    size = disk.chunk_size
    if (
        not chunk.SIZE_MIN <= size <= chunk.SIZE_MAX
        or size & (size - 1)
        or disk.size_bytes < 1
        or disk.size_bytes >> 63
        or len(disk.root) != chunk.ID_LENGTH
    ):
        raise format.corrupt(name, f"disk {disk.key} has an impossible size or root")
    return disk
