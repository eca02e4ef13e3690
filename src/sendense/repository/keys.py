"""The keys of a repository: what identifies, seals and authenticates all that lies in it.

Everything comes from one root key of 32 random bytes by BLAKE3 in its mode derive_key, with a
context of its own for each use. A repository without encryption has `UNSEALED` in its place, so
that the rest of the code has one way only. See docs/format.md, "Keys".
"""

import functools
import os
import threading
from typing import Protocol

import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import keywrap
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sendense.repository.storage.base import Buffer

ROOT_LENGTH = 32
DOMAIN_LENGTH = 16
DOMAIN_NONE = bytes(DOMAIN_LENGTH)  # of a repository without encryption
EPOCH_NONE = 0
EPOCH = 1  # of the keys that are derived; later versions may know more
SLOT_LENGTH = 24
TAG_LENGTH = 16
WRAPPED_LENGTH = 40  # RFC 3394 adds 8 bytes to a key of 32
WRAPPED_NONE = bytes(WRAPPED_LENGTH)
PACK_KEYS_CACHED = 4096  # as many as the packs of 128 GiB; each some hundred bytes

_CONTEXT = "sendense repository v1 "
_NODE_CONTEXT = _CONTEXT + "disk map node"
_NONCE_LENGTH = 12


class SealBroken(Exception):
    """Bytes do not open: they were changed, or sealed with another key."""


class PackKey(Protocol):
    """The key of one pack."""

    @property
    def wrapped(self) -> bytes:
        """The key as it lies in the pack's header and in the index."""
        ...

    def seal(self, offset: int, head: Buffer, data: Buffer) -> Buffer:
        """Return a blob's stored bytes; its header is authenticated with them.

        Use each offset once: it is the nonce.
        """
        ...

    def open(self, offset: int, head: Buffer, data: Buffer) -> Buffer:
        """Return what `seal` was given. Raises SealBroken."""
        ...

    def open_briefly(self, offset: int, head: Buffer, data: Buffer) -> Buffer:
        """Return the same as `open`, in memory that this thread's next call uses again."""
        ...


class Keys(Protocol):
    """What a repository's objects are sealed with. Safe to use from several threads."""

    @property
    def domain(self) -> bytes:
        """Which root key it is: 16 bytes that tell nothing else; zeros without encryption."""
        ...

    @property
    def epoch(self) -> int:
        """Which keys derived from it."""
        ...

    @property
    def overhead(self) -> int:
        """How many bytes sealing adds."""
        ...

    def identify(self, data: Buffer) -> bytes:
        """Return the id of a chunk's plain bytes."""
        ...

    def identify_node(self, data: Buffer) -> bytes:
        """Return the id of a disk map's node; never that of a chunk of the same bytes."""
        ...

    def hash_name(self, data: bytes) -> bytes:
        """Return a digest that may stand in a name and tells nothing of the data."""
        ...

    def start_mac(self) -> blake3.blake3:
        """Return a hasher; its digest authenticates what it was given."""
        ...

    def new_slot(self) -> bytes:
        """Return what makes the key of one frame; use each once."""
        ...

    def seal(self, slot: bytes, head: bytes, body: bytes) -> bytes:
        """Return a frame's stored body; its header is authenticated with it."""
        ...

    def open(self, slot: bytes, head: bytes, stored: bytes) -> bytes:
        """Return what `seal` was given. Raises SealBroken."""
        ...

    def new_pack(self) -> PackKey:
        """Return the key of a new pack."""
        ...

    def open_pack(self, wrapped: bytes) -> PackKey:
        """Return the key of a stored pack. Raises SealBroken."""
        ...


class Unsealed:
    """A repository without encryption: hashes, which show damage, and no secrets."""

    domain = DOMAIN_NONE
    epoch = EPOCH_NONE
    overhead = 0
    wrapped = WRAPPED_NONE

    def identify(self, data: Buffer) -> bytes:
        """Return the BLAKE3 hash."""
        return blake3.blake3(data).digest()

    def identify_node(self, data: Buffer) -> bytes:
        """Return the BLAKE3 hash under a context of its own."""
        return blake3.blake3(data, derive_key_context=_NODE_CONTEXT).digest()

    def hash_name(self, data: bytes) -> bytes:
        """Return the BLAKE3 hash."""
        return blake3.blake3(data).digest()

    def start_mac(self) -> blake3.blake3:
        """Return a plain hasher: it shows damage, not tampering."""
        return blake3.blake3()

    def new_slot(self) -> bytes:
        """Return zeros."""
        return bytes(SLOT_LENGTH)

    def seal(self, slot: bytes, head: bytes, body: bytes) -> bytes:
        """Return the body."""
        del slot, head
        return body

    def open(self, slot: bytes, head: bytes, stored: bytes) -> bytes:
        """Return the body."""
        del head
        if any(slot):
            raise SealBroken
        return stored

    def new_pack(self) -> PackKey:
        """Return a key that changes nothing."""
        return _UNSEALED_PACK

    def open_pack(self, wrapped: bytes) -> PackKey:
        """Return a key that changes nothing."""
        if wrapped != WRAPPED_NONE:
            raise SealBroken
        return _UNSEALED_PACK


class _UnsealedPack:
    wrapped = WRAPPED_NONE

    def seal(self, offset: int, head: Buffer, data: Buffer) -> Buffer:
        del offset, head
        # A copy of the right size: zstd's output was allocated for the worst case and then shrunk;
        # packs full of such leave holes that cost more memory than the packs (242 to 131 MB).
        return bytes(memoryview(data))

    def open(self, offset: int, head: Buffer, data: Buffer) -> Buffer:
        del offset, head
        return data

    def open_briefly(self, offset: int, head: Buffer, data: Buffer) -> Buffer:
        return self.open(offset, head, data)


_UNSEALED_PACK = _UnsealedPack()
UNSEALED = Unsealed()


class DomainKeys:
    """The keys that come from one root key. Its repr shows none of them."""

    epoch = EPOCH
    overhead = TAG_LENGTH

    def __init__(self, root: bytes) -> None:
        assert len(root) == ROOT_LENGTH
        self._root = root
        self.domain = derive_domain(root)
        self._chunks = _derive(root, "chunk ids")
        self._nodes = _derive(root, "node ids")
        self._names = _derive(root, "names")
        self._macs = _derive(root, "index")
        self._frames = _derive(root, "frames")
        self._wrapping = _derive(root, "pack keys")
        # Unwrapping anew for each blob would cost more than opening it.
        self._open_pack = functools.lru_cache(PACK_KEYS_CACHED)(self._unwrap)

    def __repr__(self) -> str:
        return f"DomainKeys({self.domain.hex()})"

    @property
    def root(self) -> bytes:
        """The root key: whoever has it can read all of the domain."""
        return self._root

    def identify(self, data: Buffer) -> bytes:
        """Return the keyed BLAKE3 hash."""
        return blake3.blake3(data, key=self._chunks).digest()

    def identify_node(self, data: Buffer) -> bytes:
        """Return the BLAKE3 hash by another key than that of chunks."""
        return blake3.blake3(data, key=self._nodes).digest()

    def hash_name(self, data: bytes) -> bytes:
        """Return the keyed BLAKE3 hash."""
        return blake3.blake3(data, key=self._names).digest()

    def start_mac(self) -> blake3.blake3:
        """Return a keyed hasher."""
        return blake3.blake3(key=self._macs)

    def new_slot(self) -> bytes:
        """Return 24 random bytes: two of them will never be equal."""
        return os.urandom(SLOT_LENGTH)

    def seal(self, slot: bytes, head: bytes, body: bytes) -> bytes:
        """Return body and tag by AES-256-GCM with a key of the slot's own, hence one nonce."""
        return self._frame_key(slot).encrypt(bytes(_NONCE_LENGTH), body, head)

    def open(self, slot: bytes, head: bytes, stored: bytes) -> bytes:
        """Return the body. Raises SealBroken."""
        try:
            return self._frame_key(slot).decrypt(bytes(_NONCE_LENGTH), stored, head)
        except InvalidTag:
            raise SealBroken from None

    def new_pack(self) -> PackKey:
        """Return a random key, and what it is wrapped to."""
        key = AESGCM.generate_key(bit_length=256)
        return _SealedPack(key, keywrap.aes_key_wrap(self._wrapping, key))

    def open_pack(self, wrapped: bytes) -> PackKey:
        """Return the key that was wrapped. Raises SealBroken."""
        return self._open_pack(wrapped)

    def _unwrap(self, wrapped: bytes) -> PackKey:
        try:
            return _SealedPack(keywrap.aes_key_unwrap(self._wrapping, wrapped), wrapped)
        except keywrap.InvalidUnwrap:
            raise SealBroken from None

    def _frame_key(self, slot: bytes) -> AESGCM:
        return AESGCM(blake3.blake3(slot, key=self._frames).digest())


class _Room(threading.local):
    """Memory for what is opened and used at once, taken again: fresh memory is zeroed first."""

    def __init__(self) -> None:
        self._memory = memoryview(bytearray())

    def take(self, length: int) -> memoryview:
        """Return so many bytes, which are the thread's until it takes some again."""
        if len(self._memory) < length:
            self._memory = memoryview(bytearray(length))
        return self._memory[:length]


_room = _Room()


class _SealedPack:
    """AES-256-GCM with a random key for one pack; the nonce is the blob's place in it."""

    def __init__(self, key: bytes, wrapped: bytes) -> None:
        self.wrapped = wrapped
        self._cipher = AESGCM(key)

    def seal(self, offset: int, head: Buffer, data: Buffer) -> Buffer:
        return self._cipher.encrypt(_nonce(offset), data, head)

    def open(self, offset: int, head: Buffer, data: Buffer) -> Buffer:
        try:
            return self._cipher.decrypt(_nonce(offset), data, head)
        except InvalidTag:
            raise SealBroken from None

    def open_briefly(self, offset: int, head: Buffer, data: Buffer) -> Buffer:
        room = _room.take(max(0, len(data) - TAG_LENGTH))
        try:
            self._cipher.decrypt_into(_nonce(offset), data, head, room)
        except InvalidTag:
            raise SealBroken from None
        return room


def derive_domain(root: bytes) -> bytes:
    """Return the id of a root key's domain."""
    return _derive(root, "domain")[:DOMAIN_LENGTH]


def authenticate_descriptor(root: bytes, text: bytes) -> bytes:
    """Return the MAC of `sendense.json`'s other fields: it proves the key too."""
    return blake3.blake3(text, key=_derive(root, "descriptor")).digest()


def _derive(root: bytes, use: str) -> bytes:
    return blake3.blake3(root, derive_key_context=_CONTEXT + use).digest()


def _nonce(offset: int) -> bytes:
    return offset.to_bytes(_NONCE_LENGTH, "little")
