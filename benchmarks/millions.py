"""Repositories with millions of chunks, made at once with the product's own code, and kept.

Their index is real: sealed segments that a committed backup names. The packs that it leads to are
not there, which nobody notices who opens the repository, looks up chunks or backs up new ones.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks import contenders, content, garbage, ours
from benchmarks.ours import KEY
from sendense.core import units
from sendense.repository import format as framing
from sendense.repository import index, pack, record, segments, session
from sendense.repository.chunk import ID_LENGTH, ZERO_ID
from sendense.repository.format import Frame
from sendense.repository.index import Ids, Table
from sendense.repository.keys import WRAPPED_LENGTH
from sendense.repository.manifest import (
    DiskIdentity,
    DiskRecord,
    DiskTotals,
    ManifestDraft,
    Mode,
    VmRecord,
)
from sendense.repository.pack import Kind, PackRef
from sendense.repository.repository import Repository
from sendense.repository.session import Done

BACKUP = "millions"
STORED_BYTES = 170 * units.KIB  # of a chunk of 256 KiB
MARK = "v1"  # changes when the recipe does, so that old repositories are not taken for new ones


def make(cache: Path, *, chunks: int) -> Path:
    """Return a repository with so many random chunks in its index. Made once; link it to use it."""
    folder = cache / f"millions-{chunks}-{MARK}"
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        contenders.remove(partial)
        with ours.create_repository(partial) as place:
            _write(place, chunks)
        partial.rename(folder)
    return folder


def make_full_disk(cache: Path, *, chunks: int, size: int) -> Path:
    """Return such a repository with a backup `vm0-0` of a disk without holes or equal chunks.

    Its map is as large as one of that size can be.
    """
    folder = cache / f"disk-{size // units.GIB}-{MARK}"
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        contenders.link(make(cache, chunks=chunks), partial)
        with ours.open_repository(partial) as place:
            _write_full_disk(place, size)
        partial.rename(folder)
    return folder


def list_ids(place: Repository) -> Iterator[bytes]:
    """Yield the ids that the index has."""
    for segment in place.segments.counted:
        every = segment.table.ids.to_bytes()
        yield from (every[at : at + ID_LENGTH] for at in range(0, len(every), ID_LENGTH))


def _write(place: Repository, chunks: int) -> None:
    """Put the segments, and commit a backup of a disk of zeros that names them."""
    place.begin_session(BACKUP)
    dice = np.random.default_rng(seed=chunks)
    names: list[str] = []
    for start in range(0, chunks, index.ENTRIES_MAX):
        table, packs = _make_table(dice, min(index.ENTRIES_MAX, chunks - start))
        names.append(segments.segment_name(BACKUP, KEY, f"bench.1.{len(names) + 1}"))
        sealed = index.seal_segment(table, packs, session_id=BACKUP, keys=place.storage.keys)
        place.storage.put_if_absent(names[-1], sealed)
    done = Done(BACKUP, _record_zeros(place.chunk_size), tuple(names))
    name = session.done_name(place.storage.keys, BACKUP, KEY, BACKUP)
    framing.put_frame(place.storage, Frame.DONE, name, record.dump(done))
    _commit(place, BACKUP)


def _make_table(dice: np.random.Generator, count: int) -> tuple[Table, list[PackRef]]:
    each = garbage.CHUNKS_PER_PACK
    size = pack.HEADER.size + each * STORED_BYTES
    numbers = np.arange(count, dtype=np.uint32)
    places = np.empty((count, 4), dtype=np.uint32)
    places[:, 0] = numbers // each
    places[:, 1] = pack.HEADER.size + numbers % each * STORED_BYTES
    places[:, 2] = STORED_BYTES
    places[:, 3] = content.CHUNK_BYTES
    packs = [
        PackRef(dice.bytes(ID_LENGTH), Kind.DATA, size, dice.bytes(WRAPPED_LENGTH))
        for _ in range(-(-count // each))
    ]
    ids = Ids.from_bytes(dice.bytes(count * ID_LENGTH))
    return index.merge_tables([Table(ids, places)]), packs


def _record_zeros(size: int) -> DiskRecord:
    return DiskRecord(
        key=KEY,
        index=0,
        label="disk",
        uuid="uuid",
        size_bytes=size,
        chunk_size=size,
        root=ZERO_ID,
        moment=BACKUP,
        lineage="",
        change_id=None,
        parent_backup_id=None,
        mode=Mode.FULL,
        mode_reason="",
        bytes_read=0,
        bytes_new=0,
        bytes_deduplicated=0,
        bytes_stored=0,
    )


def _write_full_disk(place: Repository, size: int) -> None:
    name = "vm0-0"  # what garbage.write takes for the parent of its turn 1
    place.begin_session(name)
    disk = DiskIdentity(KEY, 0, "disk", "disk-0", size)
    with place.open_disk_writer(name, disk, moment=name) as writer:
        for number, chunk_id in zip(range(size // place.chunk_size), list_ids(place), strict=False):
            writer.put_known(number, chunk_id)
        writer.finish(DiskTotals(Mode.FULL))
    _commit(place, name)


def _commit(place: Repository, name: str) -> None:
    now = datetime.now(tz=UTC)
    vm = VmRecord("image", "bench", "source", "vm0", "vm0")
    place.commit(name, ManifestDraft(name, vm, (KEY,), name, "none", "auto", now, now))
