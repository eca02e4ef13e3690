"""Exports of a hub: what it knows beyond backups, sealed with its own key, in a repository.

    hub/<domain of the hub's key>/<time>-<token>/part-<k>   rows, compressed
    hub/<domain of the hub's key>/<time>-<token>/head       says that it is whole; put last

The repository's own key opens none of it, and the hub's needs no key of the repository's. See
docs/format.md, "Exports of a hub".
"""

import contextlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import blake3
import zstandard

from sendense.core.errors import Corrupt, NotFound
from sendense.core.ids import IdSource
from sendense.repository import format, record
from sendense.repository.format import Frame
from sendense.repository.keyed import Keyed, KeyedStorage
from sendense.repository.keys import DomainKeys
from sendense.repository.storage.base import Storage

FOLDER = "hub/"
HEAD = "head"
TOKEN_LENGTH = 8
LEVEL = 9  # rows of text: a tenth of their size, at 50 MB/s
PART_BYTES = 4 << 20  # of rows before compression; a part ends with the row that reaches it
PART_BYTES_MAX = 16 << 20  # far above a part with the longest log of a job in its last row
HASH_BYTES = 32
KEPT = 14  # two weeks, once a day
UNFINISHED_AGE_MAX = timedelta(days=1)  # of parts without a head: no export lasts as long

Row = tuple[str, dict[str, Any]]  # a table, and a row of it as JSON values


@dataclass(frozen=True, slots=True)
class Head:
    """An export that is whole.

    Attributes:
        hub: the hub's name. version: of the program that wrote it.
        revision: of the catalog's schema. tables: how many rows of each there are.
        parts: BLAKE3 hashes of the stored parts in order, one behind the other.
        more: what is no row: keys, settings.
    """

    hub: str
    at: datetime
    version: str
    revision: str
    tables: Mapping[str, Any]
    parts: bytes
    more: Mapping[str, Any]

    @property
    def part_count(self) -> int:
        """How many parts it has."""
        return len(self.parts) // HASH_BYTES


@dataclass(frozen=True, slots=True)
class Export:
    """An export and the folder that it lies in."""

    folder: str
    head: Head


@dataclass(frozen=True, slots=True)
class About:
    """What a head says beside what `put` finds out itself."""

    hub: str
    at: datetime
    version: str
    revision: str
    more: Mapping[str, Any]


def open_place(storage: Storage, root_key: bytes) -> KeyedStorage:
    """Return a repository's storage as the holder of a hub's key sees it."""
    return Keyed(storage, DomainKeys(root_key))


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows on their way into an export, compressed, and how many there are by table."""

    parts: tuple[bytes, ...]
    counts: dict[str, int]


def compress(rows: Iterable[Row]) -> Packed:
    """Take all rows into memory, compressed: a hundred bytes for each.

    So that a database's view need not last while an object store takes its time.
    """
    counts: dict[str, int] = {}
    return Packed(tuple(_cut(rows, counts)), counts)


def put(place: KeyedStorage, about: About, packed: Packed, ids: IdSource) -> Export:
    """Store an export. Without its head, as a crash leaves it, it does not exist.

    Removes what crashes left, and of whole exports of this hub's key all but the newest.
    """
    stamp = f"{about.at.astimezone(UTC):%Y%m%dT%H%M%SZ}-{ids.token(TOKEN_LENGTH)}"
    folder = f"{_folder(place)}{stamp}/"
    hashes = []
    for number, part in enumerate(packed.parts):
        sealed = format.seal_frame(place.keys, Frame.HUB_PART, part)
        place.put_if_absent(_part_name(folder, number), sealed)
        hashes.append(blake3.blake3(sealed).digest())
    head = Head(
        hub=about.hub,
        at=about.at,
        version=about.version,
        revision=about.revision,
        tables=packed.counts,
        parts=b"".join(hashes),
        more=about.more,
    )
    format.put_frame(place, Frame.HUB_EXPORT, folder + HEAD, record.dump(head))
    _prune(place, about.at)
    return Export(folder, head)


def scan(place: KeyedStorage) -> tuple[list[Export], list[Corrupt]]:
    """Return the exports that this key opens, oldest first, and the errors of damaged ones."""
    found, damaged = [], []
    for folder, names in _list_folders(place).items():
        if HEAD not in names:
            continue
        name = folder + HEAD
        try:
            head = record.load(Head, format.get_frame(place, Frame.HUB_EXPORT, name), name=name)
            if len(head.parts) % HASH_BYTES:
                raise format.corrupt(name, "a hash in it is cut off")
        except NotFound:
            continue  # removed since the listing
        except Corrupt as error:
            damaged.append(error)
            continue
        found.append(Export(folder, head))
    return sorted(found, key=lambda one: (one.head.at, one.folder)), damaged


def count_of_other_keys(place: KeyedStorage) -> int:
    """Return how many exports there are that another hub's key opens."""
    own = _folder(place)
    return sum(
        stored.name.endswith("/" + HEAD) and not stored.name.startswith(own)
        for stored in place.list_objects(FOLDER)
    )


def find_damaged(storage: Storage) -> Iterator[Corrupt]:
    """Yield the errors of objects of all hubs that are not what was put, as far as no key tells."""
    for stored in storage.list_objects(FOLDER):
        try:
            format.require_intact(storage, stored.name)
        except NotFound:
            continue  # removed since the listing
        except Corrupt as error:
            yield error


def read(place: KeyedStorage, export: Export) -> Iterator[Row]:
    """Yield the rows of an export. Raises Corrupt where a part is damaged, another's or missing."""
    for number in range(export.head.part_count):
        name = _part_name(export.folder, number)
        try:
            sealed = place.get(name)
        except NotFound:
            raise format.corrupt(name, "it is not there") from None
        wanted = export.head.parts[number * HASH_BYTES : (number + 1) * HASH_BYTES]
        if blake3.blake3(sealed).digest() != wanted:
            raise format.corrupt(name, "it is not the part that was put")
        part = format.open_frame(place.keys, Frame.HUB_PART, sealed, name=name)
        yield from _split(part, name)


def _cut(rows: Iterable[Row], counts: dict[str, int]) -> Iterator[bytes]:
    """Yield rows as compressed parts, and count them by table."""
    lines: list[bytes] = []
    size = 0
    for table, row in rows:
        counts[table] = counts.get(table, 0) + 1
        lines.append(format.dump_json({"table": table, "row": row}))
        size += len(lines[-1])
        if size >= PART_BYTES:
            yield _compress(lines)
            lines, size = [], 0
    if lines:
        yield _compress(lines)


def _compress(lines: list[bytes]) -> bytes:
    return zstandard.ZstdCompressor(level=LEVEL).compress(b"\n".join(lines))


def _split(part: bytes, name: str) -> Iterator[Row]:
    """Yield the rows of a part, or raise Corrupt."""
    try:
        size = zstandard.frame_content_size(part)  # before anything of that size is allocated
        if not 0 < size <= PART_BYTES_MAX:
            raise format.corrupt(name, f"its rows are said to have {size} bytes")
        plain = zstandard.ZstdDecompressor().decompress(part, allow_extra_data=False)
        for line in io.BytesIO(plain):
            one = json.loads(line)
            yield str(one["table"]), dict(one["row"])
    except (zstandard.ZstdError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise format.corrupt(name, f"its rows do not parse: {error}") from error


def _prune(place: KeyedStorage, now: datetime) -> None:
    """Remove the oldest exports, head first, and parts that a crash left without a head."""
    folders = _list_folders(place)
    whole = sorted(folder for folder, names in folders.items() if HEAD in names)
    for folder in whole[:-KEPT]:
        _remove(place, folder, folders[folder])
    for folder in folders.keys() - set(whole):
        began = _began(folder)
        if began is None or now - began > UNFINISHED_AGE_MAX:
            _remove(place, folder, folders[folder])


def _remove(place: KeyedStorage, folder: str, names: list[str]) -> None:
    for leaf in sorted(names):  # the head sorts before the parts
        with contextlib.suppress(NotFound):
            place.delete(folder + leaf)


def _list_folders(place: KeyedStorage) -> dict[str, list[str]]:
    """Return what lies in the folder of each export of this key."""
    own = _folder(place)
    found: dict[str, list[str]] = {}
    for stored in place.list_objects(own):
        folder, _, leaf = stored.name.rpartition("/")
        if folder + "/" != own:
            found.setdefault(folder + "/", []).append(leaf)
    return found


def _began(folder: str) -> datetime | None:
    stamp = folder.rstrip("/").rpartition("/")[2].partition("-")[0]
    try:
        return datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None


def _folder(place: KeyedStorage) -> str:
    return f"{FOLDER}{place.keys.domain.hex()}/"


def _part_name(folder: str, number: int) -> str:
    return f"{folder}part-{number:06d}"


assert HEAD < "part-"
