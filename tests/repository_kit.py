"""Small backups for tests of the repository: no engine, no NBD, only bytes in and bytes out."""

from collections.abc import Collection
from dataclasses import dataclass, field

from sendense.core.clock import ManualClock
from sendense.core.ids import SeededIds
from sendense.repository import chunk
from sendense.repository.descriptor import RepositorySettings
from sendense.repository.keyed import Keyed
from sendense.repository.keys import DomainKeys
from sendense.repository.manifest import (
    DiskIdentity,
    DiskRecord,
    DiskTotals,
    Manifest,
    ManifestDraft,
    Mode,
    VmRecord,
)
from sendense.repository.repository import NO_RESERVE, Repository, Reserve
from sendense.repository.storage.base import Storage
from sendense.repository.storage.locks import LockMode

CHUNK = chunk.SIZE_MIN
KEY = 2000
ROOT = bytes(range(32))
KEYS = DomainKeys(ROOT)
VM = VmRecord("image", "lab", "source-1", "vm-1", "web", {"cpus": 2, "name": "wéb"})


@dataclass
class Kit:
    """An encrypted repository on a storage, and the shortest ways to write and read it."""

    storage: Storage
    seed: int = 1
    reserve: Reserve = NO_RESERVE
    clock: ManualClock = field(default_factory=ManualClock)
    root_key: bytes | None = ROOT
    immutable_days: int = 0
    lock_mode: LockMode | None = None

    def create(self) -> Repository:
        return Repository.create(
            self.storage,
            RepositorySettings(
                chunk_size=CHUNK,
                root_key=self.root_key,
                immutable_days=self.immutable_days,
                lock_mode=self.lock_mode,
            ),
            clock=self.clock,
            ids=SeededIds(self.seed),
            reserve=self.reserve,
        )

    def open(self, *, seed: int = 2) -> Repository:
        """Open as another process would: with nothing in memory and other random numbers."""
        return Repository.open(
            self.storage,
            root_key=self.root_key,
            clock=self.clock,
            ids=SeededIds(seed),
            reserve=self.reserve,
        )


def keyed(storage: Storage) -> Keyed:
    """Return a storage as an open repository of the kit sees it."""
    return Keyed(storage, KEYS)


def identity(size: int, *, key: int = KEY, uuid: str = "disk-a") -> DiskIdentity:
    return DiskIdentity(key, key - KEY, f"disk {key}", uuid, size)


def draft(
    repository: Repository, backup_id: str, moment: str, keys: Collection[int] = (KEY,)
) -> ManifestDraft:
    now = repository.clock.now()
    return ManifestDraft(
        backup_id=backup_id,
        vm=VM,
        disk_keys=tuple(keys),
        moment=moment,
        consistency="crash",
        requested_type="auto",
        created_at=now,
        started_at=now,
        tags={"test": "yes"},
    )


def write_disk(
    repository: Repository,
    session_id: str,
    data: bytes,
    *,
    moment: str,
    parent: str | None = None,
    changed: Collection[int] | None = None,
    stop: int | None = None,
    key: int = KEY,
) -> DiskRecord | None:
    """Write one disk as the engine does; `changed` makes it an incremental, `stop` gives up."""
    mode = Mode.FULL if changed is None else Mode.INCREMENTAL
    totals = {"read": 0, "new": 0, "known": 0}
    with repository.open_disk_writer(
        session_id, identity(len(data), key=key), moment=moment, mode=mode, parent_backup_id=parent
    ) as writer:
        for index in range(writer.resume_index, writer.chunk_count):
            if stop is not None and index >= stop:
                writer._uploader.drain()  # closing drops what is queued, which is a race to test
                return None
            if changed is not None and index not in changed:
                continue
            plain = data[index * writer.chunk_size : (index + 1) * writer.chunk_size]
            totals["read"] += len(plain)
            if chunk.is_zero(plain):
                writer.put_zero(index)
                continue
            chunk_id = repository.identify(plain)
            if writer.find_known([chunk_id])[0]:
                totals["known"] += len(plain)
                writer.put_known(index, chunk_id)
            else:
                totals["new"] += len(plain)
                codec, stored = chunk.encode(plain, repository.compression_level)
                writer.put_chunk(index, chunk_id, codec, stored, len(plain))
        return writer.finish(
            DiskTotals(mode, "", f"change-{moment}", totals["read"], totals["new"], totals["known"])
        )


def back_up(
    repository: Repository,
    name: str,
    data: bytes,
    *,
    parent: str | None = None,
    changed: Collection[int] | None = None,
) -> Manifest:
    """Make one whole backup: session, disk and manifest are all called `name`."""
    repository.begin_session(name, parents=[parent] if parent else [])
    write_disk(repository, name, data, moment=f"at-{name}", parent=parent, changed=changed)
    return repository.commit(name, draft(repository, name, f"at-{name}"))


def restore(repository: Repository, backup_id: str, *, key: int = KEY) -> bytes:
    """Read a whole disk back, holes left as zeros."""
    with repository.open_disk_reader(backup_id, key) as reader:
        found = bytearray(reader.size_bytes)
        for offset, data in reader.read_chunks(threads=2):
            found[offset : offset + len(data)] = data
        return bytes(found)


def changed_chunks(old: bytes, new: bytes) -> set[int]:
    """Return the chunks in which two disks differ."""
    return {
        start // CHUNK
        for start in range(0, max(len(old), len(new)), CHUNK)
        if old[start : start + CHUNK] != new[start : start + CHUNK]
    }
