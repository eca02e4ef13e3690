"""Packs: many blobs in one immutable object, each describing itself. See docs/format.md.

A pack is a header, blobs, a directory and a footer. Its name is the BLAKE3 hash of its bytes; a
random salt in the header keeps names from ever recurring.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum

import blake3

from sendense.core import units
from sendense.core.errors import Corrupt
from sendense.repository import chunk, format
from sendense.repository.storage.base import Buffer, Storage

TARGET_BYTES = 32 * units.MIB  # one fsync for each; 64 MiB will be right for object stores
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

_NODE_CONTEXT = "sendense repository v1 disk map node"


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


PLAIN_LENGTH_MAX = {
    BlobType.CHUNK: chunk.SIZE_MAX,
    BlobType.NODE: 16 * units.KIB,
    BlobType.VM_CONFIG: 16 * units.MIB,
    BlobType.NVRAM: 16 * units.MIB,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a blob lies in its pack: `offset` is that of its header."""

    id: bytes
    offset: int
    stored_length: int
    plain_length: int
    type: int
    codec: int


@dataclass(frozen=True, slots=True)
class PackRef:
    """A pack by name."""

    id: bytes
    kind: Kind
    size: int

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


def identify_node(data: Buffer) -> bytes:
    """Return the id of a disk map's node; can never equal the id of a chunk of the same bytes."""
    return blake3.blake3(data, derive_key_context=_NODE_CONTEXT).digest()


class PackBuilder:
    """Gathers blobs for one pack. Copies none of them. Use each builder for one pack only."""

    def __init__(self, kind: Kind, *, session_id: str, salt: bytes) -> None:
        assert len(salt) == SALT_LENGTH
        self._kind = kind
        head = HEADER.pack(
            MAGIC,
            format.VERSION,
            FLAG_META if kind is Kind.META else 0,
            format.EPOCH_NONE,
            format.DOMAIN_NONE,
            salt,
            format.pack_session(session_id),
            bytes(64),
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
        head = BLOB.pack(BLOB_MAGIC, blob_type, codec, 0, len(stored), plain_length, blob_id, b"")[
            : -format.CHECK_LENGTH
        ]
        self._buffers += (head + format.check_of(head), stored)
        entry = Entry(blob_id, self.size, len(stored), plain_length, blob_type, codec)
        self._entries.append(entry)
        self.size += BLOB.size + len(stored)
        return entry

    def seal(self) -> SealedPack:
        """Return the pack after opening it again: every blob must decode to its id.

        Raises Corrupt where one does not: the machine's memory is bad, and nothing was put yet.
        """
        for index, entry in enumerate(self._entries):
            head, stored = self._buffers[1 + 2 * index], self._buffers[2 + 2 * index]
            _open_parts(memoryview(head), stored, entry.id, name="pack in memory")
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
        ref = PackRef(hasher.digest(), self._kind, total)
        return SealedPack(ref, tuple(self._entries), tuple(self._buffers))


def open_blob(data: Buffer, blob_id: bytes, *, name: str) -> bytes:
    """Return the plain bytes of a blob from its header and stored bytes.

    Never returns wrong bytes: raises Corrupt unless they hash to `blob_id`.
    """
    view = memoryview(data)
    return _open_parts(view, view[BLOB.size :], blob_id, name=name)


def _open_parts(head: memoryview, stored: Buffer, blob_id: bytes, *, name: str) -> bytes:
    entry = parse_blob_header(head, name=name)
    if entry.id != blob_id:
        raise format.corrupt(name, f"blob {entry.id.hex()} lies where {blob_id.hex()} should")
    if len(stored) != entry.stored_length:
        raise format.corrupt(
            name, f"blob {blob_id.hex()} has {len(stored)} bytes of {entry.stored_length}"
        )
    if entry.type == BlobType.CHUNK:
        plain = chunk.decode(entry.codec, stored, plain_length=entry.plain_length, chunk_id=blob_id)
    else:
        plain = chunk.decompress(entry.codec, stored, plain_length=entry.plain_length)
        if identify_node(plain) != blob_id:
            raise format.corrupt(name, f"node {blob_id.hex()} does not match its id")
    return plain


def parse_blob_header(data: memoryview, *, name: str, offset: int = 0) -> Entry:
    """Return what a blob's header says, or raise Corrupt."""
    if len(data) < BLOB.size:
        raise format.corrupt(name, "a blob's header is cut off")
    magic, blob_type, codec, flags, stored, plain, blob_id, check = BLOB.unpack_from(data)
    if magic != BLOB_MAGIC or format.check_of(data[: BLOB.size - format.CHECK_LENGTH]) != check:
        raise format.corrupt(name, f"no blob's header lies at byte {offset}")
    if flags or not _is_plausible(blob_type, codec, stored, plain):
        raise format.corrupt(name, f"the blob at byte {offset} is of an unknown kind or size")
    return Entry(blob_id, offset, stored, plain, blob_type, codec)


def _is_plausible(blob_type: int, codec: int, stored: int, plain: int) -> bool:
    known = blob_type in set(BlobType) and codec in set(chunk.Codec)
    return known and 0 < plain <= PLAIN_LENGTH_MAX[BlobType(blob_type)] and 0 < stored <= plain


def read_directory(storage: Storage, ref: PackRef) -> list[Entry]:
    """Return where the blobs of a stored pack lie, from its end. Raises NotFound or Corrupt."""
    name = ref.name
    size = storage.size(name)
    if size != ref.size or not HEADER.size + FOOTER.size <= size <= SIZE_MAX:
        raise format.corrupt(name, f"it has {size} bytes where {ref.size} should be")
    footer = storage.get_range(name, size - FOOTER.size, FOOTER.size)
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
    directory = storage.get_range(name, start, length)
    if blake3.blake3(directory).digest() != digest:
        raise format.corrupt(name, "its directory does not match its checksum")
    return list(_parse_directory(directory, blobs_end=start, name=name))


def _parse_directory(directory: bytes, *, blobs_end: int, name: str) -> Iterator[Entry]:
    """Yield the entries, which must lie one behind the other from header to directory."""
    expected = HEADER.size
    for fields in ENTRY.iter_unpack(directory):
        blob_id, offset, stored, plain, blob_type, codec, flags, reserved = fields
        if offset != expected or flags or reserved:
            raise format.corrupt(name, f"its directory leads to byte {offset}")
        if not _is_plausible(blob_type, codec, stored, plain):
            raise format.corrupt(name, f"the blob at byte {offset} is of an unknown kind or size")
        yield Entry(blob_id, offset, stored, plain, blob_type, codec)
        expected = offset + BLOB.size + stored
    if expected != blobs_end:
        raise format.corrupt(name, f"its directory leaves out bytes {expected} to {blobs_end}")


def parse_header(data: Buffer, *, name: str) -> tuple[Kind, str]:
    """Return a pack's kind and the session that wrote it, or raise Corrupt."""
    if len(data) < HEADER.size:
        raise format.corrupt(name, "it is shorter than a header")
    fields = HEADER.unpack_from(data)
    magic, version, flags, epoch, domain, _salt, session, slot, reserved, check = fields
    if magic != MAGIC:
        raise format.corrupt(name, f"magic {magic!r} is not a pack's")
    if format.check_of(memoryview(data)[: HEADER.size - format.CHECK_LENGTH]) != check:
        raise format.corrupt(name, "its header does not match its checksum")
    if version != format.VERSION or flags & ~FLAG_META or epoch or domain != format.DOMAIN_NONE:
        raise format.corrupt(name, f"version {version} or flags {flags} are unknown here")
    if any(slot) or any(reserved):
        raise format.corrupt(name, "it is sealed with a key that this version cannot use")
    return Kind(flags & FLAG_META), format.unpack_session(session, name=name)


def verify(data: bytes, ref: PackRef, *, on_blob: Callable[[Entry], None] | None = None) -> None:
    """Check a whole pack: its name, header, directory and every blob's id. Raises Corrupt."""
    name = ref.name
    if blake3.blake3(data).digest() != ref.id:
        raise format.corrupt(name, "its bytes do not hash to its name", kind="pack-corrupt")
    kind, _ = parse_header(data, name=name)
    if kind is not ref.kind:
        raise format.corrupt(name, "it lies in the wrong folder")
    view = memoryview(data)
    for entry in _entries_of(data, ref):
        blob = view[entry.offset : entry.offset + BLOB.size + entry.stored_length]
        open_blob(blob, entry.id, name=name)
        if on_blob is not None:
            on_blob(entry)


def _entries_of(data: bytes, ref: PackRef) -> list[Entry]:
    if len(data) != ref.size:
        raise Corrupt(f"pack {ref.name} has {len(data)} bytes, not {ref.size}", kind="pack-corrupt")
    start, count = struct.unpack_from("<QI", data, len(data) - FOOTER.size + 8)
    directory = data[start : start + count * ENTRY.size]
    return list(_parse_directory(directory, blobs_end=start, name=ref.name))
