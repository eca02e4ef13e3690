"""Sessions: what a writer or a lasting reader leaves in the repository while it runs.

    sessions/<sid>/registration-<hash>        who runs and which backups it builds on or reads
    sessions/<sid>/disks/<key>/<attempt>/owner/<k>   who writes the disk: the k-th process to try
    sessions/<sid>/disks/<key>/<attempt>/<k>-<n>     owner k's checkpoint n
    sessions/<sid>/disks/<key>/done-<moment>  a disk that is written, whole and durable
    outcomes/<sid>                            how it ended; created once, by whoever comes first

An attempt is a hash of everything that must be equal for a checkpoint to be of use: the moment,
the mode, the parent's map, the size and the chunk size. Checkpoints of another attempt are never
looked at, so data of two moments cannot mix.
"""

import struct
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sendense.core.errors import NotFound
from sendense.repository import format, pack, record
from sendense.repository.chunk import ID_LENGTH
from sendense.repository.format import Frame
from sendense.repository.keyed import KeyedStorage
from sendense.repository.keys import Keys
from sendense.repository.manifest import DiskIdentity, DiskRecord, Manifest, Mode, check_disk
from sendense.repository.pack import Kind

FOLDER = "sessions/"
OUTCOMES = "outcomes/"
HASH_DIGITS = 16  # 64 bits tell apart the few moments and attempts of one session
CHECKPOINT_HEAD = struct.Struct("<I")
RUN = struct.Struct("<QQB7s")
RUN_ZERO = 0
RUN_IDS = 1


class Role(StrEnum):
    """What a session does."""

    WRITER = "writer"
    READER = "reader"


class State(StrEnum):
    """How a session ended."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    FENCED = "fenced"  # by a collector, which believed it dead


@dataclass(frozen=True, slots=True)
class Registration:
    """A session and the backups it needs: parents of a writer, the backup of a reader."""

    session_id: str
    role: Role
    backups: tuple[str, ...]
    at: datetime


@dataclass(frozen=True, slots=True)
class Inherited:
    """The checkpoints of an earlier owner that a later one took over: 1 to `last`."""

    owner: int
    last: int


@dataclass(frozen=True, slots=True)
class Owner:
    """The k-th process to write a disk in an attempt."""

    session_id: str
    disk_key: int
    attempt: str
    owner: int
    inherits: tuple[Inherited, ...]
    at: datetime


@dataclass(frozen=True, slots=True)
class CheckpointPack:
    """A data pack that a checkpoint made part of the session."""

    id: bytes
    size: int

    @property
    def name(self) -> str:
        """The object's name."""
        return pack.name_of(Kind.DATA, self.id)


@dataclass(frozen=True, slots=True)
class CheckpointHead:
    """The readable part of a checkpoint.

    Attributes:
        disk_key, attempt: as in its name. A seal binds a record, not the name: without them,
            whoever can write could exchange the checkpoints of two disks.
    """

    session_id: str
    disk_key: int
    attempt: str
    owner: int
    number: int
    resume_index: int
    bytes_new: int
    bytes_stored: int
    packs: tuple[CheckpointPack, ...]


@dataclass(frozen=True, slots=True)
class MapRun:
    """Neighbouring chunks set since the checkpoint before: zeros where `ids` is empty."""

    start: int
    count: int
    ids: bytes = b""


@dataclass(frozen=True, slots=True)
class Done:
    """A disk that is written. `segments` index all that this session stored for it."""

    session_id: str
    disk: DiskRecord
    segments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a session ended; with its manifest where it was committed.

    Attributes:
        nonce: of the caller that created it, to know its own after an answer was lost.
    """

    session_id: str
    state: State
    nonce: bytes
    reason: str
    at: datetime
    manifest: Manifest | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """What must be equal for one process to go on where another stopped."""

    disk: DiskIdentity
    chunk_size: int
    moment: str
    mode: Mode
    parent_backup_id: str | None
    parent_root: bytes


def attempt_digest(keys: Keys, attempt: Attempt) -> str:
    """Return a short hash of an attempt, for names."""
    return _short_hash(keys, record.dump(attempt))


def registration_name(keys: Keys, registration: Registration) -> str:
    """Return the object's name; equal contents but for the time have equal names."""
    text = "\n".join([registration.role, *registration.backups])
    return f"{FOLDER}{registration.session_id}/registration-{_short_hash(keys, text.encode())}"


def disk_folder(session_id: str, key: int) -> str:
    """Return the prefix of all that a session says about one disk."""
    return f"{FOLDER}{session_id}/disks/{key}/"


def done_name(keys: Keys, session_id: str, key: int, moment: str) -> str:
    """Return the name of the record that a disk is written."""
    return f"{disk_folder(session_id, key)}done-{_short_hash(keys, moment.encode())}"


def outcome_name(session_id: str) -> str:
    """Return the name of a session's outcome."""
    return OUTCOMES + format.check_session_id(session_id)


def find_outcome(storage: KeyedStorage, session_id: str) -> Outcome | None:
    """Return how a session ended, or None while it has not. Raises Corrupt."""
    name = outcome_name(session_id)
    try:
        body = format.get_frame(storage, Frame.OUTCOME, name)
    except NotFound:
        return None
    outcome = record.load(Outcome, body, name=name)
    committed = outcome.state is State.COMMITTED
    if outcome.session_id != session_id or committed != (outcome.manifest is not None):
        raise format.corrupt(name, "it is not the outcome of its session")
    for disk in outcome.manifest.disks if outcome.manifest else ():
        check_disk(disk, name=name)
    return outcome


def find_done(storage: KeyedStorage, session_id: str, key: int, moment: str) -> Done | None:
    """Return the record of a written disk, or None. Raises Corrupt."""
    name = done_name(storage.keys, session_id, key, moment)
    try:
        body = format.get_frame(storage, Frame.DONE, name)
    except NotFound:
        return None
    done = record.load(Done, body, name=name)
    if (done.session_id, done.disk.key, done.disk.moment) != (session_id, key, moment):
        raise format.corrupt(name, "it is about another disk")
    return done


def dump_checkpoint(head: CheckpointHead, runs: list[MapRun]) -> bytes:
    """Return the body of a checkpoint."""
    text = record.dump(head)
    parts = [CHECKPOINT_HEAD.pack(len(text)), text]
    for run in runs:
        parts += (
            RUN.pack(run.start, run.count, RUN_IDS if run.ids else RUN_ZERO, bytes(7)),
            run.ids,
        )
    return b"".join(parts)


def get_checkpoint(storage: KeyedStorage, name: str) -> tuple[CheckpointHead, list[MapRun]]:
    """Return a checkpoint's parts. Raises NotFound or Corrupt."""
    body = format.get_frame(storage, Frame.CHECKPOINT, name)
    try:
        (length,) = CHECKPOINT_HEAD.unpack_from(body)
        start = CHECKPOINT_HEAD.size
        head = record.load(CheckpointHead, body[start : start + length], name=name)
        return head, _parse_runs(body, start + length)
    except (struct.error, ValueError) as error:
        raise format.corrupt(name, f"its runs do not parse: {error}") from error


def _parse_runs(body: bytes, at: int) -> list[MapRun]:
    runs = []
    while at < len(body):
        start, count, kind, padding = RUN.unpack_from(body, at)
        at += RUN.size
        length = count * ID_LENGTH if kind == RUN_IDS else 0
        if kind not in {RUN_ZERO, RUN_IDS} or any(padding) or count == 0 or at + length > len(body):
            raise ValueError(f"run at byte {at - RUN.size}")
        runs.append(MapRun(start, count, body[at : at + length]))
        at += length
    return runs


def _short_hash(keys: Keys, data: bytes) -> str:
    return keys.hash_name(data).hex()[:HASH_DIGITS]
