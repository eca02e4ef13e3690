"""Every parser of a repository's objects, as a function of bytes, with bytes that it accepts.

Checksums are made right after the bytes were changed, so that what lies behind them is reached too:
without a key anybody can do that.
"""

import contextlib
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import blake3
import pytest

from sendense.core.clock import ManualClock
from sendense.core.errors import Corrupt, Invalid, NotFound
from sendense.core.ids import SeededIds
from sendense.repository import (
    chunk,
    descriptor,
    diskmap,
    format,
    holds,
    hub_exports,
    index,
    manifest,
    pack,
    quarantine,
    recipients,
    record,
    recovery,
    session,
)
from sendense.repository.backups import Tombstone
from sendense.repository.format import Frame
from sendense.repository.gc import records
from sendense.repository.gc import run as collection
from sendense.repository.gc.protocol import Collector, Options
from sendense.repository.index import Segment
from sendense.repository.keyed import Keyed
from sendense.repository.keys import UNSEALED
from sendense.repository.pack import Kind, PackRef
from sendense.repository.storage.memory import MemoryStorage
from sendense.repository.verify.health import FOLDER as HEALTH
from sendense.repository.verify.health import HealthRecord
from sendense.repository.verify.run import verify
from tests import repository_kit as kit
from tests.repository_kit import CHUNK, Kit

REFUSALS = (Corrupt, Invalid)


@dataclass(frozen=True)
class Parser:
    """A parser, and objects that it accepts.

    `parse` raises one of `REFUSALS`, or returns; anything else is a defect.
    """

    name: str
    seeds: tuple[bytes, ...]
    parse: Callable[[bytes], object]


def list_parsers() -> list[Parser]:
    """Return all parsers, with objects of a small repository that was in use."""
    return list(_list_parsers(_build()))


def _build() -> dict[str, bytes]:
    """Return the objects of an unencrypted repository in which everything has happened."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "TARGET_BYTES", 4096)  # or nothing would be checkpointed
        return _build_small()


def _build_small() -> dict[str, bytes]:
    made = Kit(MemoryStorage(), root_key=None)
    repository = made.create()
    data = random.Random(1).randbytes(4 * CHUNK)
    kit.back_up(repository, "one", data)
    kit.back_up(repository, "two", data[1:] + b"x", parent="one", changed={0, 1})
    repository.delete_backup("one", who="test", why="test")
    collection.run(repository, Options(grace_seconds=0, is_confirmed=True))
    Collector(repository).step()
    repository.delete_backup("two", who="test", why="test")
    repository.begin_session("held")
    kit.write_disk(repository, "held", data, moment="m")
    repository.commit("held", kit.draft(repository, "held", "m"))
    repository.backups.hold("held", who="test", why="test")
    about = hub_exports.About("hub-1", made.clock.now(), "0.1", "0011", {"settings": {}})
    rows = hub_exports.compress([("t", {"id": number}) for number in range(9)])
    hub_exports.put(repository.storage, about, rows, SeededIds(4))
    repository.begin_session("open")
    kit.write_disk(repository, "open", data[5:] + b"12345", moment="m")
    repository.begin_session("half")
    kit.write_disk(repository, "half", data[9:] + b"123456789", moment="m", stop=3)
    ref = next(ref for one in repository.segments.counted for ref in one.packs())
    quarantine.put(repository.storage, ref, at=made.clock.now(), why="test")
    verify(repository)
    recipients.add_passphrase(
        made.storage, kit.ROOT, "correct horse", label="", clock=ManualClock(), ids=SeededIds(3)
    )
    return {found.name: made.storage.get(found.name) for found in made.storage.list_objects()}


def _list_parsers(objects: dict[str, bytes]) -> Iterator[Parser]:
    def under(prefix: str) -> tuple[bytes, ...]:
        return tuple(data for name, data in objects.items() if name.startswith(prefix))

    def bodies(kind: Frame) -> tuple[bytes, ...]:
        return tuple(
            format.open_frame(UNSEALED, kind, data, name="seed")
            for data in objects.values()
            if data.startswith(kind.value)
        )

    yield Parser("descriptor", under(descriptor.NAME), _parse_descriptor)
    for kind in Frame:
        whole = tuple(data for data in objects.values() if data.startswith(kind.value))
        assert whole, f"the small repository holds no {kind.name}"
        yield Parser(f"frame {kind.name}", whole, lambda data, kind=kind: _open(kind, data))  # type: ignore[misc]
    for kind, read in _readers().items():
        yield Parser(f"record {kind.name}", bodies(kind), read)
    yield Parser("segment", tuple(one[:-32] for one in under("index/")), _parse_segment)
    yield Parser("segment header", tuple(one[:-32] for one in under("index/")), _parse_segment_head)
    yield Parser("pack", under("packs/") + under("meta/"), _parse_pack)
    heads = tuple(one[: pack.HEADER.size - 8] for one in under("packs/") + under("meta/"))
    yield Parser("pack header", heads, _parse_pack_head)
    yield Parser("pack directory", under("packs/") + under("meta/"), _parse_directory)
    blobs = tuple(map(_first_blob, under("packs/")[:3] + under("meta/")))
    yield Parser("blob", blobs, _parse_blob)
    node = diskmap.encode_node(0, [bytes([n]) * 32 for n in range(256)])
    yield Parser("node", (node, diskmap.encode_node(3, [b"\1" * 32] * 256)), _parse_node)
    packed = chunk.encode(bytes(99) + b"ab" * (chunk.SIZE_MIN // 2), 1)[1]
    yield Parser("chunk", (b"\1" + packed, b"\0" + bytes(99)), _parse_chunk)
    yield Parser("recovery key", (recovery.to_text(kit.ROOT).encode(),), _parse_recovery)


def _readers() -> dict[Frame, Callable[[bytes], object]]:
    """Return what reads the bodies of each kind of frame."""

    def gc(kind: type[Any]) -> Callable[[bytes], object]:
        def read(body: bytes) -> object:
            part = records.PARTS[kind]
            told = re.search(rb'"generation":([1-9][0-9]{0,7})[,}]', body)
            number = int(told[1]) if told else 1
            name = records.name(number, part)
            return records.get(kind, _holding(records.FRAMES[part], name, body), number)

        return read

    def of(kind: type[Any]) -> Callable[[bytes], object]:
        return lambda body: record.load(kind, body, name="fuzz")

    return {
        Frame.MANIFEST: _read_manifest,
        Frame.OUTCOME: _read_outcome,
        Frame.REGISTRATION: of(session.Registration),
        Frame.OWNER: of(session.Owner),
        Frame.CHECKPOINT: lambda body: session.get_checkpoint(
            _holding(Frame.CHECKPOINT, "fuzz", body), "fuzz"
        ),
        Frame.DONE: of(session.Done),
        Frame.TOMBSTONE: of(Tombstone),
        Frame.KEY_WRAP: lambda body: recipients.list_recipients(
            _holding(Frame.KEY_WRAP, "keys/ab.fuzz", body)
        ),
        Frame.GC_PLAN: gc(records.Plan),
        Frame.GC_CONDEMNED: gc(records.Condemned),
        Frame.GC_FINAL: gc(records.Final),
        Frame.GC_DONE: gc(records.Done),
        Frame.QUARANTINED: of(quarantine.Quarantined),
        Frame.HEALTH: _load_health,
        Frame.HOLD: of(holds.Hold),
        Frame.HUB_EXPORT: of(hub_exports.Head),
        Frame.HUB_PART: _read_rows,
    }


def _open(kind: Frame, data: bytes) -> object:
    # The hash at the end is made right.
    return format.open_frame(UNSEALED, kind, data[:-32] + _hash(data[:-32]), name="fuzz")


def _holding(kind: Frame, name: str, body: bytes) -> Keyed:
    storage = Keyed(MemoryStorage(), UNSEALED)
    format.put_frame(storage, kind, name, body[: format.FRAME_BODY_MAX])
    return storage


def _read_manifest(body: bytes) -> object:
    # Under the name that it gives itself, where it gives any.
    object_id = _told(body, "object_id")
    return manifest.from_body(body, name=f"{manifest.FOLDER}{object_id}")


def _read_outcome(body: bytes) -> object:
    session_id = _told(body, "session_id")
    name = session.outcome_name(session_id)
    return session.find_outcome(_holding(Frame.OUTCOME, name, body), session_id)


def _told(body: bytes, field: str) -> str:
    """Return what a record says its name is, where that can be an object's name."""
    with contextlib.suppress(ValueError, AttributeError):
        told = json.loads(body).get(field)
        if isinstance(told, str) and re.fullmatch("[a-z0-9]{1,40}", told):
            return told
    return "fuzz"


def _read_rows(body: bytes) -> object:
    """Read a part of an export of a hub, behind a head that names it."""
    place = Keyed(MemoryStorage(), UNSEALED)
    about = hub_exports.About("hub-1", ManualClock().now(), "0.1", "0011", {})
    packed = hub_exports.Packed((body[: format.FRAME_BODY_MAX],), {})
    return list(hub_exports.read(place, hub_exports.put(place, about, packed, SeededIds(1))))


def _load_health(body: bytes) -> object:
    known = HealthRecord(_holding(Frame.HEALTH, f"{HEALTH}fuzz", body))
    known.load()
    return known


def _parse_descriptor(data: bytes) -> object:
    storage = MemoryStorage()
    storage.put_if_absent(descriptor.NAME, data)
    with contextlib.suppress(NotFound):  # it is JSON, and not a repository's
        return descriptor.get(storage)
    return None


def _parse_segment(data: bytes) -> object:
    data += _hash(data)
    return Segment(memoryview(data), keys=UNSEALED, name="fuzz").packs()


def _parse_segment_head(data: bytes) -> object:
    head = data[: index.HEADER.size - format.CHECK_LENGTH]
    return _parse_segment(head + format.check_of(head) + data[index.HEADER.size :])


def _parse_pack(data: bytes) -> object:
    ref = PackRef(_hash(data), Kind.META if data[10:11] == b"\1" else Kind.DATA, len(data))
    pack.verify(data, ref, UNSEALED)
    return ref


def _parse_pack_head(data: bytes) -> object:
    return pack.parse_header(data + format.check_of(data), keys=UNSEALED, name="fuzz")


def _parse_directory(data: bytes) -> object:
    """Read a pack's directory after making the hash in its footer right."""
    footer = pack.FOOTER.size
    start = int.from_bytes(data[-footer + 8 : -footer + 16], "little") if len(data) >= footer else 0
    entries = data[start:-footer] if start < len(data) else b""
    whole = data[:-32] + _hash(entries)
    storage = Keyed(MemoryStorage(), UNSEALED)
    ref = PackRef(_hash(whole), Kind.DATA, len(whole))
    storage.put_if_absent(ref.name, whole)
    return pack.read_directory(storage, ref)


def _first_blob(data: bytes) -> bytes:
    """Return the first blob of a pack, with its header."""
    stored = int.from_bytes(data[pack.HEADER.size + 8 : pack.HEADER.size + 12], "little")
    return data[pack.HEADER.size :][: pack.BLOB.size + stored]


def _parse_blob(data: bytes) -> object:
    head = data[: pack.BLOB.size - format.CHECK_LENGTH]
    whole = head + format.check_of(head) + data[pack.BLOB.size :]
    ref = PackRef(bytes(32), Kind.DATA, 1 << 24)
    return pack.open_blob(UNSEALED, ref, pack.HEADER.size, whole, data[16:48])


def _parse_node(data: bytes) -> object:
    return diskmap.decode_node(data, level=data[5] % 8 if len(data) > 5 else 0)


def _parse_chunk(data: bytes) -> object:
    codec, stored = data[0] if data else 0, data[1:]
    length = len(stored) if codec == chunk.Codec.RAW else 99 + chunk.SIZE_MIN
    return chunk.decompress(codec, stored, plain_length=length)


def _parse_recovery(data: bytes) -> object:
    return recovery.parse(data.decode("utf-8", errors="replace"))


def _hash(data: bytes) -> bytes:
    return blake3.blake3(data).digest()
