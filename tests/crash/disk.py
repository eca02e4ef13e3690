"""A file system below `LocalStorage` that is killed, fails, and forgets what was not synced.

It stands where local.py calls `os`, carries every call out in a real folder, and writes a journal.
From any part of the journal `after_power_cut` makes what a disk may hold then:

- a file's bytes are sure once the file was synced after them; before, all, some or none are there;
- a name made or removed is sure once its folder was synced after it, independent of all others;
- a folder without a name of its own is lost with all that is in it;
- a sync that failed has made its pages clean without writing them: another sync changes nothing
  for these, unless the file or folder was written in between.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.crash.faulty import Death

FOLDER = 0  # the number that stands for a folder where others stand for files


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the journal; `file` is a file's number."""

    kind: str  # name, remove, write, sync-file, sync-folder, fail-file, fail-folder, or done
    folder: str = ""
    name: str = ""
    file: int = FOLDER
    data: bytes = b""


@dataclass
class Disk:
    """What local.py sees as `os`. The n-th call that matters dies or raises; see `at`.

    Attributes:
        at: the number of that call, from 1; 0 for none. number: of the error, or None to die.
        calls: so many were counted.
    """

    at: int = 0
    number: int | None = None
    calls: int = 0
    journal: list[Change] = field(default_factory=list)
    _dead: bool = False
    _files: int = 0
    _open: dict[int, tuple[str, int]] = field(default_factory=dict)
    _names: dict[tuple[str, str], int] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.RLock)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def restart(self, *, at: int = 0, number: int | None = None) -> None:
        """Let another process go on with the same disk, which is in the state it was left in."""
        self.at, self.number, self.calls, self._dead = at, number, 0, False
        self._open.clear()

    def copy(self) -> "Disk":
        """Return the same disk, to go on with in a copy of the folder."""
        return Disk(journal=list(self.journal), _files=self._files, _names=dict(self._names))

    def note(self, name: str) -> None:
        """Write into the journal that something was promised to have happened."""
        self.journal.append(Change("done", name=name))

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        with self._lock:
            self._count() if flags & os.O_CREAT else self._live()
            made = os.open(path, flags, mode, dir_fd=dir_fd)
            folder, name = ("", "") if dir_fd is None else (self._open[dir_fd][0], str(path))
            if flags & os.O_CREAT:
                self._files += 1
                self._add(folder, name, self._files)
            if flags & os.O_DIRECTORY:
                self._open[made] = (_join(folder, name), FOLDER)
            else:
                self._open[made] = (folder, self._names[folder, name])
            return made

    def dup(self, handle: int) -> int:
        with self._lock:
            made = os.dup(handle)
            self._open[made] = self._open[handle]
            return made

    def close(self, handle: int) -> None:
        with self._lock:
            os.close(handle)

    def mkdir(self, name: str, mode: int, *, dir_fd: int) -> None:
        with self._lock:
            self._count()
            os.mkdir(name, mode, dir_fd=dir_fd)
            self._add(self._open[dir_fd][0], name, FOLDER)

    def rmdir(self, name: str, *, dir_fd: int) -> None:
        with self._lock:
            self._count()
            os.rmdir(name, dir_fd=dir_fd)
            self._remove(self._open[dir_fd][0], name)

    def writev(self, handle: int, buffers: list[memoryview]) -> int:
        with self._lock:
            data = b"".join(buffers)
            try:
                self._count()
            except (Death, OSError):
                self._write(handle, data[: len(data) // 2])  # torn
                raise
            return self._write(handle, data)

    def fsync(self, handle: int) -> None:
        with self._lock:
            folder, file = self._open[handle]
            what = "file" if file else "folder"
            try:
                self._count()
            except OSError:
                self.journal.append(Change(f"fail-{what}", folder, file=file))
                raise
            self.journal.append(Change(f"sync-{what}", folder, file=file))

    def link(self, old: str, new: str, **where: Any) -> None:
        with self._lock:
            self._count()
            os.link(old, new, **where)
            folder = self._open[where["dst_dir_fd"]][0]
            self._add(folder, new, self._names[folder, old])

    def unlink(self, name: str, *, dir_fd: int) -> None:
        with self._lock:
            self._count()
            os.unlink(name, dir_fd=dir_fd)
            self._remove(self._open[dir_fd][0], name)

    def _live(self) -> None:
        if self._dead:
            raise Death

    def _count(self) -> None:
        self._live()
        self.calls += 1
        if self.calls == self.at:
            if self.number is not None:
                raise OSError(self.number, os.strerror(self.number))
            self._dead = True
            raise Death

    def _write(self, handle: int, data: bytes) -> int:
        written = os.write(handle, data)
        folder, file = self._open[handle]
        self.journal.append(Change("write", folder, file=file, data=data[:written]))
        return written

    def _add(self, folder: str, name: str, file: int) -> None:
        self._names[folder, name] = file
        self.journal.append(Change("name", folder, name, file))

    def _remove(self, folder: str, name: str) -> None:
        file = self._names.pop((folder, name))
        self.journal.append(Change("remove", folder, name, file))


Choose = Callable[[], bool]


@dataclass
class _Pages:
    """What was written to a file or folder: surely there, not yet, and dropped by a failed sync."""

    sure: list[Change] = field(default_factory=list)
    dirty: list[Change] = field(default_factory=list)
    dropped: list[Change] = field(default_factory=list)

    def write(self, change: Change) -> None:
        self.dirty += [*self.dropped, change]
        self.dropped = []

    def sync(self) -> None:
        self.sure += self.dirty
        self.dirty = []

    def fail(self) -> None:
        self.dropped += self.dirty
        self.dirty = []

    def left(self, choose: Choose) -> list[Change]:
        return self.sure + [one for one in self.dropped + self.dirty if choose()]


def after_power_cut(journal: list[Change], choose: Choose) -> dict[str, bytes]:
    """Return files by their paths as the disk may hold them; `choose` says what of the rest."""
    folders: dict[str, _Pages] = {"": _Pages()}
    files: dict[int, _Pages] = {}
    for change in journal:
        pages = (
            files.setdefault(change.file, _Pages())
            if change.kind == "write" or change.kind.endswith("-file")
            else folders.setdefault(change.folder, _Pages())
        )
        if change.kind in {"name", "remove", "write"}:
            pages.write(change)
        elif change.kind.startswith("sync-"):
            pages.sync()
        elif change.kind.startswith("fail-"):
            pages.fail()
    found: dict[str, bytes] = {}
    _walk("", folders, lambda file: _content(files.get(file, _Pages()), choose), found, choose)
    return found


def _content(pages: _Pages, choose: Choose) -> bytes:
    """Return a file's bytes; what was not written may be missing, or zeros."""
    parts = [change.data for change in pages.sure]
    for change in pages.dropped + pages.dirty:
        if not choose():
            if choose():
                parts.append(bytes(len(change.data)))
            break
        parts.append(change.data)
    return b"".join(parts)


def _walk(
    folder: str,
    folders: dict[str, _Pages],
    read: Callable[[int], bytes],
    found: dict[str, bytes],
    choose: Choose,
) -> None:
    names: dict[str, int] = {}
    for change in folders.get(folder, _Pages()).left(choose):
        if change.kind == "name":
            names[change.name] = change.file
        else:
            names.pop(change.name, None)
    for name, file in names.items():
        if file == FOLDER:
            _walk(_join(folder, name), folders, read, found, choose)
        else:
            found[_join(folder, name)] = read(file)


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def fill(path: Path, files: dict[str, bytes]) -> None:
    """Write files below a folder."""
    for name, data in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
