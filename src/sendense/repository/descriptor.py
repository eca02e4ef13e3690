"""The descriptor: `sendense.json`, what a repository is, written once; and its README.txt."""

from dataclasses import dataclass
from datetime import datetime

from sendense.core.errors import Conflict, Corrupt, Exists, Invalid, NotFound
from sendense.repository import chunk, format, record
from sendense.repository.storage.base import Storage

NAME = "sendense.json"
README_NAME = "README.txt"
FORMAT = "sendense-repository"
SIZE_MAX = 64 * 1024  # a few hundred bytes in truth
ID_BYTES = 16
DRAFT = "draft"  # version 1 may still change; goes when the format is frozen
KNOWN_FEATURES = frozenset({DRAFT})

README = """\
This folder is a backup repository of Sendense, format version 1 (draft).

It describes itself: no server and no database is needed to restore from it.
  sendense repository list PATH       shows the backups in it
  sendense repository check PATH      says whether all that they need is here
  sendense repository restore PATH    writes a disk of a backup to a file

Do not change, rename or remove files in it by hand. The format is described in docs/format.md of
the program's source.
"""


@dataclass(frozen=True, slots=True)
class RepositorySettings:
    """What can be chosen when a repository is created.

    Attributes:
        chunk_size: of new disks and full reads, a power of two from 128 KiB to 4 MiB.
        compression_level: 0 for off, 1 to 19 for zstd's.
    """

    chunk_size: int = chunk.SIZE_DEFAULT
    compression_level: int = chunk.LEVEL_DEFAULT


@dataclass(frozen=True, slots=True)
class Features:
    """Mandatory features: who does not know one must not read, write or collect garbage."""

    read: tuple[str, ...]
    write: tuple[str, ...]
    gc: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Descriptor:
    """The contents of `sendense.json`."""

    format: str
    version: int
    id: str
    features: Features
    chunk_size: int
    compression_level: int
    created_at: datetime


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
        features=Features(read=(DRAFT,), write=(), gc=()),
        chunk_size=chunk.check_size(settings.chunk_size),
        compression_level=chunk.check_level(settings.compression_level),
        created_at=at,
    )
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
    return made


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
    found = record.from_json(Descriptor, value, name=NAME)
    strange = sorted(set(found.features.read) - KNOWN_FEATURES)
    if strange:
        raise _unknown(f"feature {strange[0][:40]!r}")
    try:
        chunk.check_size(found.chunk_size)
        chunk.check_level(found.compression_level)
    except Invalid as error:
        raise Corrupt(error.message, kind="object-corrupt", name=NAME) from error
    return found


def require_writable(found: Descriptor) -> None:
    """Raise Invalid where the repository has features that this version must not write with."""
    strange = sorted(set(found.features.write) - KNOWN_FEATURES)
    if strange:
        raise _unknown(f"feature {strange[0][:40]!r} for writing")


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
