"""What is alive: sessions, backups and outcomes, listed in the order that the protocol needs.

Deleted backups first (`list_struck`), then sessions, then backups, then outcomes. So a session that
is not seen has either ended, and what it left is seen afterwards, or begins later, and sees what
was put before.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from sendense.core.errors import Corrupt, Invalid, NotFound
from sendense.repository import backups as backups_module
from sendense.repository import format, holds, manifest, record, session
from sendense.repository.chunk import ID_LENGTH
from sendense.repository.format import Frame
from sendense.repository.gc import records
from sendense.repository.gc.records import Struck
from sendense.repository.gc.state import View
from sendense.repository.keyed import KeyedStorage
from sendense.repository.manifest import Manifest
from sendense.repository.pack import Kind, PackRef
from sendense.repository.repository import Repository
from sendense.repository.session import Outcome, Registration, Role


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A session without an outcome.

    Attributes:
        is_reader: it only reads: nobody waits for it. began: by its own clock, where it says so.
        backups: ids of those it builds on or reads.
        signs: names of all its objects; a new one is a sign of life.
    """

    id: str
    is_reader: bool
    began: datetime | None
    backups: frozenset[str]
    signs: tuple[str, ...]

    def checkpoints(self) -> Iterator[str]:
        """Yield the names of its checkpoints, of all processes that wrote for it."""
        for name in self.signs:
            leaf = name.rpartition("/")[2]
            if "/disks/" in name and not leaf.startswith("done-") and "/owner/" not in name:
                yield name


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found.

    Attributes:
        sessions: open ones. manifests: of all backups that were not collected, by object id.
        ended: digests of sessions whose outcomes were looked at and that no record has yet.
        kept: object ids of backups that are held, or immutable still.
    """

    sessions: tuple[OpenSession, ...]
    manifests: dict[str, Manifest]
    ended: frozenset[bytes]
    kept: frozenset[str]

    def pinned(self) -> set[str]:
        """Return the object ids of backups that stay, deleted or not.

        These are those that an open session builds on or reads, held ones and immutable ones.
        """
        named = {backup_id for one in self.sessions for backup_id in one.backups}
        return {*self.kept} | {key for key, one in self.manifests.items() if one.backup_id in named}


def list_struck(repository: Repository) -> list[Struck]:
    """Return the deleted backups, and those that came back after they were collected.

    Raises Corrupt where a tombstone is damaged.
    """
    struck = [Struck(one.manifest_id, one.object_id) for one in repository.backups.list_deleted()]
    view = repository.collected.refresh()
    back = [
        name
        for stored in repository.storage.list_objects(manifest.FOLDER)
        if _is_id(name := stored.name.removeprefix(manifest.FOLDER)) and view.is_dead(name)
    ]
    known = {one.manifest for one in struck}
    return struck + [Struck(name, None) for name in back if name not in known]


def take(repository: Repository, view: View, *, pause: Callable[[], None]) -> Survey:
    """Look at sessions, backups and outcomes, in this order; `pause` between listings.

    Raises Corrupt where anything that counts cannot be read, or where a backup that was there has
    vanished (kind `backup-missing`).
    """
    sessions = list_sessions(repository.storage)
    pause()
    found, lost = repository.backups.list_manifests()
    if lost:
        raise lost[0]
    manifests = {one.object_id: one for one in found if not view.is_dead(one.object_id)}
    pause()
    ended: set[bytes] = set()
    for outcome in list_new_outcomes(repository):
        ended.add(records.digest(outcome.session_id))
        made = outcome.manifest
        if made is not None and not view.is_dead(made.object_id):
            manifests.setdefault(made.object_id, made)  # committed, and not written yet
    _require_all(repository, view, manifests)
    # Last: a hold that comes later fails, where the backup was deleted before.
    kept = set(holds.list_held(repository.storage))
    now = repository.clock.now()
    kept |= {key for key, one in manifests.items() if (one.immutable_until or now) > now}
    return Survey(tuple(sessions), manifests, frozenset(ended), frozenset(kept))


def list_packs(storage: KeyedStorage) -> tuple[PackRef, ...]:
    """Return the packs that are there."""
    return tuple(
        PackRef(pack_id, kind, stored.size)
        for kind in Kind
        for stored in storage.list_objects(kind.folder + "/")
        if (pack_id := _pack_id(stored.name)) is not None
    )


def _pack_id(name: str) -> bytes | None:
    """Return the id in a pack's name, or None for a stranger's file."""
    try:
        pack_id = bytes.fromhex(name.rpartition("/")[2])
    except ValueError:
        return None
    return pack_id if len(pack_id) == ID_LENGTH else None


def list_sessions(storage: KeyedStorage) -> list[OpenSession]:
    """Return the sessions without an outcome. Raises Corrupt."""
    signs: dict[str, list[str]] = {}
    for stored in storage.list_objects(session.FOLDER):
        signs.setdefault(stored.name.split("/")[1], []).append(stored.name)
    opened = []
    for session_id, names in signs.items():
        try:
            if session.find_outcome(storage, session_id) is None:
                opened.append(_read_session(storage, session_id, names))
        except Invalid:
            continue  # a stranger's folder: no session of ours can have the name
    return opened


def list_new_outcomes(repository: Repository) -> Iterator[Outcome]:
    """Yield the outcomes that no generation has looked at yet. Raises Corrupt."""
    known = repository.collected.list_ended()
    for stored in repository.storage.list_objects(session.OUTCOMES):
        session_id = stored.name.removeprefix(session.OUTCOMES)
        if records.digest(session_id) in known:
            continue
        try:
            outcome = session.find_outcome(repository.storage, session_id)
        except Invalid:
            continue
        if outcome is not None:
            yield outcome


def _read_session(storage: KeyedStorage, session_id: str, names: list[str]) -> OpenSession:
    """Read a session's registrations. One that vanishes meanwhile has ended: it says nothing."""
    roles: set[Role] = set()
    needed: set[str] = set()
    began: datetime | None = None
    for name in names:
        if not name.rpartition("/")[2].startswith("registration-"):
            continue
        try:
            body = format.get_frame(storage, Frame.REGISTRATION, name)
        except NotFound:
            continue
        found = record.load(Registration, body, name=name)
        roles.add(found.role)
        needed.update(found.backups)
        began = max(began or found.at, found.at)
    is_reader = roles == {Role.READER}
    return OpenSession(session_id, is_reader, began, frozenset(needed), tuple(names))


def _require_all(repository: Repository, view: View, manifests: dict[str, Manifest]) -> None:
    """Add backups that a generation left alive and that the listing leaves out.

    A manifest that is lost is written again from its outcome. Raises Corrupt where that is gone
    too: only a collector removes manifests, and a loss must not cost the packs that it needs.
    """
    for raw in sorted(view.live - view.dead):
        if raw.hex() in manifests:
            continue
        name = manifest.FOLDER + raw.hex()
        try:
            manifests[raw.hex()] = backups_module.get_manifest(repository.storage, name)
        except NotFound:
            outcome = repository.endings.find_commit(raw.hex())
            if outcome is None or outcome.manifest is None:
                raise Corrupt(
                    f"the manifest {raw.hex()} was there when garbage was collected last",
                    hint="bring it back from a copy; nothing is collected meanwhile",
                    kind="backup-missing",
                    object_id=raw.hex(),
                ) from None
            repository.endings.settle(outcome)
            manifests[raw.hex()] = outcome.manifest


def _is_id(name: str) -> bool:
    try:
        return len(bytes.fromhex(name)) == manifest.NAME_BYTES
    except ValueError:
        return False
