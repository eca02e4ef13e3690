"""Gives a file its name only when it is whole: no half file is ever seen under it."""

import ctypes
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
_NO_FLAGS = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}  # of a rename that may not replace
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
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

    A target that was named under a tag keeps its hidden name beside the other until `forget`: an
    attempt that repeats one whose end nobody noted sees by it that the target is its own.
    """
    hidden = _hidden(path, tag or secrets.token_hex(8))
    is_kept = False

    def name() -> None:
        nonlocal is_kept
        _name(hidden, path, overwrite=overwrite)
        is_kept = bool(tag)

    try:
        _clear(hidden, path)
        try:
            yield hidden, name
        finally:
            if not is_kept:
                _clear(hidden, path)
    except OSError as error:
        raise explain(error, path) from error


def is_named(path: Path, *, tag: str) -> bool:
    """Whether an attempt with this tag has made the target, whole and durable."""
    if not tag:
        return False
    hidden = _hidden(path, tag)
    try:
        found = path.lstat()
        if not os.path.lexists(hidden):
            return _read_note(hidden)[:1] == [_identify(found)]
        return os.path.samestat(hidden.lstat(), found)
    except OSError:
        return False


def forget(path: Path, *, tag: str) -> None:
    """Remove what attempts with this tag left: beside the target, which stays where it is whole."""
    _clear(_hidden(path, tag), path)


def _hidden(path: Path, tag: str) -> Path:
    digest = hashlib.blake2s(os.fsencode(path.name), digest_size=6).hexdigest()
    return path.with_name(f".sendense-{digest}-{tag}.partial")


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
    try:
        _sync(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        if not overwrite:  # whole, but nobody can say that it stays: the next attempt makes it anew
            with suppress(OSError):
                path.unlink()
        raise


def _name_without_links(hidden: Path, path: Path) -> None:
    """Rename it in one step that replaces nothing: for file systems without links.

    Nothing keeps the hidden name then, so a note tells the next attempt whose the target is.
    """
    _note(hidden, hidden.lstat())
    _sync(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _rename_new(hidden, path)
    except FileExistsError:
        raise target_exists(path) from None
    except OSError as error:
        if error.errno not in _NO_FLAGS:
            raise
        _reserve(hidden, path)
        hidden.replace(path)


def _rename_new(hidden: Path, path: Path) -> None:
    names = os.fsencode(hidden), os.fsencode(path)
    if _LIBC.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _reserve(hidden: Path, path: Path) -> None:
    """Take the name with an empty file, and note that it is ours to remove or to replace."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise target_exists(path) from None
    try:
        _note(hidden, os.fstat(handle))
    finally:
        os.close(handle)


def _identify(found: os.stat_result) -> str:
    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns}"


def _note(hidden: Path, found: os.stat_result) -> None:
    """Note a file of ours, durably: the whole one first, then the one that reserves its name."""
    flags = os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(_note_of(hidden), flags, 0o600)
    try:
        os.write(handle, f"{_identify(found)}\n".encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def _note_of(hidden: Path) -> Path:
    return hidden.with_suffix(".note")


def _read_note(hidden: Path) -> list[str]:
    return _note_of(hidden).read_text().splitlines()


def _clear(hidden: Path, path: Path) -> None:
    """Remove the hidden file, the note, and the empty file that reserves the name, if it is ours.

    Where the system refuses, they stay: the first error counts, and the next attempt removes them.
    """
    with suppress(OSError):
        if _identify(path.lstat()) in _read_note(hidden)[1:]:
            path.unlink()
    for left in (hidden, _note_of(hidden)):
        with suppress(OSError):
            left.unlink(missing_ok=True)


def _no_space(path: Path, found: str) -> NoSpace:
    return NoSpace(
        f"no space for {path}: {found}",
        hint="free some space or choose another folder",
        path=str(path),
    )
