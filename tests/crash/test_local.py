"""A repository in a folder: killed at any call, on a failing or full disk, through power cuts."""

import contextlib
import errno
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sendense.core.errors import SendenseError
from sendense.repository.check import check
from sendense.repository.repository import Repository
from sendense.repository.storage import local
from sendense.repository.storage.local import TEMPORARY_PREFIX, LocalStorage
from sendense.repository.storage.memory import MemoryStorage
from tests import repository_kit as kit
from tests.crash import scenarios
from tests.crash.disk import Change, Choose, Disk, after_power_cut
from tests.crash.faulty import Death
from tests.crash.scenarios import CALLS_MAX, THIRD
from tests.repository_kit import Kit

pytestmark = pytest.mark.usefixtures("untraced")

Scenario = Callable[[Repository], None]
SCENARIOS = {"first": scenarios.full, "second": scenarios.incremental, "third": scenarios.resumed}
FAULTS = (None, errno.ENOSPC, errno.EIO)  # the first one kills
GUESSES = 1  # of what a disk kept of all that was not synced, besides nothing and everything
GUESSES_LONG = 12


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    scenarios.fill_packs_soon(monkeypatch)


@pytest.fixture
def guesses(request: pytest.FixtureRequest) -> int:
    return GUESSES_LONG if request.config.option.long else GUESSES


class Place:
    """A folder with a repository in it, on a disk that can be brought back to how it began."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.path = path / "now"
        self._base = path / "base"
        self._monkeypatch = monkeypatch
        self._base.mkdir()
        self._prepared = self.disk = Disk()
        monkeypatch.setattr(local, "os", self.disk)
        with Kit(LocalStorage(self._base)).create() as repository:
            if name != "first":
                scenarios.full(repository)
                self.disk.note("first")

    def reset(self) -> Disk:
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(self._base, self.path)
        self.disk = self._prepared.copy()
        self._monkeypatch.setattr(local, "os", self.disk)
        return self.disk

    def attempt(self, name: str, *, seed: int) -> None:
        """Do what a worker does that begins or takes over the job; then the backup is promised."""
        with Kit(LocalStorage(self.path)).open(seed=seed) as repository:
            if repository.find_outcome(name) is None:
                SCENARIOS[name](repository)
            else:
                repository.commit(name, kit.draft(repository, name, f"at-{name}"))
        self.disk.note(name)


def _choices(seed: str, guesses: int) -> Iterator[Choose]:
    yield lambda: False
    yield lambda: True
    for guess in range(guesses):
        chooser = random.Random(f"{seed}-{guess}")
        yield lambda chooser=chooser: chooser.random() < 0.5  # type: ignore[misc]


def _load(files: dict[str, bytes]) -> MemoryStorage:
    storage = MemoryStorage()
    for name, data in files.items():
        if not name.rpartition("/")[2].startswith(TEMPORARY_PREFIX):
            storage.put_if_absent(name, data)
    return storage


def _assert_survives(journal: list[Change], choose: Choose, name: str, seen: set[int]) -> None:
    """Cut the power, then look for what was promised, and go on."""
    files = after_power_cut(journal, choose)
    promised = {change.name for change in journal if change.kind == "done"}
    state = hash((frozenset(files.items()), frozenset(promised)))
    if state in seen:
        return
    seen.add(state)
    storage = _load(files)
    repository = scenarios.assert_sound(storage, 7)
    assert promised <= {one.backup_id for one in repository.list_backups()}
    if repository.find_outcome(name) is None:
        SCENARIOS[name](repository)
    repository.settle_sessions()
    parents = [one.backup_id for one in repository.list_backups()]
    assert name in parents
    kit.back_up(repository, "next", THIRD, parent=parents[-1])
    report = check(Kit(storage).open(seed=8))
    assert not report.problems, report.problems
    assert kit.restore(repository, "next") == THIRD


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_a_power_cut_at_any_call_takes_nothing_that_was_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, guesses: int
) -> None:
    place = Place(tmp_path, monkeypatch, name)
    disk = place.reset()
    begin = len(disk.journal)
    place.attempt(name, seed=3)
    seen: set[int] = set()
    for end in range(begin, len(disk.journal) + 1):
        for choose in _choices(f"{name}-{end}", guesses):
            _assert_survives(disk.journal[:end], choose, name, seen)
    assert len(seen) > (len(disk.journal) - begin) // 4


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_after_any_call_that_kills_or_fails_the_next_process_promises_what_the_disk_keeps(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    guesses: int,
    request: pytest.FixtureRequest,
) -> None:
    place = Place(tmp_path, monkeypatch, name)
    seen: set[int] = set()
    for at in range(1, CALLS_MAX):
        # A short run tries the errors in turn at every fourth call, a long one each at each.
        turn = (None, FAULTS[1 + at // 4 % 2]) if at % 4 == 1 else (None,)
        for number in FAULTS if request.config.option.long else turn:
            disk = place.reset()
            disk.restart(at=at, number=number)
            with contextlib.suppress(Death, SendenseError):
                place.attempt(name, seed=1000 + at)
            calls = disk.calls
            disk.restart()
            if calls < at:
                return
            place.attempt(name, seed=2000 + at)
            for choose in list(_choices(f"{name}-{at}", guesses))[: 1 if at % 4 else None]:
                _assert_survives(disk.journal, choose, name, seen)
    pytest.fail(f"more than {CALLS_MAX} calls")


@pytest.mark.parametrize("number", FAULTS)
def test_a_repository_whose_making_stopped_at_any_call_is_made_or_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    for at in range(1, CALLS_MAX):
        path = tmp_path / str(at)
        path.mkdir()
        disk = Disk(at=at, number=number)
        monkeypatch.setattr(local, "os", disk)
        with contextlib.suppress(Death, SendenseError):
            Kit(LocalStorage(path)).create()
        calls = disk.calls
        disk.restart()
        if calls < at:
            return
        storage = LocalStorage(path)
        scenarios.full((Kit(storage).open if storage.list_top() else Kit(storage).create)())
        disk.note("first")
        for choose in _choices(str(at), 1):
            _assert_survives(disk.journal, choose, "first", set())
    pytest.fail(f"more than {CALLS_MAX} calls")
