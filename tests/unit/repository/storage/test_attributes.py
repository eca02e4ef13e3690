"""Locks in a directory: the rules on any machine, and the kernel's where it lets us."""

import errno
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sendense.core.clock import ManualClock
from sendense.core.errors import Denied, Invalid, NotFound
from sendense.repository.gc import run
from sendense.repository.storage import attributes
from sendense.repository.storage.local import LocalStorage
from sendense.repository.storage.locks import LockMode
from tests import gc_kit
from tests import repository_kit as kit
from tests.repository_kit import CHUNK, Kit

NAME = "packs/00/ab"
SOON = datetime.now(UTC) + timedelta(hours=1)
LATER = SOON + timedelta(days=1)
PAST = datetime.now(UTC) - timedelta(hours=1)
ATTRIBUTE = LockMode.ATTRIBUTE


class Kernel:
    """Attributes of files as the kernel keeps them, for a program that may set none."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.flags: dict[int, int] = {}
        self.dates: dict[int, bytes] = {}
        self.trouble: int | None = None
        self._unlink = os.unlink
        patch.setattr(attributes, "get_flags", self.get)
        patch.setattr(attributes, "set_flags", self.set)
        patch.setattr(os, "unlink", self.unlink)
        patch.setattr(os, "setxattr", self.set_date)
        patch.setattr(os, "getxattr", self.get_date)

    def get(self, file: int) -> int:
        return self.flags.get(os.fstat(file).st_ino, 0)

    def set(self, file: int, flags: int) -> None:
        if self.trouble:
            raise OSError(self.trouble, os.strerror(self.trouble))
        self.flags[os.fstat(file).st_ino] = flags

    def set_date(self, file: int, _name: str, value: bytes) -> None:
        if self.get(file) & attributes.IMMUTABLE:
            raise PermissionError(errno.EPERM, "immutable")
        self.dates[os.fstat(file).st_ino] = value

    def get_date(self, file: int, _name: str) -> bytes:
        if os.fstat(file).st_ino not in self.dates:
            raise OSError(errno.ENODATA, "no data")
        return self.dates[os.fstat(file).st_ino]

    def unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        inode = os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_ino
        if self.flags.get(inode, 0) & attributes.IMMUTABLE:
            raise PermissionError(errno.EPERM, "immutable")
        self._unlink(path, dir_fd=dir_fd)


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    made = LocalStorage(tmp_path)
    made.put_if_absent(NAME, b"data")
    return made


@pytest.fixture
def kernel(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    del storage
    return Kernel(monkeypatch)


def _locked(storage: LocalStorage) -> datetime | None:
    locks = storage.locks()
    assert locks is not None
    return locks.locked_until(NAME)


def _lock(storage: LocalStorage, until: datetime) -> None:
    locks = storage.locks()
    assert locks is not None
    locks.lock(NAME, ATTRIBUTE, until)


def _check_rules(storage: LocalStorage) -> None:
    """Assert what holds of locks, with the kernel or with what stands for it."""
    locks = storage.locks()
    assert locks is not None
    locks.require(ATTRIBUTE)
    assert _locked(storage) is None
    with pytest.raises(NotFound):
        locks.lock("packs/00/none", ATTRIBUTE, SOON)
    with pytest.raises(NotFound):
        locks.locked_until("packs/00/none")
    _lock(storage, LATER)
    _lock(storage, SOON)
    assert _locked(storage) == LATER
    with pytest.raises(Denied) as caught:
        storage.delete(NAME)
    assert caught.value.kind == "object-locked"
    assert caught.value.fields["until"] == LATER.isoformat(timespec="seconds")
    assert storage.get(NAME) == b"data"
    assert storage.list_top() == ["packs"]


def test_a_lock_holds_and_lengthens_and_is_never_shortened(
    storage: LocalStorage, kernel: Kernel
) -> None:
    _check_rules(storage)
    assert len(kernel.dates) == 2  # the trial's too


def test_what_a_lock_is_over_of_is_deleted(storage: LocalStorage, kernel: Kernel) -> None:
    del kernel
    _lock(storage, PAST)
    assert _locked(storage) == PAST
    storage.delete(NAME)
    with pytest.raises(NotFound):
        storage.size(NAME)


def test_a_file_that_somebody_else_made_immutable_stays(
    storage: LocalStorage, kernel: Kernel, tmp_path: Path
) -> None:
    kernel.flags[(tmp_path / NAME).stat().st_ino] = attributes.IMMUTABLE
    assert _locked(storage) == attributes.FOREVER
    with pytest.raises(Denied) as caught:
        storage.delete(NAME)
    assert caught.value.kind == "object-locked"
    kernel.dates[(tmp_path / NAME).stat().st_ino] = b"someday"
    assert _locked(storage) == attributes.FOREVER


def test_a_crash_between_the_steps_leaves_a_file_that_says_it_is_not_locked(
    storage: LocalStorage, kernel: Kernel
) -> None:
    _lock(storage, SOON)
    real, calls = kernel.set, []

    def die_at_second(file: int, flags: int) -> None:
        calls.append(flags)
        if len(calls) > 1:
            raise KeyboardInterrupt
        real(file, flags)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attributes, "set_flags", die_at_second)
        with pytest.raises(KeyboardInterrupt):
            _lock(storage, LATER)
    assert _locked(storage) is None
    _lock(storage, LATER)
    assert _locked(storage) == LATER


def test_a_file_that_may_not_be_removed_for_another_reason_is_denied(
    storage: LocalStorage, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(Denied) as caught:
        storage.delete(NAME)
    assert caught.value.kind == "repository-denied"
    assert kernel.flags == {}


@pytest.mark.parametrize(
    ("trouble", "words"), [(errno.EPERM, "CAP_LINUX_IMMUTABLE"), (errno.ENOTTY, "tmpfs")]
)
def test_a_place_that_cannot_says_why_and_is_left_as_it_was(
    storage: LocalStorage, kernel: Kernel, trouble: int, words: str
) -> None:
    kernel.trouble = trouble
    locks = storage.locks()
    assert locks is not None
    with pytest.raises(Invalid) as caught:
        locks.require(ATTRIBUTE)
    assert caught.value.kind == "storage-cannot-lock"
    assert words in str(caught.value.hint)
    assert sorted(os.listdir(storage.path)) == ["packs"]  # noqa: PTH208 - hidden files too
    with pytest.raises(Invalid):
        locks.require(LockMode.COMPLIANCE)


def test_the_kernels_numbers_are_right(storage: LocalStorage, tmp_path: Path) -> None:
    """Reading the attributes needs no right; file systems without them say so."""
    strange = {errno.ENOTTY, errno.EOPNOTSUPP}
    flags = 0
    with (tmp_path / NAME).open("rb") as file:
        try:
            flags = attributes.get_flags(file.fileno())
        except OSError as error:
            assert error.errno in strange  # noqa: PT017 - either
        assert flags & attributes.IMMUTABLE == 0
        try:
            attributes.set_flags(file.fileno(), flags)
        except OSError as error:
            assert error.errno in strange | {errno.EPERM}  # noqa: PT017 - either
    storage.delete(NAME)


@pytest.fixture
def real(storage: LocalStorage, tmp_path: Path) -> Iterator[LocalStorage]:
    """A directory whose files can be made immutable; afterwards none of them is."""
    locks = storage.locks()
    assert locks is not None
    try:
        locks.require(ATTRIBUTE)
    except Invalid as error:
        pytest.skip(f"{error.message}: {error.hint}")
    yield storage
    for path in tmp_path.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                flags = attributes.get_flags(file.fileno())
                attributes.set_flags(file.fileno(), flags & ~attributes.IMMUTABLE)


def test_the_kernel_keeps_what_is_locked(real: LocalStorage, tmp_path: Path) -> None:
    _check_rules(real)
    path = tmp_path / NAME
    for attempt in (path.unlink, lambda: path.write_bytes(b"x"), lambda: path.rename("y")):
        with pytest.raises(PermissionError):
            attempt()
    with path.open("rb") as file:
        attributes.set_until(file.fileno(), PAST)
    real.delete(NAME)
    assert not path.exists()


def test_a_whole_repository_is_locked_by_the_kernel(real: LocalStorage, tmp_path: Path) -> None:
    real.delete(NAME)
    (tmp_path / "packs" / "00").rmdir()
    (tmp_path / "packs").rmdir()
    data = os.urandom(2 * CHUNK)
    repository = Kit(
        real, clock=ManualClock(datetime.now(UTC)), immutable_days=1, lock_mode=ATTRIBUTE
    ).create()
    kit.back_up(repository, "one", data)
    for folder in ("packs", "meta", "backups", "outcomes"):
        paths = [path for path in (tmp_path / folder).rglob("*") if path.is_file()]
        assert paths
        for path in paths:
            with pytest.raises(PermissionError):
                path.unlink()
    assert kit.restore(repository, "one") == data
    report = run.run(repository, gc_kit.NOW)
    assert (report.is_done, report.pack_count) == (True, 0)
