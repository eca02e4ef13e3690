"""What all objects of a repository share: names, framing, canonical JSON. See docs/format.md.

Numbers are little-endian. Every parser is strict: it checks magic, version, flags, lengths and
checksums, allocates no more than the object's kind may need, and raises Corrupt for anything else.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, TypeAlias

import blake3

from sendense.core import units
from sendense.core.errors import Corrupt, Invalid
from sendense.repository.keyed import KeyedStorage
from sendense.repository.keys import TAG_LENGTH, Keys, SealBroken
from sendense.repository.storage.base import Buffer, Storage

VERSION = 1
MAC_LENGTH = 32
CHECK_LENGTH = 8  # of the short checksums inside packs: BLAKE3, its first 8 bytes
SESSION_LENGTH_MAX = 63  # with its length byte, a pack's header has 64 bytes for it
FRAME_HEADER = struct.Struct("<8sHHI16s24sQ")
FRAME_BODY_MAX = 64 * units.MIB  # the largest is a collector's `final` of 1.5 million backups

# The longest seal has 16 bytes.
FRAME_LENGTH_MAX = FRAME_HEADER.size + FRAME_BODY_MAX + TAG_LENGTH + MAC_LENGTH

Json: TypeAlias = dict[str, Any]


class Frame(Enum):
    """The kinds of framed objects, with their magics."""

    MANIFEST = b"SENDMANI"
    OUTCOME = b"SENDOUTC"
    REGISTRATION = b"SENDREGI"
    OWNER = b"SENDOWNR"
    CHECKPOINT = b"SENDCHKP"
    DONE = b"SENDDONE"
    TOMBSTONE = b"SENDTOMB"
    KEY_WRAP = b"SENDKEYW"
    GC_PLAN = b"SENDGCPL"
    GC_CONDEMNED = b"SENDGCCO"
    GC_FINAL = b"SENDGCFI"
    GC_DONE = b"SENDGCDN"
    QUARANTINED = b"SENDQUAR"
    HEALTH = b"SENDHLTH"
    HOLD = b"SENDHOLD"
    HUB_PART = b"SENDHUBP"
    HUB_EXPORT = b"SENDHUBX"


def seal_frame(keys: Keys, kind: Frame, body: bytes) -> bytes:
    """Return an object: header, sealed body, and a hash over both.

    The hash shows damage to whoever has no key; that nobody tampered, only the seal tells.
    """
    assert len(body) <= FRAME_BODY_MAX, f"{kind.name} of {len(body)} bytes"
    slot = keys.new_slot()
    length = len(body) + keys.overhead
    head = FRAME_HEADER.pack(kind.value, VERSION, 0, keys.epoch, keys.domain, slot, length)
    whole = head + keys.seal(slot, head, body)
    return whole + blake3.blake3(whole).digest()


def open_frame(keys: Keys, kind: Frame, data: Buffer, *, name: str) -> bytes:
    """Return the body of a framed object, or raise Corrupt naming the object."""
    if len(data) < FRAME_HEADER.size + MAC_LENGTH:
        raise corrupt(name, f"{len(data)} bytes are too few for a frame")
    magic, version, flags, epoch, domain, slot, length = FRAME_HEADER.unpack_from(data)
    if magic != kind.value:
        raise corrupt(name, f"magic {magic!r} is not that of a {kind.name.lower()}")
    if len(data) != FRAME_HEADER.size + length + MAC_LENGTH:
        raise corrupt(name, f"{len(data)} bytes do not hold a body of {length}")
    whole = bytes(data)
    if blake3.blake3(whole[:-MAC_LENGTH]).digest() != whole[-MAC_LENGTH:]:
        raise corrupt(name, "its checksum does not match")
    if version != VERSION or flags or (epoch, domain) != (keys.epoch, keys.domain):
        raise corrupt(name, f"version {version}, flags {flags} or its key is unknown here")
    head, stored = whole[: FRAME_HEADER.size], whole[FRAME_HEADER.size : -MAC_LENGTH]
    try:
        return keys.open(slot, head, stored)
    except SealBroken:
        raise corrupt(name, "its seal is broken: somebody has changed it") from None


def put_frame(storage: KeyedStorage, kind: Frame, name: str, body: bytes) -> None:
    """Store a framed object. Raises Exists where the name is taken."""
    storage.put_if_absent(name, seal_frame(storage.keys, kind, body))


def require_intact(storage: Storage, name: str) -> None:
    """Raise Corrupt where an object is no frame whose checksum matches; needs no key.

    Raises NotFound.
    """
    size = storage.size(name)
    if not FRAME_HEADER.size + MAC_LENGTH <= size <= FRAME_LENGTH_MAX:
        raise corrupt(name, f"{size} bytes are no frame")
    data = storage.get(name)
    if blake3.blake3(data[:-MAC_LENGTH]).digest() != data[-MAC_LENGTH:]:
        raise corrupt(name, "its checksum does not match")


def get_frame(storage: KeyedStorage, kind: Frame, name: str) -> bytes:
    """Read a framed object and return its body. Raises NotFound or Corrupt."""
    size = storage.size(name)
    if size > FRAME_HEADER.size + FRAME_BODY_MAX + storage.keys.overhead + MAC_LENGTH:
        raise corrupt(name, f"{size} bytes are too many for a {kind.name.lower()}")
    return open_frame(storage.keys, kind, storage.get(name), name=name)


def dump_json(value: Mapping[str, Any]) -> bytes:
    """Return canonical JSON: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def load_json(data: bytes, *, name: str) -> Json:
    """Return a JSON object, or raise Corrupt: also for repeated keys and for nesting too deep."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise corrupt(name, f"its JSON does not parse: {error}") from error
    if not isinstance(value, dict):
        raise corrupt(name, "its JSON is not an object")
    return value


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> Json:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key is repeated")
    return value


def check_of(data: Buffer) -> bytes:
    """Return the short checksum of bytes inside a pack or an index segment."""
    return blake3.blake3(data).digest(length=CHECK_LENGTH)


def corrupt(name: str, found: str, *, kind: str = "object-corrupt") -> Corrupt:
    """Return the error for an object that does not hold what it should."""
    return Corrupt(f"object {name} is damaged: {found}", kind=kind, name=name)


def check_session_id(session_id: str) -> str:
    """Return a session's id, or raise Invalid: a-z, 0-9, `.`, `_` and `-`, at most 63."""
    plain = session_id.replace("-", "").replace("_", "").replace(".", "")
    if (
        not 0 < len(session_id) <= SESSION_LENGTH_MAX
        or not (plain.isascii() and plain.isalnum() and plain == plain.lower())
        or not session_id[0].isalnum()
    ):
        raise Invalid(
            f"{session_id[:80]!r} is no id for a session",
            kind="session-id-invalid",
            session_id=session_id[:80],
        )
    return session_id


def pack_session(session_id: str) -> bytes:
    """Return the session's field of a pack's or a segment's header, 64 bytes."""
    raw = check_session_id(session_id).encode("ascii")
    return bytes([len(raw)]) + raw.ljust(SESSION_LENGTH_MAX, b"\0")


def unpack_session(field: bytes, *, name: str) -> str:
    """Return the session's id from its field, or raise Corrupt."""
    raw = field[1 : 1 + field[0]]
    try:
        session_id = check_session_id(raw.decode("ascii"))
    except (ValueError, Invalid) as error:
        raise corrupt(name, "its session is no id") from error
    if pack_session(session_id) != field:
        raise corrupt(name, "its session's field is not padded with zeros")
    return session_id
