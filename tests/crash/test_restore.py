"""A restore that dies or fails at any call leaves no half file, and the next one succeeds."""

import contextlib
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from sendense.core.errors import SendenseError
from sendense.engine import publish, rawfile
from sendense.engine.control import Control
from sendense.engine.progress import Progress
from sendense.engine.restore import Format, RestoreRequest, restore_disk_to_file
from sendense.repository.storage import direct
from sendense.repository.storage.base import Storage
from sendense.repository.storage.memory import MemoryStorage
from tests.crash import scenarios
from tests.crash.faulty import Death, Fault, FaultyStorage
from tests.crash.scenarios import CALLS_MAX, FIRST
from tests.repository_kit import KEY, Kit

pytestmark = pytest.mark.usefixtures("untraced")

CHANGING = ("open", "truncate", "pwrite", "fsync", "close")
TAG = "job-1"


class FailingSystem:
    """`os` for the modules that write a target: dies, or raises an error, at the n-th call."""

    def __init__(self, *, at: int, number: int | None) -> None:
        self._at = at
        self._number = number
        self._dead = False
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        if name not in CHANGING:
            return getattr(os, name)
        return self.counted(getattr(os, name))

    def counted(self, work: Any) -> Any:
        return lambda *args, **kwargs: self.call(work, *args, **kwargs)

    def call(self, work: Any, *args: Any, **kwargs: Any) -> Any:
        if self._dead and work is not os.close:
            raise Death
        self.calls += 1
        if self.calls == self._at:
            if work is os.close:
                work(*args)
            self._dead = self._number is None
            raise Death if self._number is None else OSError(self._number, "injected")
        return work(*args, **kwargs)


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    scenarios.fill_packs_soon(monkeypatch)


@pytest.fixture
def storage() -> MemoryStorage:
    made = MemoryStorage()
    scenarios.full(Kit(made).create())
    return made


def _restore(storage: Storage, path: Path, kind: Format = Format.RAW, *, seed: int) -> None:
    with Kit(storage).open(seed=seed).open_disk_reader("first", KEY) as reader:
        request = RestoreRequest(path, kind, tag=TAG)
        restore_disk_to_file(reader, request, control=Control(), progress=Progress())


def _assert_whole_or_absent(path: Path) -> None:
    if path.exists():
        assert path.read_bytes() == FIRST


@pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name.lower())
def test_the_repository_may_fail_at_any_call(
    storage: MemoryStorage, tmp_path: Path, fault: Fault
) -> None:
    for at in range(1, CALLS_MAX):
        path = tmp_path / f"disk-{at}"
        faulty = FaultyStorage(storage, at=at, fault=fault)
        with contextlib.suppress(Death, SendenseError):
            _restore(faulty, path, seed=100 + at)
        if faulty.calls < at:
            return
        _assert_whole_or_absent(path)
        scenarios.assert_sound(storage, 7)
        _restore(storage, path, seed=1000 + at)
        assert path.read_bytes() == FIRST
    pytest.fail(f"more than {CALLS_MAX} calls")


@pytest.mark.parametrize("number", [None, errno.ENOSPC, errno.EIO])
def test_the_target_s_system_may_fail_at_any_call(
    storage: MemoryStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    for at in range(1, CALLS_MAX):
        path = tmp_path / f"disk-{at}"
        system = FailingSystem(at=at, number=number)
        with monkeypatch.context() as patched:
            patched.setattr(rawfile, "os", system)
            patched.setattr(direct, "os", system)
            patched.setattr(publish, "os", system)
            for name in ("unlink", "replace", "hardlink_to"):
                patched.setattr(Path, name, system.counted(getattr(Path, name)))
            with contextlib.suppress(Death, SendenseError):
                _restore(storage, path, seed=100 + at)
        if system.calls < at:
            return
        _assert_whole_or_absent(path)
        _restore(storage, path, seed=1000 + at)
        assert path.read_bytes() == FIRST
        publish.forget(path, tag=TAG)
        assert [one for one in tmp_path.iterdir() if one.name.startswith(".")] == []
    pytest.fail(f"more than {CALLS_MAX} calls")
