"""What one image file or block device is: size, identity, and every file it is made of."""

import json
import os
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sendense.connectors.config import PathPolicy
from sendense.connectors.image.config import QCOW2, RAW, ImageDisk
from sendense.core import units
from sendense.core.errors import Conflict, Denied, Invalid, NotFound, SendenseError, Unavailable

QCOW2_MAGIC = b"QFI\xfb"
BACKING_FILES_MAX = 64  # deeper chains are a mistake; each costs an open file
INFO_SECONDS_MAX = 30.0  # qemu-img reads some headers; a dead NFS server hangs for ever


@dataclass(frozen=True, slots=True)
class Image:
    """An image that can be read.

    Attributes:
        path: with all links resolved.
        stamp: changes when one of its files was written: sizes and times of all of them.
    """

    path: Path
    image_format: str
    size_bytes: int
    stamp: str


def inspect(disk: ImageDisk, resolve: PathPolicy, *, shared: bool = False) -> Image:
    """Look at an image. Changes nothing and trusts nothing in it.

    A qcow2 header is written by whoever had the image: each backing file and data file it names
    must be in an allowed place too.

    Args:
        disk: as configured.
        resolve: says which places are allowed.
        shared: only look, as discovery does; else an image that another program writes, such as a
            running VM, is refused (Conflict, kind `image-in-use`).

    Raises NotFound, Denied, Invalid, Conflict or Unavailable.
    """
    path = resolve(disk.path)
    facts = _look(path)
    if disk.image_format == QCOW2:
        return _inspect_qcow2(path, resolve, shared=shared)
    if not disk.stated and not stat.S_ISBLK(facts.st_mode) and _starts_like_qcow2(path):
        raise Invalid(
            f"image {path} starts like qcow2 but no format is stated",
            hint='write the disk as {"path": …, "format": "qcow2"}, or "raw" if it is one',
            kind="image-format-unclear",
        )
    size = _size(path, facts)
    if size == 0 or size % units.SECTOR:
        raise Invalid(
            f"image {path} is {size} bytes long, not a positive multiple of {units.SECTOR}",
            kind="image-size-odd",
        )
    return Image(path, RAW, size, _stamp([path]))


def _look(path: Path) -> os.stat_result:
    try:
        facts = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"image {path} does not exist", kind="image-missing") from error
    except PermissionError as error:
        raise Denied(f"image {path} may not be read", kind="image-denied") from error
    except OSError as error:
        raise Unavailable(f"image {path}: {error.strerror}", kind="source-silent") from error
    if not (stat.S_ISREG(facts.st_mode) or stat.S_ISBLK(facts.st_mode)):
        raise Invalid(f"image {path} is neither a file nor a block device", kind="image-broken")
    return facts


def _size(path: Path, facts: os.stat_result) -> int:
    if stat.S_ISREG(facts.st_mode):
        return facts.st_size
    with _open(path) as descriptor:
        return descriptor.seek(0, os.SEEK_END)


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except PermissionError as error:
        raise Denied(f"image {path} may not be read", kind="image-denied") from error
    except OSError as error:
        raise Unavailable(f"image {path}: {error.strerror}", kind="source-silent") from error


def _starts_like_qcow2(path: Path) -> bool:
    with _open(path) as file:
        return file.read(len(QCOW2_MAGIC)) == QCOW2_MAGIC


def _inspect_qcow2(path: Path, resolve: PathPolicy, *, shared: bool) -> Image:
    """Walk down the chain one header at a time, so that nothing is opened before it is allowed."""
    files = [path]
    image_format = QCOW2
    size: int | None = None
    current: Path | None = path
    while current is not None:
        _look(current)
        info = _ask_qemu_img(current, image_format, shared=shared)
        size = int(info["virtual-size"]) if size is None else size
        data_file = info.get("format-specific", {}).get("data", {}).get("data-file")
        if data_file is not None:
            files.append(_allow(data_file, current, resolve))
        backing = info.get("full-backing-filename") or info.get("backing-filename")
        if backing is None:
            break
        image_format = info.get("backing-filename-format") or ""
        if image_format not in {RAW, QCOW2}:
            raise Invalid(
                f"image {current} does not say the format of its backing file",
                hint="qemu-img rebase -u -F FORMAT -b FILE IMAGE writes it down",
                kind="image-format-unclear",
            )
        current = _allow(backing, current, resolve)
        if len(files) >= BACKING_FILES_MAX or current in files:
            raise Invalid(
                f"image {path} has too deep a chain of backing files", kind="image-broken"
            )
        files.append(current)
    assert size is not None, "the first header told it"
    return Image(path, QCOW2, size, _stamp(files))


def _allow(name: str, owner: Path, resolve: PathPolicy) -> Path:
    """Resolve a file that a qcow2 header names, as QEMU would, or refuse it."""
    if ":" in name.split("/", 1)[0]:
        raise Denied(
            f"image {owner} refers to {name[:200]!r}, which is no plain file",
            kind="path-not-allowed",
        )
    return resolve(os.path.normpath(owner.parent / name))


def _ask_qemu_img(path: Path, image_format: str, *, shared: bool) -> dict[str, Any]:
    sharing = ["--force-share"] if shared else []
    command = ["qemu-img", "info", "--output=json", f"--format={image_format}", *sharing]
    command += ["--", str(path)]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=INFO_SECONDS_MAX, check=False, text=True
        )
    except FileNotFoundError as error:
        raise Unavailable(
            "qemu-img is not installed", hint="install qemu-utils", kind="program-missing"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(
            f"image {path} did not answer within {INFO_SECONDS_MAX:.0f} seconds",
            kind="source-silent",
        ) from error
    if done.returncode != 0:
        raise _explain(path, done.stderr.strip())
    info: dict[str, Any] = json.loads(done.stdout)
    return info


def _explain(path: Path, text: str) -> SendenseError:
    if '"write" lock' in text:
        return Conflict(
            f"image {path} is in use by another program",
            hint="a running VM is backed up through its hypervisor: register it as type qemu",
            kind="image-in-use",
        )
    if "Permission denied" in text:
        return Denied(f"image {path} may not be read", kind="image-denied")
    return Invalid(f"image {path} cannot be opened: {text}", kind="image-broken")


def _stamp(files: list[Path]) -> str:
    facts = [path.stat() for path in files]
    return ",".join(f"{one.st_size}:{one.st_mtime_ns}:{one.st_ctime_ns}" for one in facts)
