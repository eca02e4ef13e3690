"""What one image file or block device is: size, identity, and every file it is made of."""

import contextlib
import errno
import json
import os
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sendense.connectors.config import PathPolicy
from sendense.connectors.image import header
from sendense.connectors.image.config import QCOW2, RAW, ImageDisk
from sendense.core import units
from sendense.core.errors import Conflict, Denied, Invalid, NotFound, SendenseError, Unavailable

BACKING_FILES_MAX = 64  # deeper chains are a mistake; each costs an open file
INFO_SECONDS_MAX = 30.0  # qemu-img reads some headers; a dead NFS server hangs for ever


@dataclass(frozen=True, slots=True)
class Image:
    """An image that can be read.

    Attributes:
        path: with all links resolved.
        stamp: changes when one of its files was written or replaced: identities, sizes and times
            of files; of a block device the writes that reached it, which lag behind a page cache.
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
    if disk.image_format == QCOW2:
        return _inspect_qcow2(path, resolve, shared=shared)
    facts = _look(path)
    with _open(path) as file:
        if not disk.stated and stat.S_ISREG(facts.st_mode) and _starts_like_qcow2(file):
            raise Invalid(
                f"image {path} starts like qcow2 but no format is stated",
                hint='write the disk as {"path": …, "format": "qcow2"}, or "raw" if it is one',
                kind="image-format-unclear",
            )
        size = file.seek(0, os.SEEK_END)  # which a block device's entry does not tell
    return Image(path, RAW, _check_size(path, size), _stamp([path]))


def _check_size(path: Path, size: int) -> int:
    if size == 0 or size % units.SECTOR:
        raise Invalid(
            f"image {path} is {size} bytes long, not a positive multiple of {units.SECTOR}",
            kind="image-size-odd",
        )
    return size


def _look(path: Path) -> os.stat_result:
    try:
        facts = path.stat()
    except OSError as error:
        raise _explain_system(path, error) from error
    _check_kind(path, facts)
    return facts


def _check_kind(path: Path, facts: os.stat_result) -> None:
    if not (stat.S_ISREG(facts.st_mode) or stat.S_ISBLK(facts.st_mode)):
        raise Invalid(f"image {path} is neither a file nor a block device", kind="image-broken")


def _explain_system(path: Path, error: OSError) -> SendenseError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFound(f"image {path} does not exist", kind="image-missing")
    if isinstance(error, PermissionError):
        return Denied(f"image {path} may not be read", kind="image-denied")
    if error.errno == errno.ELOOP:
        return Invalid(f"image {path} leads into a circle of links", kind="image-broken")
    return Unavailable(f"image {path}: {error.strerror}", kind="source-silent")


@contextlib.contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Open a file that was looked at; what fails within is explained like the opening."""
    try:
        # Without waiting: a pipe may have taken the file's place since.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - it is open already
            _check_kind(path, os.fstat(descriptor))
            yield file
    except OSError as error:
        raise _explain_system(path, error) from error


def _starts_like_qcow2(file: BinaryIO) -> bool:
    return file.read(len(header.MAGIC)) == header.MAGIC


def _inspect_qcow2(path: Path, resolve: PathPolicy, *, shared: bool) -> Image:
    """Allow all files of a chain by their headers alone; only then let QEMU look at them."""
    links, data_files = _walk(path, resolve)
    infos = [_ask_qemu_img(file, kind, shared=shared) for file, kind in links]
    files = [file for file, _ in links] + data_files
    return Image(path, QCOW2, _check_size(path, int(infos[0]["virtual-size"])), _stamp(files))


def _walk(path: Path, resolve: PathPolicy) -> tuple[list[tuple[Path, str]], list[Path]]:
    """Return the files of a chain with their formats, from the top, and those with its data.

    One header at a time, so that nothing is opened before it is allowed.
    """
    links: list[tuple[Path, str]] = []
    data_files: list[Path] = []
    current, image_format = path, QCOW2
    while True:
        _look(current)
        links.append((current, image_format))
        if image_format == RAW:
            return links, data_files
        with _open(current) as file:
            found = header.read(file, str(current))
        if found.data_file is not None:
            data_files.append(_allow_data_file(found.data_file, current, resolve))
        if found.backing_file is None:
            return links, data_files
        image_format = found.backing_format or ""
        if image_format not in {RAW, QCOW2}:
            raise Invalid(
                f"image {current} does not say the format of its backing file",
                hint="qemu-img rebase -u -F FORMAT -b FILE IMAGE writes it down",
                kind="image-format-unclear",
            )
        current = _allow(found.backing_file, current, resolve)
        if len(links) >= BACKING_FILES_MAX or current in {file for file, _ in links}:
            raise Invalid(
                f"image {path} has too deep a chain of backing files", kind="image-broken"
            )


def _allow(name: str, owner: Path, resolve: PathPolicy) -> Path:
    """Resolve a file that a qcow2 header names, as QEMU would, or refuse it."""
    if ":" in name.split("/", 1)[0]:
        raise Denied(
            f"image {owner} refers to {name[:200]!r}, which is no plain file",
            kind="path-not-allowed",
        )
    # With links followed before "..": as the kernel does, to which QEMU gives the name.
    return resolve(os.path.realpath(owner.parent / name))


def _allow_data_file(name: str, owner: Path, resolve: PathPolicy) -> Path:
    path = _allow(name, owner, resolve)
    if not name.startswith("/"):
        raise Invalid(
            f"image {owner} names its data file {name[:200]!r} without a folder",
            hint="QEMU looks for it wherever it was started: copy both into one image by "
            "`qemu-img convert -O qcow2`, run in the data file's folder",
            kind="image-broken",
        )
    _look(path)
    return path


def _ask_qemu_img(path: Path, image_format: str, *, shared: bool) -> dict[str, Any]:
    sharing = ["--force-share"] if shared else []
    command = ["qemu-img", "info", "--output=json", f"--format={image_format}", *sharing]
    command += ["--", str(path)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=INFO_SECONDS_MAX,
            check=False,
            encoding="utf-8",
            errors="replace",  # names of files come back as their bytes
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
    return ",".join(_fingerprint(_look(path)) for path in files)


def _fingerprint(facts: os.stat_result) -> str:
    if stat.S_ISBLK(facts.st_mode):
        device = f"{os.major(facts.st_rdev)}:{os.minor(facts.st_rdev)}"
        return f"{device}:{_count_writes(device)}"
    times = f"{facts.st_mtime_ns}:{facts.st_ctime_ns}"
    return f"{facts.st_dev}:{facts.st_ino}:{facts.st_size}:{times}"


def _count_writes(device: str) -> str:
    """Return how many writes and discards a block device has had, and of how many sectors.

    Fields 5, 7, 12 and 14 of https://docs.kernel.org/block/stat.html; "" where it does not count.
    """
    with contextlib.suppress(OSError):
        fields = Path(f"/sys/dev/block/{device}/stat").read_text().split()
        return "/".join(fields[number - 1] for number in (5, 7, 12, 14))
    return ""
