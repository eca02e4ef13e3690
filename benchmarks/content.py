"""Disk images with real content, made the same way every time and kept for the next run.

A raw image with an ext4 file system: a copy of this machine's /usr in alphabetical order up to a
given size, and as much free space again. File system ids and times are fixed.
"""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from sendense.core import units

SOURCE = Path("/usr")
FILE_BYTES_MAX = 64 * units.MIB  # one huge file would be most of a small image
FILES_MAX = 200_000
UUID = "5e4d0000-0000-4000-8000-000000000001"
CHANGE_BYTES = 64 * units.KIB
MARK = "v2"  # changes when the recipe does, so that old images are not taken for new ones


def make_image(folder: Path, *, content_bytes: int) -> Path:
    """Return an image with about that much real data, half of it free; made once."""
    path = folder / f"real-{content_bytes // units.MIB}-{MARK}.raw"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    tree = folder / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    copy_tree(SOURCE, tree, bytes_max=content_bytes)
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    command = ["mkfs.ext4", "-q", "-F", "-U", UUID, "-E", f"hash_seed={UUID},nodiscard"]
    command += ["-d", str(tree), str(partial), f"{2 * content_bytes // units.KIB}k"]
    environment = {**os.environ, "E2FSPROGS_FAKE_TIME": "1700000000"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    partial.rename(path)
    shutil.rmtree(tree)
    return path


def copy_tree(source: Path, target: Path, *, bytes_max: int) -> None:
    """Copy regular files in alphabetical order until the size is reached."""
    copied = 0
    for number, path in enumerate(list_files(source)):
        size = path.stat().st_size
        if copied + size > bytes_max or number >= FILES_MAX:
            return
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
        copied += size


def list_files(folder: Path) -> Iterator[Path]:
    """Yield readable regular files below a folder, in order, without following links."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(parent) / name
            regular = path.is_file() and not path.is_symlink() and os.access(path, os.R_OK)
            if regular and 0 < path.stat().st_size <= FILE_BYTES_MAX:
                yield path


def scatter_changes(path: Path, *, count: int, seed: int) -> list[tuple[int, int]]:
    """Overwrite so many places of 64 KiB within the data and return them as (offset, length).

    The new bytes compress like the old ones: they are taken from elsewhere in the image and
    stamped, so that no chunk of them is in the repository already.
    """
    chooser = random.Random(seed)
    size = path.stat().st_size
    places = sorted(chooser.sample(range(size // CHANGE_BYTES), count))
    with path.open("r+b") as image:
        for place in places:
            image.seek(chooser.randrange(size // CHANGE_BYTES) * CHANGE_BYTES)
            data = bytearray(image.read(CHANGE_BYTES))
            data[:16] = chooser.randbytes(16)
            image.seek(place * CHANGE_BYTES)
            image.write(data)
        image.flush()
        os.fsync(image.fileno())
    return [(place * CHANGE_BYTES, CHANGE_BYTES) for place in places]
