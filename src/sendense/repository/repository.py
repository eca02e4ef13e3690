"""A repository: create or open it, write and commit backups, find and read them."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from sendense.core import units
from sendense.core.clock import Clock
from sendense.core.errors import (
    Conflict,
    Corrupt,
    Denied,
    Exists,
    Invalid,
    NoSpace,
    NotFound,
    SendenseError,
)
from sendense.core.ids import IdSource
from sendense.repository import descriptor, format, mending, pack, ranges, record, session
from sendense.repository.backups import Backups, Parent, Tombstone
from sendense.repository.chunk import ZERO_ID
from sendense.repository.commit import Endings
from sendense.repository.descriptor import RepositorySettings
from sendense.repository.format import Frame
from sendense.repository.gc import records
from sendense.repository.gc.state import Collected
from sendense.repository.index import Place
from sendense.repository.keyed import Keyed
from sendense.repository.keys import Keys
from sendense.repository.locking import Locking
from sendense.repository.manifest import (
    DiskIdentity,
    DiskRecord,
    Manifest,
    ManifestDraft,
    Mode,
)
from sendense.repository.reader import DiskReader
from sendense.repository.salvage import Salvage
from sendense.repository.segments import Segments
from sendense.repository.session import Attempt, Outcome, Registration, Role
from sendense.repository.storage.base import Buffer, Capacity, Storage
from sendense.repository.writer import DiskWriter

READER_TOKEN_LENGTH = 16
DISK_SIZE_MAX = 1 << 60  # far above any disk, far below where numbers would overflow


@dataclass(frozen=True, slots=True)
class Reserve:
    """Free space that writers leave alone, so that a full repository can still be tidied.

    Attributes:
        share: of the place's size. bytes_min: at least so much, whatever the size.
    """

    share: float = 0.01
    bytes_min: int = units.GIB

    def of(self, capacity: Capacity) -> int:
        """Return the bytes to leave free."""
        return max(int(capacity.total_bytes * self.share), self.bytes_min)


NO_RESERVE = Reserve(share=0.0, bytes_min=0)


@dataclass(frozen=True, slots=True)
class _Node:
    """A disk map's node, and where it lies."""

    id: bytes
    place: Place


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures of a repository.

    Attributes:
        backup_count: that are not deleted.
        disk_bytes: sizes of all disks in all of them, as if each stood alone.
        stored_bytes: of all objects, what deleted backups still hold included.
        chunk_bytes: plain bytes of the distinct chunks stored.
        capacity: of the place, or None where it has no limit.
    """

    backup_count: int
    disk_bytes: int
    stored_bytes: int
    chunk_bytes: int
    capacity: Capacity | None

    @property
    def dedup_ratio(self) -> float | None:
        """Plain bytes of all backups' disks for each byte stored, or None while there is none."""
        return self.disk_bytes / self.stored_bytes if self.stored_bytes else None


class Repository:
    """An open repository. Safe to use from several threads and processes at once.

    Get one from `create` or `open`; `close` lets go of the storage.
    """

    def __init__(
        self,
        storage: Storage,
        found: descriptor.Descriptor,
        keys: Keys,
        *,
        clock: Clock,
        ids: IdSource,
        reserve: Reserve,
    ) -> None:
        self.storage = Keyed(storage, keys)
        self.descriptor = found
        self.clock = clock
        self.ids = ids
        self.reserve = reserve
        self.collected = Collected(self.storage)
        self.segments = Segments(self.storage, self.collected)
        self.backups = Backups(self.storage, self.collected, clock=clock, ids=ids)
        self.locking = Locking(self.storage, found, clock)
        self.endings = Endings(self.storage, self.backups, self.collected, self.locking, clock, ids)

    @classmethod
    def create(
        cls,
        storage: Storage,
        settings: RepositorySettings,
        *,
        clock: Clock,
        ids: IdSource,
        reserve: Reserve = Reserve(),
    ) -> Self:
        """Make an empty repository and open it; see `descriptor.create` for what it refuses."""
        repository_id = ids.random_bytes(descriptor.ID_BYTES).hex()
        made = descriptor.create(storage, settings, repository_id=repository_id, at=clock.now())
        keys = descriptor.unlock(made, settings.root_key)
        return cls(storage, made, keys, clock=clock, ids=ids, reserve=reserve)

    @classmethod
    def open(
        cls,
        storage: Storage,
        *,
        root_key: bytes | None = None,
        clock: Clock,
        ids: IdSource,
        reserve: Reserve = Reserve(),
    ) -> Self:
        """Open a repository, by its root key where it is encrypted. Writes nothing.

        See `descriptor.get` and `descriptor.unlock` for what it refuses.
        """
        found = descriptor.get(storage)
        keys = descriptor.unlock(found, root_key)
        opened = cls(storage, found, keys, clock=clock, ids=ids, reserve=reserve)
        opened.segments.refresh()
        return opened

    @property
    def id(self) -> str:
        """The repository's own random id."""
        return self.descriptor.id

    @property
    def chunk_size(self) -> int:
        """Chunk size of disks read in full."""
        return self.descriptor.chunk_size

    @property
    def compression_level(self) -> int:
        """Level for `chunk.encode`."""
        return self.descriptor.compression_level

    def identify(self, data: Buffer) -> bytes:
        """Return the id that a chunk of these plain bytes has here."""
        return self.storage.keys.identify(data)

    # Backups.

    def list_backups(self) -> list[Manifest]:
        """Return all backups, oldest first. Raises Corrupt where a manifest is damaged."""
        return self.backups.list_all()

    def get_backup(self, backup_id: str) -> Manifest:
        """Return a backup. Raises NotFound (kind `backup-unknown`), also for a deleted one."""
        return self.backups.get(backup_id)

    def find_latest(
        self, *, source_uuid: str, vm_uuid: str, disk_key: int, disk_uuid: str | None = None
    ) -> Parent | None:
        """Return the newest backup that holds a disk, or None: the parent of the next."""
        return self.backups.find_latest(
            source_uuid=source_uuid, vm_uuid=vm_uuid, disk_key=disk_key, disk_uuid=disk_uuid
        )

    def delete_backup(self, backup_id: str, *, who: str, why: str) -> Tombstone:
        """Delete a backup logically; others stay restorable. Raises NotFound."""
        descriptor.require_writable(self.descriptor)
        return self.backups.delete(backup_id, who=who, why=why)

    # Writing.

    def begin_session(self, session_id: str, *, parents: Sequence[str] = ()) -> None:
        """Register a writer and the backups it builds on. Idempotent.

        Raises NoSpace where the repository is full, Conflict where a parent is deleted (kind
        `parent-deleted`; begin again without it and read in full) or where the session has ended
        (`session-ended`), Invalid for an impossible id.
        """
        descriptor.require_writable(self.descriptor)
        self.require_room(0)
        self.endings.settle_all()
        outcome = session.find_outcome(self.storage, session_id)
        if outcome is not None:
            raise Conflict(
                f"session {session_id} has ended: {outcome.state}",
                kind="session-ended",
                session_id=session_id,
                state=str(outcome.state),
            )
        self._register(session_id, Role.WRITER, parents)
        # Only after registering: a collector that condemned something before is heeded, and one
        # that does it later sees the session, spares its parents and waits for its end.
        self._refresh_index()
        self.segments.view.require_whole()
        for backup_id in parents:
            self._get_parent(backup_id)

    def open_disk_writer(
        self,
        session_id: str,
        disk: DiskIdentity,
        *,
        moment: str,
        mode: Mode = Mode.FULL,
        parent_backup_id: str | None = None,
    ) -> DiskWriter:
        """Open a disk for writing, going on from this attempt's checkpoints.

        Args:
            session_id: a session that was begun.
            disk: what is written; its size may be larger than the parent's, not smaller.
            moment: identity of the snapshot; checkpoints of another moment are not used.
            mode: INCREMENTAL keeps the parent's chunks where nothing is put; FULL compares only.
            parent_backup_id: the backup whose map of the disk to build on or compare with.

        Raises Conflict (kind `parent-deleted`), Invalid where the parent does not fit, Corrupt
        (kind `index-corrupt`) where a segment is damaged, and NoSpace.
        """
        descriptor.require_writable(self.descriptor)
        self.require_room(0)
        if not 0 < disk.size_bytes <= DISK_SIZE_MAX:
            raise Invalid(f"disk {disk.key} has {disk.size_bytes} bytes", kind="disk-size-invalid")
        self.segments.refresh()
        self.segments.view.require_whole()
        if self.segments.damaged:
            raise next(iter(self.segments.damaged.values()))
        parent = (
            self._get_parent(parent_backup_id).find_disk(disk.key) if parent_backup_id else None
        )
        chunk_size = self.chunk_size
        if mode is Mode.INCREMENTAL:
            parent = _check_parent(disk, parent)
            chunk_size = parent.chunk_size
        attempt = Attempt(
            disk,
            chunk_size,
            moment,
            mode,
            parent_backup_id if parent else None,
            parent.root if parent else ZERO_ID,
        )
        return DiskWriter(self, session_id, attempt, parent)

    def find_finished_disk(self, session_id: str, key: int, *, moment: str) -> DiskRecord | None:
        """Return the record of a disk that this session has finished at the moment, or None."""
        done = session.find_done(self.storage, session_id, key, moment)
        return done.disk if done else None

    def commit(self, session_id: str, draft: ManifestDraft) -> Manifest:
        """Make the backup exist; see `Endings.commit`."""
        descriptor.require_writable(self.descriptor)
        made = self.endings.commit(session_id, draft)
        self.segments.refresh()
        return made

    def abort(self, session_id: str, reason: str) -> Outcome:
        """End a session without a backup, or find that it was committed."""
        return self.endings.abort(session_id, reason)

    def find_outcome(self, session_id: str) -> Outcome | None:
        """Return how a session ended, or None while it has not."""
        return session.find_outcome(self.storage, session_id)

    def settle_sessions(self) -> int:
        """Complete sessions that were decided before a crash; return how many."""
        return self.endings.settle_all()

    # Reading.

    def open_disk_reader(
        self, backup_id: str, disk_key: int, *, salvage: Salvage | None = None
    ) -> DiskReader:
        """Open a disk of a backup for reading, as a registered reader where that can be written.

        What cannot be read raises Corrupt, or is zeros and told to `salvage`.

        Raises NotFound for an unknown or deleted backup (kind `backup-unknown`) or a disk that it
        does not hold (`disk-unknown`).
        """
        session_id = f"reader-{self.ids.token(READER_TOKEN_LENGTH)}"
        name = self._register_reader(session_id, backup_id)
        try:
            disk = self._get_disk(backup_id, disk_key)
            self._refresh_index()
        except BaseException:
            self._end_reader(name)
            raise
        return DiskReader(
            disk,
            storage=self.storage,
            segments=self.segments,
            load_node=self.get_node,
            salvage=salvage,
            on_close=lambda: self._end_reader(name),
        )

    def get_node(self, node_id: bytes) -> bytes:
        """Return the plain bytes of a disk map's node. Raises Corrupt."""
        try:
            return self._read_node(node_id, self.segments.locate([node_id])[0])
        except (Corrupt, NotFound):
            self.segments.refresh()  # a collector may have moved it since the index was read
        return self.segments.read_anywhere(node_id, lambda place: self._read_node(node_id, place))

    def get_nodes(self, ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the bytes of those of some nodes that one look reads, by id; see `get_node`."""
        found: dict[bytes, bytes] = {}
        nodes = zip(ids, self.segments.find(ids), strict=True)
        # Where it cannot be read there may be a gap between the nodes, or one that nobody needs.
        with contextlib.suppress(SendenseError):
            for together in ranges.group(_Node(one, place) for one, place in nodes if place):
                for one, blob in ranges.read(self.storage, together):
                    with contextlib.suppress(Corrupt):
                        found[one.id] = self._open_node(one, blob)
        return found

    # The place.

    def require_room(self, size: int) -> None:
        """Raise NoSpace (kind `repository-full`) where `size` bytes would touch the reserve."""
        capacity = self.storage.capacity()
        if capacity is None:
            return
        reserve = self.reserve.of(capacity)
        if capacity.free_bytes - size < reserve:
            raise NoSpace(
                f"the repository is full: {units.format_size(capacity.free_bytes)} are free and "
                f"{units.format_size(reserve)} are kept in reserve",
                hint="free space where the repository lies, or make it larger",
                kind="repository-full",
                free_bytes=capacity.free_bytes,
                reserve_bytes=reserve,
            )

    def capacity(self) -> Capacity | None:
        """Return size and free space of the place, or None where it has no limit."""
        return self.storage.capacity()

    def stats(self) -> Stats:
        """Count what the repository holds. Lists every object: seconds where there are many."""
        self.segments.refresh()
        backups = self.list_backups()
        chunk_bytes = sum(segment.chunk_bytes() for segment in self.segments.counted)
        return Stats(
            backup_count=len(backups),
            disk_bytes=sum(disk.size_bytes for one in backups for disk in one.disks),
            stored_bytes=self.storage_bytes(),
            chunk_bytes=chunk_bytes,
            capacity=self.capacity(),
        )

    def storage_bytes(self) -> int:
        """Return the bytes of all objects together."""
        return sum(found.size for found in self.storage.list_objects())

    def close(self) -> None:
        """Let go of the storage."""
        self.storage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # Inside.

    def _read_node(self, node_id: bytes, place: Place) -> bytes:
        ((node, blob),) = ranges.read(self.storage, [_Node(node_id, place)])
        return self._open_node(node, blob)

    def _open_node(self, node: _Node, blob: memoryview) -> bytes:
        place = node.place
        return pack.open_blob(self.storage.keys, place.pack, place.offset, blob, node.id)

    def _refresh_index(self) -> None:
        """Read the index, and rebuild what of it is lost, where that can be done."""
        self.segments.refresh()
        # A place that cannot be written, or packs that are gone too: who needs these finds out.
        # Nor may it be written with a feature that is not known here.
        with contextlib.suppress(Corrupt, Denied, Invalid, NoSpace):
            self.mend_index()

    def mend_index(self) -> list[str]:
        """Rebuild what of the index is lost; see `mending.mend_index`. Raises Invalid too."""
        descriptor.require_writable(self.descriptor)
        manifests, _ = self.backups.list_manifests()
        return mending.mend_index(
            self.storage, self.segments, lambda: self.segments.list_expected(manifests)
        )

    def _get_disk(self, backup_id: str, disk_key: int) -> DiskRecord:
        disk = self.get_backup(backup_id).find_disk(disk_key)
        if disk is None:
            raise NotFound(
                f"backup {backup_id} holds no disk {disk_key}",
                kind="disk-unknown",
                backup_id=backup_id,
                disk_key=disk_key,
            )
        return disk

    def _get_parent(self, backup_id: str) -> Manifest:
        try:
            return self.get_backup(backup_id)
        except NotFound:
            raise Conflict(
                f"backup {backup_id} cannot be built upon, since it is deleted",
                hint="the disk has to be read in full",
                kind="parent-deleted",
                backup_id=backup_id,
            ) from None

    def _register(self, session_id: str, role: Role, backups: Sequence[str]) -> str:
        format.check_session_id(session_id)
        if records.is_collector(session_id):
            raise Invalid(
                f"{session_id!r} is kept for garbage collection",
                kind="session-id-invalid",
                session_id=session_id,
            )
        made = Registration(session_id, role, tuple(backups), self.clock.now())
        name = session.registration_name(self.storage.keys, made)
        with contextlib.suppress(Exists):  # the same process, or one before it, has registered
            format.put_frame(self.storage, Frame.REGISTRATION, name, record.dump(made))
        return name

    def _register_reader(self, session_id: str, backup_id: str) -> str | None:
        """Register a reader; without, where the place is read-only or full: nothing collects there.

        Reading must work from a write-protected copy of a repository.
        """
        try:
            return self._register(session_id, Role.READER, [backup_id])
        except (Denied, NoSpace):
            return None

    def _end_reader(self, name: str | None) -> None:
        if name is not None:
            with contextlib.suppress(NotFound, Denied):
                self.storage.delete(name)


def _check_parent(disk: DiskIdentity, parent: DiskRecord | None) -> DiskRecord:
    """Return the parent of an incremental, or raise Invalid where it cannot be one."""
    if parent is None:
        raise Invalid(
            f"an incremental of disk {disk.key} needs a parent that holds the disk",
            kind="parent-unfit",
        )
    if parent.uuid != disk.uuid or parent.size_bytes > disk.size_bytes:
        raise Invalid(
            f"disk {disk.key} is another or smaller than in the parent, so it is read in full",
            kind="parent-unfit",
        )
    return parent
