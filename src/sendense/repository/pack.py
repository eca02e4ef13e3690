"""Packs: many blobs in one immutable object, each describing itself. See docs/format.md.

A pack is a header, blobs, a directory and a footer. Its name is the BLAKE3 hash of its bytes; a
random salt in the header keeps names from ever recurring.
"""

import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import blake3

from sendense.core import units
from sendense.core.errors import Corrupt, Exists
from sendense.repository import chunk, format
from sendense.repository.keyed import KeyedStorage
from sendense.repository.keys import WRAPPED_LENGTH, WRAPPED_NONE, Keys, PackKey, SealBroken
from sendense.repository.storage.base import Buffer

TARGET_BYTES = 32 * units.MIB  # one fsync or request for each; decision 161
META_TARGET_BYTES = 4 * units.MIB  # nodes of a map; readers of maps fetch single nodes anyway
SIZE_MAX = 128 * units.MIB  # a parser refuses larger ones; offsets are 32 bits
ENTRIES_MAX = 1 << 16  # a pack of tiny blobs is sealed here; bounds its directory to 3.5 MiB
SALT_LENGTH = 32

MAGIC = b"SENDPACK"
FOOTER_MAGIC = b"SENDFOOT"
BLOB_MAGIC = b"BLOB"
FLAG_META = 1
HEADER = struct.Struct("<8sHHI16s32s64s64s8s8s")
BLOB = struct.Struct("<4sBBHII32s8s")
ENTRY = struct.Struct("<32sQIIBBHI")
FOOTER = struct.Struct("<8sQIIQ32s")
assert (HEADER.size, BLOB.size, ENTRY.size, FOOTER.size) == (208, 56, 56, 64)


class Kind(IntEnum):
    """Which folder a pack lies in."""

    DATA = 0
    META = 1

    @property
    def folder(self) -> str:
        """The first part of the names of such packs."""
        return "packs" if self is Kind.DATA else "meta"


class BlobType(IntEnum):
    """What a blob holds."""

    CHUNK = 1
    NODE = 2
    VM_CONFIG = 3  # reserved: written by a later version
    NVRAM = 4  # reserved: written by a later version


_CODECS = frozenset(chunk.Codec)
PLAIN_LENGTH_MAX: dict[int, int] = {
    BlobType.CHUNK: chunk.SIZE_MAX,
    BlobType.NODE: 16 * units.KIB,
    BlobType.VM_CONFIG: chunk.SIZE_MAX,  # an index segment holds no larger ones
    BlobType.NVRAM: chunk.SIZE_MAX,
}


class Entry(NamedTuple):
    """Where a blob lies in its pack: `offset` is that of its header."""

    id: bytes
    offset: int
    stored_length: int
    plain_length: int
    type: int
    codec: int


@dataclass(frozen=True, slots=True)
class PackRef:
    """A pack by name.

    Attributes:
        wrapped: its key, sealed; zeros without encryption.
    """

    id: bytes
    kind: Kind
    size: int
    wrapped: bytes = WRAPPED_NONE

    @property
    def name(self) -> str:
        """The object's name."""
        return name_of(self.kind, self.id)


@dataclass(frozen=True, slots=True)
class SealedPack:
    """A pack ready to be put. `buffers` joined are its bytes."""

    ref: PackRef
    entries: tuple[Entry, ...]
    buffers: tuple[Buffer, ...]


def name_of(kind: Kind, pack_id: bytes) -> str:
    """Return the name of a pack's object."""
    text = pack_id.hex()
    return f"{kind.folder}/{text[:2]}/{text}"


class PackBuilder:
    """Gathers blobs for one pack. Copies none of them. Use each builder for one pack only.

    They are sealed and opened again by whatever threads call `seal_added` meanwhile, and what is
    left by `seal`.
    """

    def __init__(self, kind: Kind, *, session_id: str, salt: bytes, keys: Keys) -> None:
        assert len(salt) == SALT_LENGTH
        self._added: deque[int] = deque()  # which entries nobody has begun to seal
        self._sealing = threading.Condition()  # guards what follows
        self._sealed = 0
        self._broken: BaseException | None = None
        self._kind = kind
        self._keys = keys
        self._key = keys.new_pack()
        head = HEADER.pack(
            MAGIC,
            format.VERSION,
            FLAG_META if kind is Kind.META else 0,
            keys.epoch,
            keys.domain,
            salt,
            format.pack_session(session_id),
            self._key.wrapped,
            bytes(8),
            b"",
        )[: -format.CHECK_LENGTH]
        self._buffers: list[Buffer] = [head + format.check_of(head)]
        self._entries: list[Entry] = []
        self.size = HEADER.size

    def __len__(self) -> int:
        return len(self._entries)

    def add(
        self, blob_type: BlobType, codec: int, blob_id: bytes, stored: Buffer, *, plain_length: int
    ) -> Entry:
        """Append a blob and return where it lies. `stored` must not change afterwards."""
        length = len(stored) + self._keys.overhead
        head = BLOB.pack(BLOB_MAGIC, blob_type, codec, 0, length, plain_length, blob_id, b"")[
            : -format.CHECK_LENGTH
        ]
        self._buffers += (head + format.check_of(head), stored)
        entry = Entry(blob_id, self.size, length, plain_length, blob_type, codec)
        self._entries.append(entry)
        self.size += BLOB.size + length
        self._added.append(len(self._entries) - 1)
        return entry

    def seal(self) -> SealedPack:
        """Return the pack after opening it again: every blob must decode to its id.

        Raises Corrupt where one does not: the machine's memory is bad, and nothing was put yet.
        """
        self.seal_added()
        with self._sealing:
            while self._sealed < len(self._entries) and self._broken is None:
                self._sealing.wait()
            if self._broken is not None:
                raise self._broken
        directory = b"".join(
            ENTRY.pack(e.id, e.offset, e.stored_length, e.plain_length, e.type, e.codec, 0, 0)
            for e in self._entries
        )
        total = self.size + len(directory) + FOOTER.size
        footer = FOOTER.pack(
            FOOTER_MAGIC,
            self.size,
            len(self._entries),
            0,
            total,
            blake3.blake3(directory).digest(),
        )
        self._buffers += (directory, footer)
        hasher = blake3.blake3()
        for buffer in self._buffers:
            hasher.update(buffer)
        ref = PackRef(hasher.digest(), self._kind, total, self._key.wrapped)
        return SealedPack(ref, tuple(self._entries), tuple(self._buffers))

    def seal_added(self) -> None:
        """Seal what was added and nobody has begun to seal, in any thread.

        What is wrong with a blob is raised by `seal`.
        """
        while True:
            try:
                index = self._added.popleft()
            except IndexError:
                return
            broken: BaseException | None = None
            try:
                self._seal_blob(index)
            except BaseException as error:  # noqa: BLE001 - raised again by `seal`
                broken = error
            with self._sealing:
                self._sealed += 1
                self._broken = self._broken or broken
                self._sealing.notify_all()

    def _seal_blob(self, index: int) -> None:
        entry = self._entries[index]
        head = memoryview(self._buffers[1 + 2 * index])
        stored = self._key.seal(entry.offset, head, self._buffers[2 + 2 * index])
        self._buffers[2 + 2 * index] = stored
        _open_parts(_Opened(self._keys, self._key, entry.offset), head, stored, entry.id)


def put(storage: KeyedStorage, sealed: SealedPack) -> None:
    """Put a pack. Its name is random, so Exists can only be an earlier try of this very put."""
    try:
        storage.put_if_absent(sealed.ref.name, sealed.buffers)
    except Exists:
        if storage.size(sealed.ref.name) != sealed.ref.size:
            raise


@dataclass(frozen=True, slots=True)
class _Opened:
    """What a blob lies in, and where: a stored pack, or one that is not put yet."""

    keys: Keys
    key: PackKey
    offset: int
    ref: PackRef | None = None

    @property
    def name(self) -> str:
        """What an error calls the pack."""
        return self.ref.name if self.ref else "pack in memory"


def open_blob(keys: Keys, ref: PackRef, offset: int, data: Buffer, blob_id: bytes) -> bytes:
    """Return the plain bytes of a blob from its header and stored bytes.

    Never returns wrong bytes: raises Corrupt unless they hash to `blob_id`.
    """
    view = memoryview(data)
    opened = _open_pack(keys, ref, offset)
    return _open_parts(opened, view[: BLOB.size], view[BLOB.size :], blob_id)


def unseal_blob(keys: Keys, ref: PackRef, offset: int, data: Buffer) -> tuple[Entry, Buffer]:
    """Return what a blob's header says and its bytes as a builder takes them, not decoded.

    Raises Corrupt. Nobody has compared them with the id yet: a builder does when it seals.
    """
    view = memoryview(data)
    opened = _open_pack(keys, ref, offset)
    head, stored = view[: BLOB.size], view[BLOB.size :]
    entry = _parse(opened, head, stored)
    try:
        return entry, opened.key.open(offset, head, stored)
    except SealBroken:
        raise _broken_seal(opened, entry) from None


def _open_pack(keys: Keys, ref: PackRef, offset: int) -> _Opened:
    try:
        return _Opened(keys, keys.open_pack(ref.wrapped), offset, ref)
    except SealBroken:
        raise format.corrupt(ref.name, "its key does not open") from None


def _open_parts(opened: _Opened, head: memoryview, stored: Buffer, blob_id: bytes) -> bytes:
    keys = opened.keys
    entry = _parse(opened, head, stored)
    if entry.id != blob_id:
        raise format.corrupt(
            opened.name, f"blob {entry.id.hex()} lies where {blob_id.hex()} should"
        )
    try:
        packed = opened.key.open_briefly(opened.offset, head, stored)
    except SealBroken:
        raise _broken_seal(opened, entry) from None
    plain = chunk.decompress(entry.codec, packed, plain_length=entry.plain_length)
    is_chunk = entry.type == BlobType.CHUNK
    found = keys.identify(plain) if is_chunk else keys.identify_node(plain)
    if found != blob_id:
        raise Corrupt(
            f"object {opened.name} is damaged: blob {blob_id.hex()} decodes to bytes with id"
            f" {found.hex()}",
            kind="chunk-corrupt" if is_chunk else "object-corrupt",
            name=opened.name,
            chunk_id=blob_id.hex(),
        )
    return plain


def _parse(opened: _Opened, head: memoryview, stored: Buffer) -> Entry:
    """Return what a blob's header says, which fits the length of what is stored."""
    entry = _parse_blob_header(head, opened)
    if len(stored) != entry.stored_length:
        raise format.corrupt(
            opened.name, f"blob {entry.id.hex()} has {len(stored)} bytes of {entry.stored_length}"
        )
    return entry


def _broken_seal(opened: _Opened, entry: Entry) -> Corrupt:
    return format.corrupt(opened.name, f"the seal of blob {entry.id.hex()} is broken")


def _parse_blob_header(data: memoryview, opened: _Opened) -> Entry:
    offset = opened.offset
    if len(data) < BLOB.size:
        raise format.corrupt(opened.name, "a blob's header is cut off")
    magic, blob_type, codec, flags, stored, plain, blob_id, check = BLOB.unpack_from(data)
    if magic != BLOB_MAGIC or format.check_of(data[: BLOB.size - format.CHECK_LENGTH]) != check:
        raise format.corrupt(opened.name, f"no blob's header lies at byte {offset}")
    if flags or not _is_plausible(blob_type, codec, stored - opened.keys.overhead, plain):
        raise format.corrupt(
            opened.name, f"the blob at byte {offset} is of an unknown kind or size"
        )
    return Entry(blob_id, offset, stored, plain, blob_type, codec)


def _is_plausible(blob_type: int, codec: int, stored: int, plain: int) -> bool:
    return codec in _CODECS and 0 < stored <= plain <= PLAIN_LENGTH_MAX.get(blob_type, 0)


def read_ref(storage: KeyedStorage, name: str) -> PackRef:
    """Return a stored pack with its size and key, from its header. Raises NotFound or Corrupt."""
    size = storage.size(name)
    head = storage.get_range(name, 0, min(size, HEADER.size))
    found = parse_header(head, keys=storage.keys, name=name)
    try:
        pack_id = bytes.fromhex(name.rpartition("/")[2])
    except ValueError:
        raise format.corrupt(name, "its name is not a pack's") from None
    return PackRef(pack_id, found.kind, size, found.wrapped)


def read_directory(storage: KeyedStorage, ref: PackRef) -> list[Entry]:
    """Return where the blobs of a stored pack lie, from its end. Raises NotFound or Corrupt."""
    name = ref.name
    size = storage.size(name)
    if size != ref.size or not HEADER.size + FOOTER.size <= size <= SIZE_MAX:
        raise format.corrupt(name, f"it has {size} bytes where {ref.size} should be")
    footer = storage.get_range(name, size - FOOTER.size, FOOTER.size)
    start, length, digest = _parse_footer(footer, size=size, name=name)
    directory = storage.get_range(name, start, length)
    overhead = storage.keys.overhead
    return list(_parse_directory(directory, digest, blobs_end=start, name=name, overhead=overhead))


def _parse_footer(footer: bytes, *, size: int, name: str) -> tuple[int, int, bytes]:
    """Return where the directory of a pack begins, its length and its hash."""
    magic, start, count, reserved, total, digest = FOOTER.unpack(footer)
    length = count * ENTRY.size
    if (
        magic != FOOTER_MAGIC
        or reserved
        or total != size
        or count > ENTRIES_MAX
        or start + length + FOOTER.size != size
    ):
        raise format.corrupt(name, "its footer does not describe it")
    return start, length, digest


def _parse_directory(
    directory: bytes, digest: bytes, *, blobs_end: int, name: str, overhead: int
) -> Iterator[Entry]:
    """Yield the entries, which must lie one behind the other from header to directory."""
    if blake3.blake3(directory).digest() != digest:
        raise format.corrupt(name, "its directory does not match its checksum")
    expected = HEADER.size
    for fields in ENTRY.iter_unpack(directory):
        blob_id, offset, stored, plain, blob_type, codec, flags, reserved = fields
        if offset != expected or flags or reserved:
            raise format.corrupt(name, f"its directory leads to byte {offset}")
        if not _is_plausible(blob_type, codec, stored - overhead, plain):
            raise format.corrupt(name, f"the blob at byte {offset} is of an unknown kind or size")
        yield Entry(blob_id, offset, stored, plain, blob_type, codec)
        expected = offset + BLOB.size + stored
    if expected != blobs_end:
        raise format.corrupt(name, f"its directory leaves out bytes {expected} to {blobs_end}")


@dataclass(frozen=True, slots=True)
class Header:
    """What a pack's header says: kind, session that wrote it, and its key, sealed."""

    kind: Kind
    session_id: str
    wrapped: bytes


def parse_header(data: Buffer, *, keys: Keys, name: str) -> Header:
    """Return what a pack's header says, or raise Corrupt."""
    if len(data) < HEADER.size:
        raise format.corrupt(name, "it is shorter than a header")
    fields = HEADER.unpack_from(data)
    magic, version, flags, epoch, domain, _salt, session, slot, reserved, check = fields
    if magic != MAGIC:
        raise format.corrupt(name, f"magic {magic!r} is not a pack's")
    if format.check_of(memoryview(data)[: HEADER.size - format.CHECK_LENGTH]) != check:
        raise format.corrupt(name, "its header does not match its checksum")
    if version != format.VERSION or flags & ~FLAG_META:
        raise format.corrupt(name, f"version {version} or flags {flags} are unknown here")
    if (epoch, domain) != (keys.epoch, keys.domain) or any(slot[WRAPPED_LENGTH:]) or any(reserved):
        raise format.corrupt(name, "it is sealed with a key that is not known here")
    kind = Kind(flags & FLAG_META)
    return Header(kind, format.unpack_session(session, name=name), slot[:WRAPPED_LENGTH])


def missing(ref: PackRef) -> Corrupt:
    """Return the error for a pack that the index names and that is not there."""
    return format.corrupt(ref.name, "the index names it, and it is gone", kind="pack-missing")


def verify_stored(data: bytes, ref: PackRef) -> None:
    """Check that a whole pack's bytes hash to its name, which needs no key. Raises Corrupt."""
    if blake3.blake3(data).digest() != ref.id:
        raise format.corrupt(ref.name, "its bytes do not hash to its name", kind="pack-corrupt")


def verify(
    data: bytes, ref: PackRef, keys: Keys, *, on_blob: Callable[[Entry], None] | None = None
) -> None:
    """Check a whole pack: its name, header, directory and every blob's id. Raises Corrupt."""
    verify_stored(data, ref)
    check_header(data, ref, keys)
    view = memoryview(data)
    for entry in _entries_of(data, ref, keys):
        blob = view[entry.offset : entry.offset + BLOB.size + entry.stored_length]
        open_blob(keys, ref, entry.offset, blob, entry.id)
        if on_blob is not None:
            on_blob(entry)


def check_header(data: Buffer, ref: PackRef, keys: Keys) -> None:
    """Check that a pack begins as the index says. Raises Corrupt."""
    found = parse_header(data, keys=keys, name=ref.name)
    if found.kind is not ref.kind:
        raise format.corrupt(ref.name, "it lies in the wrong folder")
    if found.wrapped != ref.wrapped:
        raise format.corrupt(ref.name, "its key is not the one that the index has")


def _entries_of(data: bytes, ref: PackRef, keys: Keys) -> list[Entry]:
    if len(data) != ref.size or ref.size < HEADER.size + FOOTER.size:
        raise Corrupt(f"pack {ref.name} has {len(data)} bytes, not {ref.size}", kind="pack-corrupt")
    start, length, digest = _parse_footer(data[-FOOTER.size :], size=ref.size, name=ref.name)
    directory = data[start : start + length]
    return list(
        _parse_directory(directory, digest, blobs_end=start, name=ref.name, overhead=keys.overhead)
    )
