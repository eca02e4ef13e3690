"""Whatever call a change of keys, a verification or an import dies or fails at, nothing is lost."""

import contextlib
from collections.abc import Callable

import pytest

from sendense.core.errors import Corrupt, SendenseError
from sendense.core.ids import SeededIds
from sendense.repository import pack, recipients
from sendense.repository.check import check
from sendense.repository.repository import Repository
from sendense.repository.storage.base import Storage
from sendense.repository.storage.memory import MemoryStorage
from sendense.repository.verify.run import Level, verify
from tests import repository_kit as kit
from tests.crash import scenarios
from tests.crash.faulty import Death, Fault, FaultyStorage
from tests.crash.scenarios import CALLS_MAX, FIRST
from tests.repository_kit import ROOT, Kit

pytestmark = pytest.mark.usefixtures("untraced")

PHRASE = "correct horse"
OTHER = "battery staple"

every_fault = pytest.mark.parametrize("fault", list(Fault), ids=lambda fault: fault.name.lower())


@pytest.fixture(autouse=True)
def cheap_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    scenarios.fill_packs_soon(monkeypatch)
    monkeypatch.setattr(recipients, "MEMORY_KIB", 8 * recipients.LANES)
    monkeypatch.setattr(recipients, "ITERATIONS", 1)


def _add(storage: Storage, phrase: str, seed: int) -> recipients.Recipient:
    return recipients.add_passphrase(
        storage, ROOT, phrase, label=phrase, clock=Kit(MemoryStorage()).clock, ids=SeededIds(seed)
    )


def _prepared() -> MemoryStorage:
    storage = MemoryStorage()
    repository = Kit(storage).create()
    kit.back_up(repository, "first", FIRST)
    _add(storage, PHRASE, 1)
    return storage


def _each_call(
    before: MemoryStorage, fault: Fault, act: Callable[[Storage, int], object]
) -> list[tuple[int, MemoryStorage]]:
    """Let an act die or fail at each of its calls; return what the storage holds then."""
    left: list[tuple[int, MemoryStorage]] = []
    for at in range(1, CALLS_MAX):
        storage = scenarios.copy(before)
        faulty = FaultyStorage(storage, at=at, fault=fault)
        with contextlib.suppress(Death, SendenseError):
            act(faulty, at)
        if faulty.calls < at:
            assert left
            return left
        left.append((at, storage))
    pytest.fail(f"more than {CALLS_MAX} calls")


@every_fault
def test_adding_a_passphrase_may_stop_at_any_call(fault: Fault) -> None:
    for at, storage in _each_call(_prepared(), fault, lambda place, at: _add(place, OTHER, at + 9)):
        assert recipients.open_by_passphrase(storage, PHRASE) == ROOT
        _add(storage, OTHER, 100 + at)
        assert recipients.open_by_passphrase(storage, OTHER) == ROOT
        assert recipients.list_recipients(storage)[1] == []
        scenarios.assert_sound(storage, 1000 + at)


@every_fault
def test_removing_a_passphrase_may_stop_at_any_call(fault: Fault) -> None:
    before = _prepared()
    victim = _add(before, OTHER, 2).recipient_id
    for at, storage in _each_call(
        before, fault, lambda place, _at: recipients.remove(place, victim)
    ):
        assert recipients.open_by_passphrase(storage, PHRASE) == ROOT
        with contextlib.suppress(SendenseError):
            recipients.remove(storage, victim)
        with pytest.raises(SendenseError):
            recipients.open_by_passphrase(storage, OTHER)
        scenarios.assert_sound(storage, 1000 + at)


@every_fault
def test_creating_a_repository_may_stop_at_any_call(fault: Fault) -> None:
    for at, storage in _each_call(MemoryStorage(), fault, lambda place, _at: Kit(place).create()):
        with contextlib.suppress(SendenseError):
            Kit(storage).create()
        repository = Kit(storage).open(seed=at)
        kit.back_up(repository, "first", FIRST)
        assert kit.restore(repository, "first") == FIRST
        assert check(repository, read_data=True).clean


@every_fault
def test_a_verification_that_finds_damage_may_stop_at_any_call(fault: Fault) -> None:
    before = _prepared()
    victim = next(found.name for found in before.list_objects("packs/"))
    data = bytearray(before.get(victim))
    data[pack.HEADER.size + pack.BLOB.size + 9] ^= 1
    before.delete(victim)
    before.put_if_absent(victim, bytes(data))
    left = _each_call(before, fault, lambda place, at: verify(Kit(place).open(seed=at), Level.MAPS))
    for at, storage in left:
        report = verify(Kit(storage).open(seed=2000 + at), Level.MAPS)
        assert (report.clean, report.quarantined_count) == (False, 1)
        repository = Kit(storage).open(seed=3000 + at)
        with pytest.raises(Corrupt):
            kit.restore(repository, "first")
        kit.back_up(repository, "again", FIRST)
        assert kit.restore(repository, "first") == FIRST
        assert verify(Kit(storage).open(seed=4000 + at), Level.DISKS).clean
        assert len(list(storage.list_objects("health/"))) <= 2


@every_fault
def test_what_an_import_reads_is_all_or_an_error_at_any_call(fault: Fault) -> None:
    before = _prepared()
    repository = Kit(before).open(seed=7)
    kit.back_up(repository, "second", FIRST[::-1])
    repository.delete_backup("first", who="test", why="test")
    kit.back_up(repository, "third", FIRST[::-1])
    known = {one.backup_id for one in Kit(before).open(seed=8).backups.scan()[0]}
    assert known == {"second", "third"}

    def scan(place: Storage, at: int) -> None:
        opened: Repository = Kit(place).open(seed=at)
        found, damaged = opened.backups.scan()
        assert (damaged, {one.backup_id for one in found}) == ([], known)

    for at, storage in _each_call(before, fault, scan):
        scan(storage, 5000 + at)
