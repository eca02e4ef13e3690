"""The backups in a repository: manifests that no tombstone has struck out."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime

from sendense.core import clock
from sendense.core.clock import Clock
from sendense.core.errors import Conflict, Corrupt, Invalid, NotFound
from sendense.core.ids import IdSource
from sendense.repository import format, holds, manifest, record, session
from sendense.repository.format import Frame
from sendense.repository.gc.state import Collected
from sendense.repository.holds import Change, Hold
from sendense.repository.keyed import KeyedStorage
from sendense.repository.manifest import DiskRecord, Manifest
from sendense.repository.session import Outcome

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

    def __init__(
        self, storage: KeyedStorage, collected: Collected, *, clock: Clock, ids: IdSource
    ) -> None:
        self._storage = storage
        self._collected = collected
        self._clock = clock
        self._ids = ids
        self._lock = threading.Lock()
        self._manifests: OrderedDict[str, Manifest] = OrderedDict()
        self._recovered: dict[str, Manifest] = {}  # of damaged objects, from the outcomes
        self._tombs: dict[str, Tombstone] = {}

    def list_all(self) -> list[Manifest]:
        """Return all backups, oldest first.

        A damaged manifest is read from its outcome. Raises Corrupt where that cannot be, or where
        a tombstone is damaged: a list that leaves a backup out would be a guess. `scan` goes on.
        """
        found, _, lost = self._look()
        if lost:
            raise lost[0]
        return found

    def scan(self) -> tuple[list[Manifest], list[Corrupt]]:
        """Return all backups that can be read, oldest first, and what is damaged.

        Also damage that costs nothing, since the outcome holds the manifest, is told.
        """
        found, damaged, _ = self._look()
        return found, damaged

    def list_manifests(self) -> tuple[list[Manifest], list[Corrupt]]:
        """Return all manifests, deleted backups' too, and what is damaged beyond recovery."""
        with self._lock:
            found, _, lost = self._list_manifests()
        return found, lost

    def get(self, backup_id: str) -> Manifest:
        """Return a backup. Raises NotFound (kind `backup-unknown`), also for a deleted one."""
        found, _, lost = self._look()
        for one in found:
            if one.backup_id == backup_id:
                return one
        if lost:
            raise lost[0]
        raise NotFound(
            f"the repository has no backup {backup_id}",
            kind="backup-unknown",
            hint="it was deleted there; where a list still shows it, that deletion was cut off: "
            "delete it again",
            backup_id=backup_id,
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

        Raises NotFound (kind `backup-unknown`) where it is not there or was deleted before,
        Conflict where it is held or immutable (kinds `backup-held`, `backup-immutable`).
        """
        found = self.get(backup_id)
        self._require_deletable(found)
        object_id = self._ids.random_bytes(manifest.NAME_BYTES).hex()
        tomb = Tombstone(object_id, backup_id, found.object_id, who, why, self._clock.now())
        format.put_frame(self._storage, Frame.TOMBSTONE, TOMBS + object_id, record.dump(tomb))
        try:
            self._require_deletable(found)
        except Conflict:
            # Held between these two: whoever holds looks for tombstones afterwards, and we for
            # holds, so that one of both notices. Should this process end here, the hold counts.
            with contextlib.suppress(NotFound):
                self._storage.delete(TOMBS + object_id)
            raise
        return tomb

    def _require_deletable(self, one: Manifest) -> None:
        held = holds.list_held(self._storage).get(one.object_id)
        if held is not None:
            raise Conflict(
                f"backup {one.backup_id} is held by {held.who}: {held.why}",
                kind="backup-held",
                hint="let it go first, by `sendense backup release`",
                backup_id=one.backup_id,
            )
        if one.immutable_until is not None and one.immutable_until > self._clock.now():
            until = clock.format_utc(one.immutable_until)
            raise Conflict(
                f"backup {one.backup_id} is immutable until {until}",
                kind="backup-immutable",
                hint="wait until then; nobody can shorten it",
                backup_id=one.backup_id,
                until=until,
            )

    def hold(self, backup_id: str, *, who: str, why: str) -> Hold:
        """Let nobody delete a backup until `release`. Says so again where it is held already.

        Raises NotFound (kind `backup-unknown`), also where it is being deleted at this moment.
        """
        found = self.get(backup_id)
        change = Change(held=True, who=who, why=why, at=self._clock.now())
        made = holds.put(self._storage, found.object_id, backup_id, change)
        self.get(backup_id)
        return made

    def release(self, backup_id: str, *, who: str, why: str) -> Hold | None:
        """Let a backup go; return None where it was not held. Raises NotFound.

        A deletion that a crash cut off, because the backup was held, takes effect with it.
        """
        found = self.get(backup_id)
        if found.object_id not in holds.list_held(self._storage):
            return None
        change = Change(held=False, who=who, why=why, at=self._clock.now())
        return holds.put(self._storage, found.object_id, backup_id, change)

    def list_held(self) -> dict[str, Hold]:
        """Return the holds by the ids of their backups."""
        held = holds.list_held(self._storage)
        return {
            one.backup_id: held[one.object_id]
            for one in self.list_manifests()[0]
            if one.object_id in held
        }

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

    def list_deleted_of(self, backup_ids: Collection[str]) -> frozenset[str]:
        """Return those of some backups that were deleted, whether or not they were collected since.

        Reads the outcomes where no tombstone tells. Raises Corrupt.
        """
        deleted = {one.backup_id for one in self.list_deleted()} & set(backup_ids)
        if deleted != set(backup_ids):
            view = self._collected.refresh()
            for outcome in self._list_commits():
                made = outcome.manifest
                if made and made.backup_id in backup_ids and view.is_dead(made.object_id):
                    deleted.add(made.backup_id)
        return frozenset(deleted)

    def _look(self) -> tuple[list[Manifest], list[Corrupt], list[Corrupt]]:
        """Return the live backups, all damage, and what of it nothing makes up for."""
        with self._lock:
            # In this order, or a backup whose manifest and tombstone a collector removes
            # meanwhile would look alive, and so would one that came back.
            tombs, damaged_tombs = self._list_tombs()
            manifests, damaged, lost = self._list_manifests()
            view = self._collected.refresh()
            held = holds.list_held(self._storage) if tombs else {}
        dead = {tomb.manifest_id for tomb in tombs} - held.keys()
        live = [
            one
            for one in manifests
            if one.object_id not in dead and not view.is_dead(one.object_id)
        ]
        live.sort(key=lambda one: (one.completed_at, one.backup_id))
        return live, damaged + damaged_tombs, lost + damaged_tombs

    def _list_manifests(self) -> tuple[list[Manifest], list[Corrupt], list[Corrupt]]:
        """Return the manifests, all damage, and that for which no outcome makes up."""
        found: list[Manifest] = []
        damaged: dict[str, Corrupt] = {}
        for stored in self._storage.list_objects(manifest.FOLDER):
            try:
                one = self._manifests.get(stored.name) or get_manifest(self._storage, stored.name)
            except NotFound:
                continue  # collected since the listing
            except Corrupt as error:
                damaged[stored.name] = error
                continue
            self._manifests[stored.name] = one
            self._manifests.move_to_end(stored.name)
            found.append(one)
        while len(self._manifests) > CACHED_MAX:
            self._manifests.popitem(last=False)
        if damaged.keys() - self._recovered.keys():
            self._recover(damaged.keys())
        found += [self._recovered[name] for name in damaged if name in self._recovered]
        lost = [error for name, error in damaged.items() if name not in self._recovered]
        return found, list(damaged.values()), lost

    def _recover(self, names: Collection[str]) -> None:
        """Find the manifests of damaged objects in the outcomes. Writes nothing."""
        for outcome in self._list_commits():
            if outcome.manifest and outcome.manifest.name in names:
                self._recovered[outcome.manifest.name] = outcome.manifest

    def _list_commits(self) -> Iterator[Outcome]:
        """Yield the outcomes that can be read."""
        for stored in self._storage.list_objects(session.OUTCOMES):
            with contextlib.suppress(Corrupt, Invalid):  # check reports it
                outcome = session.find_outcome(
                    self._storage, stored.name.removeprefix(session.OUTCOMES)
                )
                if outcome is not None:
                    yield outcome

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


def get_manifest(storage: KeyedStorage, name: str) -> Manifest:
    """Read a manifest. Raises NotFound or Corrupt."""
    return manifest.from_body(format.get_frame(storage, Frame.MANIFEST, name), name=name)


def _get_tombstone(storage: KeyedStorage, name: str) -> Tombstone:
    body = format.get_frame(storage, Frame.TOMBSTONE, name)
    tomb = record.load(Tombstone, body, name=name)
    if TOMBS + tomb.object_id != name:
        raise format.corrupt(name, f"it is the tombstone {tomb.object_id}")
    return tomb
