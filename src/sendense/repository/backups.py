"""The backups in a repository: manifests that no tombstone has struck out."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime

from sendense.core.clock import Clock
from sendense.core.errors import Corrupt, NotFound
from sendense.core.ids import IdSource
from sendense.repository import format, manifest, record
from sendense.repository.format import Frame
from sendense.repository.manifest import DiskRecord, Manifest
from sendense.repository.storage.base import Storage

TOMBS = "tombs/"
CACHED_MAX = 10_000  # manifests of a few KiB each, kept by name since they never change


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A deletion: the backup is gone for all but a collector, which frees the space later."""

    object_id: str
    backup_id: str
    manifest_id: str
    who: str
    why: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Parent:
    """The newest backup of a disk: what the next one may build on."""

    manifest: Manifest
    disk: DiskRecord

    @property
    def backup_id(self) -> str:
        """The backup's id."""
        return self.manifest.backup_id


class Backups:
    """Lists, finds and deletes backups. Safe to use from several threads."""

    def __init__(self, storage: Storage, *, clock: Clock, ids: IdSource) -> None:
        self._storage = storage
        self._clock = clock
        self._ids = ids
        self._lock = threading.Lock()
        self._manifests: OrderedDict[str, Manifest] = OrderedDict()
        self._tombs: dict[str, Tombstone] = {}

    def list_all(self) -> list[Manifest]:
        """Return all backups, oldest first.

        Raises Corrupt where a manifest or tombstone is damaged: a list that leaves a backup out
        would be a guess. `scan` goes on.
        """
        found, damaged = self.scan()
        if damaged:
            raise damaged[0]
        return found

    def scan(self) -> tuple[list[Manifest], list[Corrupt]]:
        """Return all backups that can be read, oldest first, and what is wrong with the others."""
        with self._lock:
            manifests, damaged = self._list_manifests()
            tombs, damaged_tombs = self._list_tombs()
        dead = {tomb.manifest_id for tomb in tombs}
        live = [one for one in manifests if one.object_id not in dead]
        live.sort(key=lambda one: (one.completed_at, one.backup_id))
        return live, damaged + damaged_tombs

    def get(self, backup_id: str) -> Manifest:
        """Return a backup. Raises NotFound (kind `backup-unknown`), also for a deleted one."""
        found, damaged = self.scan()
        for one in found:
            if one.backup_id == backup_id:
                return one
        if damaged:
            raise damaged[0]
        raise NotFound(
            f"the repository has no backup {backup_id}", kind="backup-unknown", backup_id=backup_id
        )

    def find_latest(
        self, *, source_uuid: str, vm_uuid: str, disk_key: int, disk_uuid: str | None = None
    ) -> Parent | None:
        """Return the newest backup that holds a disk, or None. Raises Corrupt.

        With `disk_uuid`, another disk under the same key does not count.
        """
        for one in reversed(self.list_all()):
            if (one.vm.source_uuid, one.vm.uuid) != (source_uuid, vm_uuid):
                continue
            disk = one.find_disk(disk_key)
            if disk is not None and disk_uuid in {None, disk.uuid}:
                return Parent(one, disk)
        return None

    def delete(self, backup_id: str, *, who: str, why: str) -> Tombstone:
        """Strike out a backup at once. Others stay restorable; space comes back by a collector.

        Raises NotFound (kind `backup-unknown`) where it is not there or was deleted before.
        """
        found = self.get(backup_id)
        object_id = self._ids.random_bytes(manifest.NAME_BYTES).hex()
        tomb = Tombstone(object_id, backup_id, found.object_id, who, why, self._clock.now())
        data = format.seal_frame(Frame.TOMBSTONE, record.dump(tomb))
        self._storage.put_if_absent(TOMBS + object_id, data)
        return tomb

    def list_deleted(self) -> list[Tombstone]:
        """Return the tombstones, oldest first. Raises Corrupt."""
        with self._lock:
            tombs, damaged = self._list_tombs()
        if damaged:
            raise damaged[0]
        return sorted(tombs, key=lambda tomb: (tomb.at, tomb.object_id))

    def find_tombstone(self, backup_id: str) -> Tombstone | None:
        """Return the tombstone of a backup, or None. Raises Corrupt."""
        return next((one for one in self.list_deleted() if one.backup_id == backup_id), None)

    def _list_manifests(self) -> tuple[list[Manifest], list[Corrupt]]:
        found, damaged = [], []
        for stored in self._storage.list_objects(manifest.FOLDER):
            try:
                one = self._manifests.get(stored.name) or get_manifest(self._storage, stored.name)
            except NotFound:
                continue  # collected since the listing
            except Corrupt as error:
                damaged.append(error)
                continue
            self._manifests[stored.name] = one
            self._manifests.move_to_end(stored.name)
            found.append(one)
        while len(self._manifests) > CACHED_MAX:
            self._manifests.popitem(last=False)
        return found, damaged

    def _list_tombs(self) -> tuple[list[Tombstone], list[Corrupt]]:
        found, damaged = [], []
        for stored in self._storage.list_objects(TOMBS):
            try:
                if stored.name not in self._tombs:
                    self._tombs[stored.name] = _get_tombstone(self._storage, stored.name)
            except NotFound:
                continue
            except Corrupt as error:
                damaged.append(error)
                continue
            found.append(self._tombs[stored.name])
        return found, damaged


def get_manifest(storage: Storage, name: str) -> Manifest:
    """Read a manifest. Raises NotFound or Corrupt."""
    return manifest.from_body(format.get_frame(storage, Frame.MANIFEST, name), name=name)


def _get_tombstone(storage: Storage, name: str) -> Tombstone:
    body = format.get_frame(storage, Frame.TOMBSTONE, name)
    tomb = record.load(Tombstone, body, name=name)
    if TOMBS + tomb.object_id != name:
        raise format.corrupt(name, f"it is the tombstone {tomb.object_id}")
    return tomb
