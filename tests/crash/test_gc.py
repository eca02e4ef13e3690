"""Whatever call a collection dies or fails at, nothing is lost and the next one frees the space."""

import contextlib
from collections.abc import Callable

import pytest

from sendense.core.errors import SendenseError
from sendense.repository.gc import run
from sendense.repository.gc.protocol import Options
from sendense.repository.repository import Repository
from sendense.repository.storage.memory import MemoryStorage
from tests import gc_kit
from tests import repository_kit as kit
from tests.crash import scenarios
from tests.crash.faulty import Death, Fault, FaultyStorage
from tests.crash.scenarios import CALLS_MAX, FIRST, SECOND, THIRD
from tests.repository_kit import Kit

pytestmark = pytest.mark.usefixtures("untraced")


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    scenarios.fill_packs_soon(monkeypatch)


def _prepared() -> MemoryStorage:
    """Return a repository with a deleted backup, one that was aborted, and one that stays."""
    storage = MemoryStorage()
    repository = Kit(storage).create()
    kit.back_up(repository, "first", FIRST)
    kit.back_up(
        repository, "second", SECOND, parent="first", changed=kit.changed_chunks(FIRST, SECOND)
    )
    scenarios.aborted(repository)
    repository.delete_backup("first", who="tester", why="test")
    return storage


def _collect(options: Options) -> Callable[[Repository], None]:
    def collect(repository: Repository) -> None:
        run.run(repository, options)

    return collect


@pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name.lower())
@pytest.mark.parametrize("options", [gc_kit.NOW, gc_kit.SPARSE], ids=["whole", "sparse"])
def test_a_collection_may_stop_at_any_call(options: Options, fault: Fault) -> None:
    before = _prepared()
    for at in range(1, CALLS_MAX):
        storage = scenarios.copy(before)
        faulty = FaultyStorage(storage, at=at, fault=fault)
        with contextlib.suppress(Death, SendenseError):
            _collect(options)(Kit(faulty).open(seed=1000 + at))
        if faulty.calls < at:
            return
        backups = scenarios.assert_sound(storage, 2000 + at).list_backups()
        assert [one.backup_id for one in backups] == ["second"]

        # A backup goes on beside what was left, and the next collection completes it.
        repository = Kit(storage).open(seed=3000 + at)
        changed = kit.changed_chunks(SECOND, THIRD)
        kit.back_up(repository, "third", THIRD, parent="second", changed=changed)
        scenarios.assert_sound(storage, 4000 + at)
        repository.delete_backup("third", who="tester", why="test")
        for turn in range(3):
            _collect(gc_kit.SPARSE)(Kit(storage).open(seed=5000 + 10 * at + turn))
        scenarios.assert_sound(storage, 6000 + at)
        assert len(gc_kit.packs(storage)) <= _NEEDED_MAX
        assert list(storage.list_objects("tombs/")) == []
    pytest.fail(f"more than {CALLS_MAX} calls")


_NEEDED_MAX = 7  # packs of the eight chunks of `second`, two in each, and nodes of its map
