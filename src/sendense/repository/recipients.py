"""Recipients: who can open a repository beside the holder of its recovery key.

Each is an object `keys/<domain>.<id>`: the root key, wrapped by a key that comes from a passphrase.
They are added and removed without touching anything else. Removing one takes away the object, not
what somebody who had the passphrase may have kept.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from cryptography.hazmat.primitives import keywrap
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from sendense.core import units
from sendense.core.clock import Clock
from sendense.core.errors import Corrupt, Denied, Invalid, NotFound
from sendense.core.ids import IdSource
from sendense.repository import format, keys, record
from sendense.repository.format import Frame
from sendense.repository.keyed import Keyed
from sendense.repository.keys import DOMAIN_LENGTH, ROOT_LENGTH, UNSEALED, WRAPPED_LENGTH
from sendense.repository.storage.base import Storage

FOLDER = "keys/"
ID_LENGTH = 12
SALT_LENGTH = 16
# RFC 9106, section 4, the second recommended choice: 64 MiB, for a hub in a small machine.
ITERATIONS = 3
LANES = 4
MEMORY_KIB = 64 * units.KIB
# What a wrap may ask of whoever opens it: else a forged one could take all memory.
ITERATIONS_MAX = 16
LANES_MAX = 16
MEMORY_KIB_MAX = units.MIB  # 1 GiB
RECIPIENTS_MAX = 64  # wraps that a passphrase is tried on: each takes a quarter of a second
PASSPHRASE_LENGTH_MIN = 12
PASSPHRASE_LENGTH_MAX = 1024


class Kind(StrEnum):
    """What opens a wrap."""

    PASSPHRASE = "passphrase"  # noqa: S105 - a word, no secret


@dataclass(frozen=True, slots=True)
class Recipient:
    """One wrap of the root key.

    Attributes:
        salt, iterations, lanes, memory_kib: Argon2id's.
        wrapped: the root key by RFC 3394 under the derived key.
    """

    recipient_id: str
    kind: Kind
    label: str
    created_at: datetime
    domain: bytes
    salt: bytes
    iterations: int
    lanes: int
    memory_kib: int
    wrapped: bytes

    @property
    def name(self) -> str:
        """The object's name."""
        return f"{FOLDER}{self.domain.hex()}.{self.recipient_id}"


def add_passphrase(
    storage: Storage, root: bytes, passphrase: str, *, label: str, clock: Clock, ids: IdSource
) -> Recipient:
    """Let a passphrase open the repository. Raises Invalid, kind `passphrase-invalid`."""
    check_passphrase(passphrase)
    made = Recipient(
        recipient_id=ids.token(ID_LENGTH),
        kind=Kind.PASSPHRASE,
        label=label,
        created_at=clock.now(),
        domain=keys.derive_domain(root),
        salt=ids.random_bytes(SALT_LENGTH),
        iterations=ITERATIONS,
        lanes=LANES,
        memory_kib=MEMORY_KIB,
        wrapped=b"",
    )
    made = replace(made, wrapped=keywrap.aes_key_wrap(_derive(made, passphrase), root))
    # Read back before anybody relies on it: memory can be bad.
    assert _unwrap(made, passphrase) == root, "a wrap opens to what was wrapped"
    body = record.dump(made)
    format.put_frame(Keyed(storage, UNSEALED), Frame.KEY_WRAP, made.name, body)
    return made


def list_recipients(storage: Storage) -> tuple[list[Recipient], list[Corrupt]]:
    """Return the recipients, oldest first, and which wraps are damaged. Needs no key."""
    found, damaged = [], []
    for stored in storage.list_objects(FOLDER):
        try:
            found.append(_get(storage, stored.name))
        except NotFound:
            continue  # removed since the listing
        except Corrupt as error:
            damaged.append(error)
    return sorted(found, key=lambda one: (one.created_at, one.recipient_id)), damaged


def open_by_passphrase(storage: Storage, passphrase: str) -> bytes:
    """Return the root key.

    Raises Denied, kind `passphrase-wrong`; NotFound, kind `passphrase-none`, where no passphrase
    was ever added; Corrupt where all that were are damaged.
    """
    found, damaged = list_recipients(storage)
    for one in found[:RECIPIENTS_MAX]:
        root = _unwrap(one, passphrase)
        if root is not None:
            return root
    if found:
        raise Denied(
            "the passphrase does not open the repository",
            hint="mind upper and lower case; the recovery key opens it too",
            kind="passphrase-wrong",
        )
    if damaged:
        raise damaged[0]
    raise NotFound(
        "the repository has no passphrase",
        hint="open it by its recovery key; `sendense repository key add` adds a passphrase",
        kind="passphrase-none",
    )


def remove(storage: Storage, recipient_id: str) -> Recipient:
    """Remove a recipient. Raises NotFound, kind `recipient-unknown`."""
    for one in list_recipients(storage)[0]:
        if one.recipient_id == recipient_id:
            storage.delete(one.name)
            return one
    raise NotFound(
        f"the repository has no recipient {recipient_id}",
        hint="`sendense repository key list` shows them",
        kind="recipient-unknown",
        recipient_id=recipient_id,
    )


def check_passphrase(passphrase: str) -> None:
    """Raise Invalid, kind `passphrase-invalid`, for one that is too short, or absurdly long."""
    if not PASSPHRASE_LENGTH_MIN <= len(passphrase) <= PASSPHRASE_LENGTH_MAX:
        raise Invalid(
            f"a passphrase has {PASSPHRASE_LENGTH_MIN} to {PASSPHRASE_LENGTH_MAX} characters",
            hint="four or five random words are easy to keep and hard to guess",
            kind="passphrase-invalid",
        )


def _get(storage: Storage, name: str) -> Recipient:
    body = format.get_frame(Keyed(storage, UNSEALED), Frame.KEY_WRAP, name)
    found = record.load(Recipient, body, name=name)
    if found.name != name:
        raise format.corrupt(name, f"it is the wrap {found.name}")
    for what in _list_oddities(found):
        raise format.corrupt(name, f"its {what} is impossible")
    return found


def _list_oddities(found: Recipient) -> Iterator[str]:
    """Yield what no wrap of ours has."""
    checks = {
        "domain": len(found.domain) == DOMAIN_LENGTH,
        "salt": len(found.salt) == SALT_LENGTH,
        "number of iterations": 1 <= found.iterations <= ITERATIONS_MAX,
        "number of lanes": 1 <= found.lanes <= LANES_MAX,
        "memory": 8 * found.lanes <= found.memory_kib <= MEMORY_KIB_MAX,
        "wrapped key": len(found.wrapped) == WRAPPED_LENGTH,
    }
    yield from (what for what, fine in checks.items() if not fine)


def _derive(one: Recipient, passphrase: str) -> bytes:
    """Return the wrapping key; a passphrase is the same however its accents are encoded."""
    return Argon2id(
        salt=one.salt,
        length=ROOT_LENGTH,
        iterations=one.iterations,
        lanes=one.lanes,
        memory_cost=one.memory_kib,
    ).derive(unicodedata.normalize("NFC", passphrase).encode())


def _unwrap(one: Recipient, passphrase: str) -> bytes | None:
    try:
        root = keywrap.aes_key_unwrap(_derive(one, passphrase), one.wrapped)
    except keywrap.InvalidUnwrap:
        return None
    return root if keys.derive_domain(root) == one.domain else None
