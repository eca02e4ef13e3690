"""The descriptor: `sendense.json`, what a repository is, written once; and its README.txt."""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from sendense.core.errors import Conflict, Corrupt, Denied, Exists, Invalid, NotFound
from sendense.repository import chunk, format, keys, record, standalone_reader
from sendense.repository.keys import UNSEALED, DomainKeys, Keys
from sendense.repository.storage.base import Storage
from sendense.repository.storage.locks import LockMode, cannot_lock

NAME = "sendense.json"
README_NAME = "README.txt"
READER_NAME = "restore.py"
FORMAT = "sendense-repository"
FEATURES = "features/"
SIZE_MAX = 64 * 1024  # a few hundred bytes in truth
ID_BYTES = 16
IMMUTABLE_DAYS_MAX = 36_500  # a century: a typing error beyond it could not be taken back
DRAFT = "draft"  # of repositories made before version 1 was final; means nothing any more
ENCRYPTION = "encryption"
KNOWN_FEATURES = frozenset({DRAFT, ENCRYPTION})

README = """\
This folder is a backup repository of Sendense, format version 1.

It describes itself: no server and no database is needed to restore from it.
  sendense repository list PATH       shows the backups in it
  sendense repository check PATH      says whether all that they need is here
  sendense repository restore PATH    writes a disk of a backup to a file
If it is encrypted, they ask for its recovery key or a passphrase.

Without the program, `python3 restore.py --help` in this folder lists and restores backups too.

Do not change, rename or remove files in it by hand. The format is described in docs/format.md of
the program's source.
"""


@dataclass(frozen=True, slots=True)
class RepositorySettings:
    """What can be chosen when a repository is created.

    Attributes:
        chunk_size: of new disks and full reads, a power of two from 128 KiB to 4 MiB.
        compression_level: 0 for off, 1 to 19 for zstd's.
        root_key: of 32 random bytes; without one, nothing is encrypted.
        immutable_days: for so long nobody deletes a new backup; 0 for not at all.
        lock_mode: how the storage itself refuses to delete what such backups need, or None.
    """

    chunk_size: int = chunk.SIZE_DEFAULT
    compression_level: int = chunk.LEVEL_DEFAULT
    root_key: bytes | None = field(default=None, repr=False)
    immutable_days: int = 0
    lock_mode: LockMode | None = None


@dataclass(frozen=True, slots=True)
class Features:
    """Mandatory features: who does not know one must not read, write or collect garbage."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    gc: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Descriptor:
    """The contents of `sendense.json`.

    Attributes:
        immutable_days, lock_mode: as in RepositorySettings.
        domain: which root key everything is sealed with, None where nothing is.
        mac: of all other fields; proves the key, and that nobody changed them.
        added: features that the repository got later, as objects of their own.
    """

    format: str
    version: int
    id: str
    features: Features
    chunk_size: int
    compression_level: int
    created_at: datetime
    immutable_days: int
    lock_mode: LockMode | None
    domain: bytes | None
    mac: bytes | None
    added: Features = field(default=Features(), metadata=record.NEVER_STORED)

    @property
    def encrypted(self) -> bool:
        """Whether a key is needed to read it."""
        return self.domain is not None


def create(
    storage: Storage, settings: RepositorySettings, *, repository_id: str, at: datetime
) -> Descriptor:
    """Make an empty repository. Of several creators at once exactly one succeeds.

    Raises Exists (kind `repository-exists`) where one is already, Conflict (kind
    `repository-folder-not-empty`) where something else is, Invalid for impossible settings, and
    whatever the storage raises where it cannot be written. Then nothing was changed.
    """
    made = Descriptor(
        format=FORMAT,
        version=format.VERSION,
        id=repository_id,
        features=Features(read=(ENCRYPTION,) if settings.root_key else ()),
        chunk_size=chunk.check_size(settings.chunk_size),
        compression_level=chunk.check_level(settings.compression_level),
        created_at=at,
        immutable_days=settings.immutable_days,
        lock_mode=settings.lock_mode,
        domain=keys.derive_domain(settings.root_key) if settings.root_key else None,
        mac=None,
    )
    if settings.root_key:
        made = replace(made, mac=_authenticate(made, settings.root_key))
    _check_immutability(storage, settings)
    top = storage.list_top()
    if NAME in top:
        raise _exists()
    if top:
        raise Conflict(
            f"the place is not empty: it holds {top[0]!r}",
            hint="choose an empty folder, or one that does not exist yet",
            kind="repository-folder-not-empty",
            found=top[0][:200],
        )
    try:
        storage.put_if_absent(NAME, record.dump(made) + b"\n")
    except Exists:
        raise _exists() from None
    storage.put_if_absent(README_NAME, README.encode())
    storage.put_if_absent(READER_NAME, Path(standalone_reader.__file__).read_bytes())
    return made


def _check_immutability(storage: Storage, settings: RepositorySettings) -> None:
    """Raise Invalid for days that cannot be meant, and where the storage cannot lock as wanted."""
    least = 1 if settings.lock_mode else 0
    if not least <= settings.immutable_days <= IMMUTABLE_DAYS_MAX:
        raise Invalid(
            f"backups cannot be immutable for {settings.immutable_days} days",
            kind="repository-immutability-invalid",
            hint=f"{least} to {IMMUTABLE_DAYS_MAX} days can be",
        )
    if settings.lock_mode is None:
        return
    locks = storage.locks()
    if locks is None:
        raise cannot_lock(settings.lock_mode, "it knows no locks", "choose another place")
    locks.require(settings.lock_mode)


def get(storage: Storage) -> Descriptor:
    """Read the descriptor.

    Raises NotFound (kind `not-a-repository`) where there is none, Invalid (kind
    `repository-version-unknown`) for a later version or feature, Corrupt for a damaged one.
    """
    try:
        size = storage.size(NAME)
        data = storage.get(NAME) if size <= SIZE_MAX else b""
    except NotFound:
        raise NotFound(
            "there is no repository here",
            hint=f"a repository has a file {NAME} at its top",
            kind="not-a-repository",
        ) from None
    value = format.load_json(data, name=NAME)
    if value.get("format") != FORMAT:
        raise NotFound(f"{NAME} is not a repository's", kind="not-a-repository")
    if value.get("version") != format.VERSION:
        raise _unknown(f"version {str(value.get('version'))[:40]}")
    try:
        found = record.from_json(Descriptor, value, name=NAME)
    except Corrupt:
        if b'"draft"' in data:
            raise _outdated() from None
        raise
    found = replace(found, added=_list_added(storage))
    _require_known(found.features.read + found.added.read, "")
    if found.encrypted != (ENCRYPTION in found.features.read):
        raise format.corrupt(NAME, "its features and its domain contradict each other")
    try:
        chunk.check_size(found.chunk_size)
        chunk.check_level(found.compression_level)
    except Invalid as error:
        raise Corrupt(error.message, kind="object-corrupt", name=NAME) from error
    return found


def unlock(found: Descriptor, root_key: bytes | None) -> Keys:
    """Return the keys of a repository.

    Args:
        found: its descriptor.
        root_key: the key it was created with, None for a repository without encryption.

    Raises Denied, kind `repository-locked` without a key and `repository-key-wrong` with that of
    another repository; Invalid, kind `repository-not-encrypted`, with a key where there is none;
    Corrupt where the descriptor was changed.
    """
    if found.domain is None:
        if root_key is not None:
            raise Invalid(
                "the repository says that it is not encrypted, but a key was given for it",
                hint="it is another repository than you think, or somebody has replaced its"
                f" {NAME}",
                kind="repository-not-encrypted",
            )
        return UNSEALED
    if root_key is None:
        raise Denied(
            "the repository is encrypted, and no key was given",
            hint="give its recovery key or a passphrase",
            kind="repository-locked",
            domain=found.domain.hex(),
        )
    if keys.derive_domain(root_key) != found.domain:
        raise Denied(
            "the key is that of another repository",
            hint=f"wanted is the key whose domain is {found.domain.hex()}",
            kind="repository-key-wrong",
            domain=found.domain.hex(),
        )
    if not hmac.compare_digest(_authenticate(found, root_key), found.mac or b""):
        raise format.corrupt(NAME, "somebody has changed it")
    return DomainKeys(root_key)


def _authenticate(found: Descriptor, root_key: bytes) -> bytes:
    return keys.authenticate_descriptor(root_key, record.dump(replace(found, mac=None)))


def require_writable(found: Descriptor) -> None:
    """Raise Invalid where the repository has features that this version must not write with."""
    _require_known(found.features.write + found.added.write, " for writing")


def require_collectable(found: Descriptor) -> None:
    """Raise Invalid where this version must not collect the repository's garbage."""
    require_writable(found)
    _require_known(found.features.gc + found.added.gc, " for collecting garbage")


def _list_added(storage: Storage) -> Features:
    """Return the features in `features/`; one of no known kind is mandatory for reading."""
    names = [stored.name.removeprefix(FEATURES) for stored in storage.list_objects(FEATURES)]

    def of(kind: str) -> tuple[str, ...]:
        return tuple(name.removeprefix(kind) for name in names if name.startswith(kind))

    write, gc = of("write."), of("gc.")
    others = [name for name in names if not name.startswith(("write.", "gc."))]
    return Features(tuple(name.removeprefix("read.") for name in others), write, gc)


def _require_known(names: Sequence[str], what_for: str) -> None:
    strange = sorted(set(names) - KNOWN_FEATURES)
    if strange:
        raise _unknown(f"feature {strange[0][:40]!r}{what_for}")


def _outdated() -> Invalid:
    return Invalid(
        f"the repository's {NAME} is of an early draft of the format, or damaged",
        hint="restore from it by the program's version that wrote it, and begin a new repository",
        kind="repository-version-unknown",
    )


def _exists() -> Exists:
    return Exists(
        "there is a repository here already",
        hint="open it, or choose another folder",
        kind="repository-exists",
    )


def _unknown(what: str) -> Invalid:
    return Invalid(
        f"the repository has {what}, which this program does not know",
        hint="use the program's version that wrote it, or a later one",
        kind="repository-version-unknown",
    )
