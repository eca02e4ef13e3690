"""Disk images with real content, made the same way every time and kept for the next run.

A raw image with an ext4 file system: Debian packages (see packages.py) up to a given size, and as
much free space again. File system ids and times are fixed.
"""

import hashlib
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import BinaryIO

from benchmarks import packages
from sendense.core import units
from sendense.repository import chunk

UUID = "5e4d0000-0000-4000-8000-000000000001"
CHANGE_BYTES = 64 * units.KIB
CHUNK_BYTES = chunk.SIZE_DEFAULT
NOISE, ZEROS, ONE_BYTE = "noise", "zeros, written", "one byte in each chunk"
MARK = "v3"  # changes when the recipe does, so that old images are not taken for new ones


def make_image(folder: Path, *, content_bytes: int) -> Path:
    """Return an image with about that much real data, half of it free.

    Made once for each size, and again only where it was removed. What it was made of, names and
    versions, lies beside it.
    """
    path = folder / f"real-{content_bytes // units.MIB}-{MARK}.raw"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    chosen = packages.choose(bytes_max=content_bytes)
    tree = folder / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    packages.unpack(chosen, tree)
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    command = ["mkfs.ext4", "-q", "-F", "-U", UUID, "-E", f"hash_seed={UUID},nodiscard"]
    command += ["-d", str(tree), str(partial), f"{2 * content_bytes // units.KIB}k"]
    environment = {**os.environ, "E2FSPROGS_FAKE_TIME": "1700000000"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    _list_of(path).write_text("".join(f"{one.name} {one.version}\n" for one in chosen))
    partial.rename(path)
    shutil.rmtree(tree)
    return path


def describe_image(path: Path) -> str:
    """Return what an image of `make_image` was made of, in a few words."""
    listed = _list_of(path).read_bytes()
    digest = hashlib.sha256(listed).hexdigest()[:8]
    return f"{len(listed.splitlines())} Debian packages ({digest})"


def _list_of(path: Path) -> Path:
    return path.with_suffix(".packages")


def make_extreme(path: Path, kind: str, *, size: int) -> None:
    """Make a disk of which every byte is written, with one of the three kinds of content."""
    chooser = random.Random(kind)
    with path.open("wb") as disk:
        for _ in range(size // CHUNK_BYTES):
            data = bytearray(CHUNK_BYTES)
            if kind == NOISE:
                data[:] = chooser.randbytes(CHUNK_BYTES)
            elif kind == ONE_BYTE:
                data[chooser.randrange(CHUNK_BYTES)] = chooser.randrange(1, 256)
            disk.write(data)
        disk.flush()
        os.fsync(disk.fileno())


def make_wide(path: Path, image: Path, *, size: int, places: int, seed: int) -> None:
    """Make a sparse disk with real content in so many chunks, scattered all over it.

    Each is of an image's data, stamped, so that no two are equal.
    """
    chooser = random.Random(seed)
    with path.open("wb") as disk, image.open("rb") as source:
        disk.truncate(size)
        for index in sorted(chooser.sample(range(size // CHUNK_BYTES), places)):
            disk.seek(index * CHUNK_BYTES)
            disk.write(_stamped(source, CHUNK_BYTES, chooser))
        disk.flush()
        os.fsync(disk.fileno())


def change_wide(path: Path, image: Path, *, seed: int) -> list[tuple[int, int]]:
    """Overwrite a place of 64 KiB in each chunk with data; return them as (offset, length)."""
    chooser = random.Random(seed)
    changes = []
    with path.open("r+b") as disk, image.open("rb") as source:
        for index in _list_data_chunks(disk):
            offset = (
                index * CHUNK_BYTES + chooser.randrange(CHUNK_BYTES // CHANGE_BYTES) * CHANGE_BYTES
            )
            disk.seek(offset)
            disk.write(_stamped(source, CHANGE_BYTES, chooser))
            changes.append((offset, CHANGE_BYTES))
        disk.flush()
        os.fsync(disk.fileno())
    return changes


def change_places(path: Path, image: Path, *, places: int, seed: int) -> list[tuple[int, int]]:
    """Overwrite so many aligned places of 64 KiB, in chunks that hold data; return them."""
    chooser = random.Random(seed)
    per_chunk = CHUNK_BYTES // CHANGE_BYTES
    with path.open("r+b") as disk, image.open("rb") as source:
        found = [
            index * per_chunk + at for index in _list_data_chunks(disk) for at in range(per_chunk)
        ]
        changes = [
            (place * CHANGE_BYTES, CHANGE_BYTES) for place in sorted(chooser.sample(found, places))
        ]
        for offset, length in changes:
            disk.seek(offset)
            disk.write(_stamped(source, length, chooser))
        disk.flush()
        os.fsync(disk.fileno())
    return changes


def _stamped(source: BinaryIO, length: int, chooser: random.Random) -> bytes:
    """Return data from anywhere in a file that is not all zero, unlike any other."""
    size = os.fstat(source.fileno()).st_size
    data = bytes(length)
    while data.count(0) > length // 2:
        source.seek(chooser.randrange(size // length) * length)
        data = source.read(length)
    return chooser.randbytes(16) + data[16:]


def _list_data_chunks(disk: BinaryIO) -> list[int]:
    found: set[int] = set()
    end = os.fstat(disk.fileno()).st_size
    place = 0
    while place < end:
        try:
            start = os.lseek(disk.fileno(), place, os.SEEK_DATA)
        except OSError:  # nothing but a hole follows
            break
        place = os.lseek(disk.fileno(), start, os.SEEK_HOLE)
        found.update(range(start // CHUNK_BYTES, -(-place // CHUNK_BYTES)))
    return sorted(found)
