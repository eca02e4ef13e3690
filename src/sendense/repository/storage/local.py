"""Storage in a directory: local file systems, and NFS or SMB once mounted.

Durability: a temporary file in the same folder, written and synced, then linked to its name
(link(2) never replaces), then the folder synced, and the parents of folders that are new. A file
whose sync fails is condemned, for the kernel may have dropped its dirty pages.

Every path is opened folder by folder without following links, so neither a hostile name nor a
link planted in the directory leads out of it.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import secrets
import stat
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from sendense.core import units
from sendense.core.errors import (
    Corrupt,
    Denied,
    Exists,
    NoSpace,
    NotFound,
    SendenseError,
    Unavailable,
)
from sendense.repository.storage import attributes, base, locks, mounts
from sendense.repository.storage.attributes import AttributeLocks
from sendense.repository.storage.base import Buffer, Capacity, StoredObject
from sendense.repository.storage.direct import DirectWriter
from sendense.repository.storage.locks import Locks

TEMPORARY_PREFIX = ".tmp-"  # no object's name may start with a dot, so listings can tell
TIDY_AGE_SECONDS = 24 * 3600.0  # no put lasts as long
TIDIED = "sessions/"  # folders below it come and go; elsewhere an empty one is used again
DIRECT_BYTES_MIN = units.MIB  # below it, memory and threads of its own cost more than they save
BUFFERS_PER_WRITE = 512  # below IOV_MAX, which is 1024 on Linux
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class LocalStorage:
    """Objects as files below one directory, which must exist.

    Raises NotFound (kind `repository-missing`) where there is no such directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._durable_folders: set[str] = set()  # at most the 512 fan-out folders and sessions'
        try:
            self._root = os.open(path, _FOLDER & ~os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(
                f"there is no folder {path}",
                hint="create the folder, or mount the file system it lies on",
                kind="repository-missing",
                path=str(path),
            ) from None
        except OSError as error:
            raise _translated(error, str(path)) from error

    def put_if_absent(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        """Store an object; see Storage."""
        folder_name, leaf = _split(name)
        with self._translating(name), self._folder(folder_name, create=True) as folder:
            temporary = TEMPORARY_PREFIX + secrets.token_hex(8)
            file = os.open(temporary, _CREATE, 0o600, dir_fd=folder)
            try:
                try:
                    _write_all(file, base.buffers_of(data))
                    os.fsync(file)
                finally:
                    os.close(file)  # NFS reports a failed write as late as here
                self._link(temporary, leaf, folder)
            finally:
                with contextlib.suppress(OSError):  # a leftover is harmless, the error is not
                    os.unlink(temporary, dir_fd=folder)
            os.fsync(folder)

    @staticmethod
    def _link(temporary: str, leaf: str, folder: int) -> None:
        try:
            os.link(temporary, leaf, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        except FileExistsError:
            # NFS repeats a link whose answer was lost, and reports the repetition.
            mine = os.stat(temporary, dir_fd=folder, follow_symlinks=False)
            if not os.path.samestat(mine, os.stat(leaf, dir_fd=folder, follow_symlinks=False)):
                os.fsync(folder)  # the caller may rely on what it finds under the name
                raise

    def get(self, name: str) -> bytes:
        """Return an object's bytes; see Storage."""
        with self._translating(name), self._file(name) as file:
            return _read_all(file, 0, os.fstat(file).st_size, name)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Return part of an object; see Storage."""
        with self._translating(name), self._file(name) as file:
            if os.fstat(file).st_size < offset + length:
                raise _truncated(name, offset + length)
            return _read_all(file, offset, length, name)

    def map(self, name: str) -> memoryview:
        """Return a view backed by the file; see Storage."""
        with self._translating(name), self._file(name) as file:
            size = os.fstat(file).st_size
            if size == 0:
                return memoryview(b"")
            return memoryview(mmap.mmap(file, size, access=mmap.ACCESS_READ))

    def size(self, name: str) -> int:
        """Return an object's size; see Storage."""
        with self._translating(name), self._file(name) as file:
            return os.fstat(file).st_size

    def list_objects(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield objects by name; see Storage."""
        folder_name = prefix.rpartition("/")[0]
        if folder_name:
            base.check_name(folder_name)
        for found in self._walk(folder_name):
            if found.name.startswith(prefix):
                yield found

    def list_top(self) -> list[str]:
        """Return the directory's entries but temporary files and `lost+found`; see Storage."""
        with self._translating(str(self.path)):
            found = os.listdir(self._root)  # noqa: PTH208 - a descriptor, not a path
        return sorted(name for name in found if name != "lost+found" and not _is_temporary(name))

    def delete(self, name: str) -> None:
        """Remove an object; see Storage. The folder stays."""
        folder_name, leaf = _split(name)
        with self._translating(name), self._folder(folder_name, create=False) as folder:
            try:
                os.unlink(leaf, dir_fd=folder)
            except PermissionError:
                self._end_lock(name)
                os.unlink(leaf, dir_fd=folder)
            os.fsync(folder)

    def _end_lock(self, name: str) -> None:
        """Take a lock away that is over. Raises Denied (kind `object-locked`) where it is not."""
        with self._file(name) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # as whoever lengthens it does
            until = attributes.find_until(file)
            if until is not None and until > datetime.now(UTC):
                raise locks.locked(name, until)
            if until is not None:
                attributes.set_flags(file, attributes.get_flags(file) & ~attributes.IMMUTABLE)

    def tidy(self) -> int:
        """Remove temporary files and sessions' empty folders that are a day old; see Storage."""
        with self._translating(str(self.path)):
            return self._tidy_folder("", before=self._now() - TIDY_AGE_SECONDS)

    def capacity(self) -> Capacity | None:
        """Return the file system's size and what an unprivileged user may still write."""
        with self._translating(str(self.path)):
            figures = os.fstatvfs(self._root)
        return Capacity(
            total_bytes=figures.f_blocks * figures.f_frsize,
            free_bytes=figures.f_bavail * figures.f_frsize,
        )

    def listing_seconds(self) -> float:
        """Return how long a share may keep old listings; see Storage."""
        return mounts.listing_seconds(self._root)

    def locks(self) -> Locks | None:
        """Return what sets the immutable attribute; whether it can, `require` finds out."""
        return AttributeLocks(self._root, self._open_file)

    @contextlib.contextmanager
    def _open_file(self, name: str) -> Iterator[int]:
        with self._translating(name), self._file(name) as file:
            yield file

    def close(self) -> None:
        """Let go of the directory; see Storage."""
        with self._lock:
            if self._root >= 0:
                os.close(self._root)
                self._root = -1

    def _walk(self, folder_name: str) -> Iterator[StoredObject]:
        """Yield all objects below a folder; folders are ordered as if their name ended in `/`."""
        entries: list[tuple[str, bool, int]] = []
        try:
            with (
                self._translating(folder_name),
                self._folder(folder_name, create=False) as folder,
                os.scandir(folder) as scan,
            ):
                for entry in scan:
                    if not entry.name.startswith("."):
                        _add_entry(entries, entry)
        except NotFound:
            return
        base_name = f"{folder_name}/" if folder_name else ""
        for name, is_folder, size in sorted(entries):
            if is_folder:
                yield from self._walk(base_name + name.rstrip("/"))
            else:
                yield StoredObject(base_name + name, size)

    @contextlib.contextmanager
    def _folder(self, name: str, *, create: bool) -> Iterator[int]:
        """Open a folder of ours step by step, following no link."""
        current = os.dup(self._root)
        try:
            path = ""
            for part in name.split("/") if name else []:
                path = f"{path}/{part}"
                if create and path not in self._durable_folders:
                    self._make_durable(path, part, current)
                try:
                    deeper = os.open(part, _FOLDER, dir_fd=current)
                except FileNotFoundError:
                    if not create:
                        raise
                    self._make_durable(path, part, current)  # somebody tidied it away
                    deeper = os.open(part, _FOLDER, dir_fd=current)
                os.close(current)
                current = deeper
            yield current
        finally:
            os.close(current)

    def _make_durable(self, path: str, part: str, parent: int) -> None:
        _make_folder(part, parent)
        with self._lock:
            self._durable_folders.add(path)

    def _now(self) -> float:
        """Return the time by the file system's own clock, which may be another machine's."""
        temporary = TEMPORARY_PREFIX + secrets.token_hex(8)
        file = os.open(temporary, _CREATE, 0o600, dir_fd=self._root)
        try:
            return os.fstat(file).st_mtime
        finally:
            os.close(file)
            os.unlink(temporary, dir_fd=self._root)

    def _tidy_folder(self, name: str, *, before: float) -> int:
        """Tidy a folder and all below; return how many files and folders went."""
        count = 0
        with self._folder(name, create=False) as folder:
            with os.scandir(folder) as scan:
                entries = [
                    (entry.name, entry.is_dir(follow_symlinks=False), _modified(entry))
                    for entry in scan
                ]
            for leaf, is_folder, modified in entries:
                path = f"{name}/{leaf}" if name else leaf
                if is_folder and not leaf.startswith("."):
                    count += self._tidy_folder(path, before=before)
                    if path.startswith(TIDIED) and modified < before:
                        with contextlib.suppress(OSError):  # it is not empty, or gone
                            os.rmdir(leaf, dir_fd=folder)
                            count += 1
                elif not is_folder and _is_temporary(leaf) and modified < before:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(leaf, dir_fd=folder)
                        count += 1
        return count

    @contextlib.contextmanager
    def _file(self, name: str) -> Iterator[int]:
        folder_name, leaf = _split(name)
        with self._folder(folder_name, create=False) as folder:
            file = os.open(leaf, _READ, dir_fd=folder)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise FileNotFoundError(errno.ENOENT, "not a file")
            yield file
        finally:
            os.close(file)

    @contextlib.contextmanager
    def _translating(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _translated(error, name) from error


def _make_folder(name: str, parent: int) -> None:
    """Make a folder durable, whoever made it."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=parent)
    try:
        os.fsync(parent)
    except OSError:
        # Another sync would succeed without writing the name: the next try has to make it anew.
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=parent)
        raise


def _is_temporary(name: str) -> bool:
    return name.startswith(TEMPORARY_PREFIX)


def _split(name: str) -> tuple[str, str]:
    folder_name, _, leaf = base.check_name(name).rpartition("/")
    return folder_name, leaf


def _modified(entry: "os.DirEntry[str]") -> float:
    """Return when an entry was changed last; the end of time for one that is gone."""
    try:
        return entry.stat(follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return float("inf")


def _add_entry(entries: list[tuple[str, bool, int]], entry: "os.DirEntry[str]") -> None:
    if entry.is_dir(follow_symlinks=False):
        entries.append((entry.name + "/", True, 0))
    elif entry.is_file(follow_symlinks=False):
        with contextlib.suppress(FileNotFoundError):  # deleted since the scan began
            entries.append((entry.name, False, entry.stat(follow_symlinks=False).st_size))


def _write_all(file: int, buffers: list[memoryview]) -> None:
    if sum(map(len, buffers)) >= DIRECT_BYTES_MIN:
        with DirectWriter(file) as writer:
            offset = 0
            for buffer in buffers:
                writer.write(offset, buffer)
                offset += len(buffer)
            writer.flush()
        return
    while buffers:
        batch = buffers[:BUFFERS_PER_WRITE]
        written = os.writev(file, batch)
        done = 0
        while done < len(batch) and written >= len(batch[done]):
            written -= len(batch[done])
            done += 1
        buffers = buffers[done:]
        if written:
            buffers[0] = buffers[0][written:]


def _read_all(file: int, offset: int, length: int, name: str) -> bytes:
    data = os.pread(file, length, offset)
    if len(data) == length:
        return data
    parts = [data]
    have = len(data)
    while have < length:
        part = os.pread(file, length - have, offset + have)
        if not part:
            raise _truncated(name, offset + length)
        parts.append(part)
        have += len(part)
    return b"".join(parts)


def _truncated(name: str, wanted: int) -> Corrupt:
    return Corrupt(f"object {name} ends before byte {wanted}", kind="object-truncated", name=name)


def _translated(error: OSError, name: str) -> SendenseError:
    """Return the error of ours that says what the caller should do about the system's."""
    number = error.errno or 0
    if number == errno.EEXIST:
        return Exists(f"object {name} exists already", name=name)
    if number == errno.ENOENT:
        return NotFound(f"there is no object {name}", kind="object-missing", name=name)
    kind, group, hint = _MEANINGS.get(number, ("storage-failed", Unavailable, _LOOK))
    text = os.strerror(number).lower() if number else str(error)
    return group(f"cannot use {name}: {text}", hint=hint, kind=kind, name=name)


_FULL = (
    "repository-full",
    NoSpace,
    "free space where the repository lies, or raise its quota",
)
_DENIED = (
    "repository-denied",
    Denied,
    "give the user that runs the program access to the repository's folder",
)
_LINK = (
    "repository-link",
    Denied,
    "a repository holds plain folders and files only; remove the link",
)
_LOOK = "look for errors of the disk or share in the kernel's log, then try again"
_MEANINGS: dict[int, tuple[str, type[SendenseError], str]] = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EROFS: ("repository-read-only", Denied, "mount the file system for writing"),
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.ELOOP: _LINK,
    errno.ENOTDIR: _LINK,
}
