"""Gives a file its name only when it is whole: no half file is ever seen under it."""

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sendense.core import units
from sendense.core.errors import (
    Denied,
    Exists,
    Invalid,
    NoSpace,
    NotFound,
    SendenseError,
    Unavailable,
)

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES}
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuse a target that cannot become a file of ours, before anything is written.

    Raises NotFound (no such folder), Exists kind `target-exists`, or Invalid (not a regular file).
    """
    if not path.parent.is_dir():
        raise NotFound(
            f"the folder {path.parent} does not exist",
            kind="target-folder-missing",
            hint="make the folder first",
            path=str(path),
        )
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise Invalid(
            f"{path} exists and is not a regular file",
            kind="target-not-a-file",
            hint="name a file that does not exist yet",
            path=str(path),
        )
    if not overwrite:
        raise target_exists(path)


def check_space(path: Path, *, bytes_needed: int) -> None:
    """Raise NoSpace where the folder's file system cannot hold that much now."""
    state = os.statvfs(path.parent)
    free = state.f_bavail * state.f_frsize
    if free < bytes_needed:
        raise _no_space(
            path,
            f"{units.format_size(bytes_needed)} are needed, {units.format_size(free)} are free",
        )


@contextmanager
def unnamed(path: Path, *, overwrite: bool, tag: str) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Give a hidden path beside the target, and a function that names it as the target.

    The hidden name comes from `tag`, so that a second attempt of the same job removes what a killed
    one left behind. Whatever the block raises, the hidden file is gone afterwards, and where the
    function was not called the target is as it was. Operating system errors become ours.
    """
    digest = hashlib.blake2s(os.fsencode(path.name), digest_size=6).hexdigest()
    hidden = path.with_name(f".sendense-{digest}-{tag or secrets.token_hex(8)}.partial")
    try:
        hidden.unlink(missing_ok=True)
        try:
            yield hidden, lambda: _name(hidden, path, overwrite=overwrite)
        finally:
            with suppress(OSError):  # the first error counts; the next attempt removes the file
                hidden.unlink(missing_ok=True)
    except OSError as error:
        raise explain(error, path) from error


def explain(error: OSError, path: Path) -> SendenseError:
    """Return our error for what the operating system said about a target."""
    if error.errno in _NO_SPACE:
        return _no_space(path, os.strerror(error.errno or 0).lower())
    if error.errno == errno.EFBIG:
        return Invalid(
            f"the file system of {path} cannot hold a file that large",
            kind="target-too-large",
            path=str(path),
        )
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return Denied(
            f"{path} cannot be written: {os.strerror(error.errno).lower()}",
            kind="target-not-writable",
            path=str(path),
        )
    return Unavailable(
        f"{path} cannot be written: {error.strerror or error}",
        kind="target-failed",
        path=str(path),
    )


def target_exists(path: Path) -> Exists:
    """Return the error for a target that is there already."""
    return Exists(
        f"{path} exists",
        kind="target-exists",
        hint="name another file, or allow to overwrite it",
        path=str(path),
    )


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _name(hidden: Path, path: Path, *, overwrite: bool) -> None:
    _sync(hidden, os.O_RDONLY | os.O_NOFOLLOW)
    if overwrite:
        check_target(path, overwrite=True)
        hidden.replace(path)
    else:
        try:
            path.hardlink_to(hidden)
        except FileExistsError:
            raise target_exists(path) from None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _name_without_links(hidden, path)
    _sync(path.parent, os.O_RDONLY | os.O_DIRECTORY)


def _name_without_links(hidden: Path, path: Path) -> None:
    """Reserve the name with an empty file, then replace that: for file systems without links."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        raise target_exists(path) from None
    hidden.replace(path)


def _no_space(path: Path, found: str) -> NoSpace:
    return NoSpace(
        f"no space for {path}: {found}",
        hint="free some space or choose another folder",
        path=str(path),
    )
