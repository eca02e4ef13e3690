"""Disks for the guest, made by an ordinary user: no loop devices, no mounting."""

import struct
import subprocess
import tempfile
from pathlib import Path

from sendense.core.units import KIB, MIB, SECTOR

PARTITION_START = 1 * MIB  # where every tool of the last fifteen years puts the first one
_LINUX = 0x83
_MKFS = "/usr/sbin/mkfs.ext4"  # /usr/sbin is not in an ordinary user's PATH


def make_empty(path: Path, size_bytes: int, *, image_format: str) -> None:
    """Create an image without data in the format `raw` or `qcow2`."""
    _run("qemu-img", "create", "-q", "-f", image_format, str(path), str(size_bytes))


def make_partitioned(path: Path, size_bytes: int, files: Path, *, image_format: str) -> None:
    """Create an image with a partition table and one ext4 partition that holds a folder's files."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        raw = Path(folder) / "disk.raw"
        with raw.open("wb") as file:
            file.truncate(size_bytes)
            file.write(_partition_table(size_bytes))
        blocks = (size_bytes - PARTITION_START) // (4 * KIB)
        _run(
            _MKFS, "-q", "-F", "-b", "4096", "-d", str(files),
            "-E", f"offset={PARTITION_START},nodiscard", str(raw), str(blocks),
        )  # fmt: skip
        _run("qemu-img", "convert", "-f", "raw", "-O", image_format, str(raw), str(path))


def make_filesystem(path: Path, size_bytes: int, *, image_format: str) -> None:
    """Create an image with an empty ext4 on the whole disk."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        raw = Path(folder) / "disk.raw"
        with raw.open("wb") as file:
            file.truncate(size_bytes)
        _run(_MKFS, "-q", "-F", "-b", "4096", str(raw))
        _run("qemu-img", "convert", "-f", "raw", "-O", image_format, str(raw), str(path))


def copy_truth(path: Path, target: Path, *, image_format: str) -> None:
    """Copy a paused guest's disk to a raw file, past every part of the product."""
    # -U: QEMU holds the image's lock; the caller has paused the guest, so nothing moves.
    _run("qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", str(path), str(target))


def _partition_table(size_bytes: int) -> bytes:
    """Return a master boot record with one Linux partition from `PARTITION_START` to the end."""
    start = PARTITION_START // SECTOR
    count = size_bytes // SECTOR - start
    chs = b"\xfe\xff\xff"  # "too large for cylinders, heads and sectors": look at the LBA fields
    entry = struct.pack("<B3sB3sII", 0, chs, _LINUX, chs, start, count)
    return bytes(440) + b"sdns\0\0" + entry + bytes(48) + b"\x55\xaa"


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
