"""Whatever call a backup dies or fails at, nothing committed is lost and the next try succeeds."""

import contextlib
from collections.abc import Callable

import pytest

from sendense.core.errors import SendenseError
from sendense.repository.check import check
from sendense.repository.repository import Repository
from sendense.repository.storage.memory import MemoryStorage
from tests import repository_kit as kit
from tests.crash import scenarios
from tests.crash.faulty import Death, Fault, FaultyStorage
from tests.crash.scenarios import CALLS_MAX, SECOND, THIRD
from tests.repository_kit import Kit

pytestmark = pytest.mark.usefixtures("untraced")


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    scenarios.fill_packs_soon(monkeypatch)


def _prepared(scenario: Callable[[Repository], None]) -> MemoryStorage:
    storage = MemoryStorage()
    repository = Kit(storage).create()
    if scenario is not scenarios.full:
        scenarios.full(repository)
    return storage


@pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name.lower())
@pytest.mark.parametrize(
    "scenario",
    [
        scenarios.full,
        scenarios.incremental,
        scenarios.resumed,
        scenarios.aborted,
        scenarios.deleted,
    ],
    ids=lambda one: one.__name__,
)
def test_a_backup_may_stop_at_any_call(
    scenario: Callable[[Repository], None], fault: Fault
) -> None:
    before = _prepared(scenario)
    for at in range(1, CALLS_MAX):
        storage = scenarios.copy(before)
        faulty = FaultyStorage(storage, at=at, fault=fault)
        with contextlib.suppress(Death, SendenseError):
            scenario(Kit(faulty).open(seed=1000 + at))
        if faulty.calls < at:
            return
        committed = {
            one.backup_id for one in scenarios.assert_sound(storage, 2000 + at).list_backups()
        }
        assert scenario is scenarios.full or scenario is scenarios.deleted or "first" in committed

        repository = Kit(storage).open(seed=3000 + at)
        again = repository.find_outcome("second" if scenario is scenarios.incremental else "third")
        if again is None and scenario in {scenarios.incremental, scenarios.resumed}:
            scenario(repository)  # the job's next attempt, with the same session
        scenarios.assert_sound(storage, 4000 + at)

        repository = Kit(storage).open(seed=5000 + at)
        repository.settle_sessions()
        parents = [one.backup_id for one in repository.list_backups()]
        kit.back_up(repository, "next", THIRD, parent=parents[-1] if parents else None)
        report = check(Kit(storage).open())
        assert not report.error_count, report.problems
        assert kit.restore(repository, "next") == THIRD
    pytest.fail(f"more than {CALLS_MAX} calls")


@pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name.lower())
def test_creating_may_stop_at_any_call(fault: Fault) -> None:
    for at in range(1, CALLS_MAX):
        storage = MemoryStorage()
        faulty = FaultyStorage(storage, at=at, fault=fault)
        with contextlib.suppress(Death, SendenseError):
            Kit(faulty).create()
        if faulty.calls < at:
            return
        if storage.list_top():
            scenarios.full(Kit(storage).open())
        else:
            scenarios.full(Kit(storage).create())
        scenarios.assert_sound(storage, 9)
    pytest.fail(f"more than {CALLS_MAX} calls")


@pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name.lower())
def test_of_commit_and_abort_exactly_one_wins_whatever_fails(fault: Fault) -> None:
    before = _prepared(scenarios.incremental)
    repository = Kit(before).open()
    repository.begin_session("second", parents=["first"])
    kit.write_disk(repository, "second", SECOND, moment="m", parent="first")
    for at in range(1, CALLS_MAX):
        storage = scenarios.copy(before)
        faulty = FaultyStorage(storage, at=at, fault=fault)
        with contextlib.suppress(Death, SendenseError):
            opened = Kit(faulty).open(seed=at)
            opened.commit("second", kit.draft(opened, "second", "m"))
        if faulty.calls < at:
            return
        outcome = Kit(storage).open(seed=at + 1).abort("second", "too late or not")
        scenarios.assert_sound(storage, at)
        listed = {one.backup_id for one in Kit(storage).open().list_backups()}
        assert ("second" in listed) == (outcome.manifest is not None)
        assert not list(storage.list_objects("sessions/second"))
    pytest.fail(f"more than {CALLS_MAX} calls")
