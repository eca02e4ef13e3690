"""A repository driven at random, with a dictionary of what it must hold as its model.

Two open repositories stand on one storage, as two workers would hold them; each step is taken by
either. After every step both list what the model lists, the newest backups come back bit for bit
and the structure is clean; at the end all backups are restored and every stored byte is read.
"""

import dataclasses
import random
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sendense.core.errors import Conflict, NotFound
from sendense.repository import pack
from sendense.repository.check import check
from sendense.repository.manifest import DiskRecord, Manifest, ManifestDraft
from sendense.repository.repository import Repository
from sendense.repository.session import State
from sendense.repository.storage.base import Storage
from sendense.repository.storage.local import LocalStorage
from sendense.repository.storage.memory import MemoryStorage
from tests import repository_kit as kit
from tests.repository_kit import CHUNK, Kit
from tests.rounds import Rounds

VMS = ("vm-1", "vm-2")
KEYS = (2000, 2001)
CHUNKS_MAX = 6
RESTORED_PER_STEP = 3
WAIT_SECONDS = 60  # a deadline for a test that hangs, not a time it takes

Disks = dict[int, bytes]


@dataclass
class Session:
    """What the model knows of a session that has not ended.

    Attributes:
        disks: at the session's moment. base: of the parent, as it was at its own.
    """

    name: str
    vm: str
    disks: Disks
    parent: str | None
    base: Disks
    finished: set[int] = field(default_factory=set)

    @property
    def moment(self) -> str:
        return f"at-{self.name}"


class RepositoryMachine(RuleBasedStateMachine):
    """See the module."""

    kind = "memory"
    examples = 8
    which = st.integers(0, 1)
    pick = st.integers(0, 999)

    def __init__(self) -> None:
        super().__init__()
        # Small packs: a few chunks make a checkpoint to resume from.
        self.patch = mock.patch.object(pack, "TARGET_BYTES", 2 * CHUNK)
        self.patch.start()
        self.folder = tempfile.TemporaryDirectory()
        self.storage: Storage = (
            MemoryStorage() if self.kind == "memory" else LocalStorage(Path(self.folder.name))
        )
        self.opened = 1
        self.repositories = [Kit(self.storage).create(), self._open()]
        self.guests: dict[str, Disks] = {}
        self.live: dict[str, tuple[str, Disks]] = {}  # in the order of their commits
        self.deleted: set[str] = set()
        self.ended: dict[str, State] = {}
        self.sessions: list[Session] = []

    def teardown(self) -> None:
        try:
            self._assert_restored(list(self.live))
            assert check(self._open(), read_data=True).problems == ()
        finally:
            self.storage.close()
            self.folder.cleanup()
            self.patch.stop()

    def _open(self) -> Repository:
        self.opened += 1  # random names of two processes differ
        return Kit(self.storage).open(seed=self.opened)

    # What guests and users do.

    @initialize(seed=st.integers(0, 2**32))
    def make_guests(self, seed: int) -> None:
        dice = random.Random(seed)
        self.guests = {vm: {key: _make_disk(dice) for key in KEYS} for vm in VMS}

    @rule(vm=st.sampled_from(VMS), key=st.sampled_from(KEYS), seed=st.integers(0, 2**32))
    def write(self, vm: str, key: int, seed: int) -> None:
        dice = random.Random(seed)
        disk = bytearray(self.guests[vm][key])
        for _ in range(dice.randint(1, 3)):
            start = dice.randrange(len(disk))
            length = min(len(disk) - start, dice.randint(1, CHUNK * 2))
            disk[start : start + length] = _make_content(dice, length)
        if dice.random() < 0.2:
            disk += _make_content(dice, dice.randint(1, CHUNK))
        self.guests[vm][key] = bytes(disk[: CHUNKS_MAX * CHUNK])

    @rule(vm=st.sampled_from(VMS), which=which, alone=st.booleans())
    def begin(self, vm: str, which: int, *, alone: bool) -> None:
        self._begin(vm, which, alone=alone)

    def _begin(self, vm: str, which: int, *, alone: bool) -> Session:
        older = [name for name, (owner, _) in self.live.items() if owner == vm]
        parent = older[-1] if older and not alone else None
        base = self.live[parent][1] if parent else {}
        made = Session(f"s{len(self.sessions)}", vm, dict(self.guests[vm]), parent, base)
        self.repositories[which].begin_session(made.name, parents=[parent] if parent else [])
        self.sessions.append(made)
        return made

    @precondition(lambda self: self.sessions)
    @rule(
        pick=pick,
        key=st.sampled_from(KEYS),
        which=which,
        stop=st.none() | st.integers(0, CHUNKS_MAX),
        full=st.booleans(),
    )
    def write_disk(self, pick: int, key: int, which: int, stop: int | None, *, full: bool) -> None:
        """Write a disk, or give up within it; going on where an earlier try gave up."""
        self._write_disk(self._pick(pick), key, which, stop, full=full)

    def _write_disk(
        self, one: Session, key: int, which: int, stop: int | None, *, full: bool
    ) -> None:
        if one.name in self.ended:
            return
        repository, data = self.repositories[which], one.disks[key]
        base = one.base.get(key)
        changed = None
        if base is not None and not full and len(base) <= len(data):
            changed = kit.changed_chunks(base, data)
        refused: str | None = None
        done: DiskRecord | None = None
        try:
            done = kit.write_disk(
                repository,
                one.name,
                data,
                moment=one.moment,
                parent=one.parent,
                changed=changed,
                stop=stop,
                key=key,
            )
        except Conflict as error:
            refused = error.kind
        is_orphan = one.parent is not None and one.parent in self.deleted
        assert refused == ("parent-deleted" if is_orphan else None)
        if is_orphan:
            one.parent, one.base = None, {}  # as the product does: everything is read
        if done is not None:
            one.finished.add(key)

    @precondition(lambda self: self.sessions)
    @rule(pick=pick, which=which, full=st.booleans())
    def finish(self, pick: int, which: int, *, full: bool) -> None:
        """Write what is left and commit."""
        self._finish(self._pick(pick), which, full=full)

    @rule(vm=st.sampled_from(VMS), which=which, seed=st.integers(0, 2**32), full=st.booleans())
    def back_up(self, vm: str, which: int, seed: int, *, full: bool) -> None:
        """Make a backup after a write, as most backups are made."""
        self.write(vm, KEYS[seed % len(KEYS)], seed)
        self._finish(self._begin(vm, which, alone=False), which, full=full)

    @precondition(lambda self: self.sessions)
    @rule(pick=pick, which=which)
    def commit(self, pick: int, which: int) -> None:
        self._commit(self._pick(pick), which)

    def _commit(self, one: Session, which: int) -> None:
        repository = self.repositories[which]
        wanted: str | None = None
        if one.name in self.ended:
            wanted = "session-aborted" if self.ended[one.name] is State.ABORTED else None
        elif one.finished != set(KEYS):
            wanted = "disk-unfinished"
        if wanted is not None:
            with pytest.raises(Conflict) as caught:
                repository.commit(one.name, self._draft(repository, one))
            assert caught.value.kind == wanted
        else:
            self._note_commit(one, repository.commit(one.name, self._draft(repository, one)))

    @precondition(lambda self: self.sessions)
    @rule(pick=pick, which=which)
    def abort(self, pick: int, which: int) -> None:
        one = self._pick(pick)
        outcome = self.repositories[which].abort(one.name, "the model wants it")
        assert outcome.state is self.ended.setdefault(one.name, State.ABORTED)

    @precondition(lambda self: self.sessions)
    @rule(pick=pick, which=which)
    def commit_and_abort_at_once(self, pick: int, which: int) -> None:
        one = self._pick(pick)
        if one.name in self.ended or one.finished != set(KEYS):
            return
        made: list[Manifest] = []
        refused: list[str] = []
        barrier = threading.Barrier(2, timeout=WAIT_SECONDS)

        def commit() -> None:
            repository = self.repositories[which]
            draft = self._draft(repository, one)
            barrier.wait()
            try:
                made.append(repository.commit(one.name, draft))
            except Conflict as error:
                refused.append(str(error.kind))

        racer = threading.Thread(target=commit)
        racer.start()
        barrier.wait()
        outcome = self.repositories[1 - which].abort(one.name, "a race")
        racer.join(WAIT_SECONDS)
        assert not racer.is_alive()
        if outcome.state is State.COMMITTED:
            assert made == [outcome.manifest]
            self._note_commit(one, made[0])
        else:
            assert (made, refused) == ([], ["session-aborted"])
            self.ended[one.name] = State.ABORTED

    @precondition(lambda self: self.live)
    @rule(data=st.data(), which=which)
    def delete(self, data: st.DataObject, which: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.live)))
        self.repositories[which].delete_backup(name, who="model", why="test")
        del self.live[name]
        self.deleted.add(name)

    @precondition(lambda self: self.deleted)
    @rule(data=st.data(), which=which)
    def use_a_deleted_one(self, data: st.DataObject, which: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.deleted)))
        repository = self.repositories[which]
        with pytest.raises(NotFound):
            repository.delete_backup(name, who="model", why="test")
        with pytest.raises(NotFound):
            kit.restore(repository, name)

    @precondition(lambda self: self.sessions)
    @rule(pick=pick, which=which)
    def begin_again(self, pick: int, which: int) -> None:
        """Another process takes the session up, or finds that it has ended."""
        one = self._pick(pick)
        wanted: str | None = None
        if one.name in self.ended:
            wanted = "session-ended"
        elif one.parent in self.deleted:
            wanted = "parent-deleted"
        begin = self.repositories[which].begin_session
        parents = [one.parent] if one.parent else []
        if wanted is None:
            begin(one.name, parents=parents)
            return
        with pytest.raises(Conflict) as caught:
            begin(one.name, parents=parents)
        assert caught.value.kind == wanted

    @rule(which=which)
    def reopen(self, which: int) -> None:
        self.repositories[which] = self._open()

    # What must hold.

    @invariant()
    def everything_is_as_the_model_says(self) -> None:
        for repository in self.repositories:
            listed = {one.backup_id for one in repository.list_backups()}
            assert listed == set(self.live)
            for vm in VMS:
                names = [name for name, (owner, _) in self.live.items() if owner == vm]
                latest = repository.find_latest(source_uuid="source-1", vm_uuid=vm, disk_key=2000)
                assert (latest.backup_id if latest else None) == (names[-1] if names else None)
        for name, state in self.ended.items():
            outcome = self.repositories[0].find_outcome(name)
            assert outcome is not None
            assert outcome.state is state
        self._assert_restored(list(self.live)[-RESTORED_PER_STEP:])
        assert check(self.repositories[1]).problems == ()

    def _assert_restored(self, names: list[str]) -> None:
        for number, name in enumerate(names):
            for key, data in self.live[name][1].items():
                assert kit.restore(self.repositories[number % 2], name, key=key) == data

    def _pick(self, pick: int) -> Session:
        """Return a session: one that has not ended, but for one time in eight."""
        going = [one for one in self.sessions if one.name not in self.ended]
        chosen = going if going and pick % 8 else self.sessions
        return chosen[pick % len(chosen)]

    def _finish(self, one: Session, which: int, *, full: bool) -> None:
        for key in KEYS:
            while one.name not in self.ended and key not in one.finished:
                self._write_disk(one, key, which, None, full=full)
        self._commit(one, which)

    def _note_commit(self, one: Session, made: Manifest) -> None:
        assert one.finished == set(KEYS)
        assert [disk.key for disk in made.disks] == list(KEYS)
        if one.name not in self.ended:
            self.live[one.name] = (one.vm, one.disks)
        assert self.ended.setdefault(one.name, State.COMMITTED) is State.COMMITTED

    @staticmethod
    def _draft(repository: Repository, one: Session) -> ManifestDraft:
        vm = dataclasses.replace(kit.VM, uuid=one.vm)
        return dataclasses.replace(kit.draft(repository, one.name, one.moment, KEYS), vm=vm)


class LocalRepositoryMachine(RepositoryMachine):
    """The same on a folder."""

    kind = "local"
    examples = 3  # each step waits for the disk to write


def _make_content(dice: random.Random, length: int) -> bytes:
    kinds = [dice.randbytes(length), bytes(length), (b"text" * (length // 4 + 1))[:length]]
    return dice.choice(kinds)


def _make_disk(dice: random.Random) -> bytes:
    return _make_content(dice, dice.randint(1, 3 * CHUNK)) + _make_content(dice, 512)


@pytest.mark.share(5)
@pytest.mark.parametrize("machine", [RepositoryMachine, LocalRepositoryMachine])
def test_the_repository_holds_what_a_dictionary_would(
    machine: type[RepositoryMachine], rounds: Rounds
) -> None:
    for seed in rounds:
        run_state_machine_as_test(
            hypothesis.seed(seed)(machine),
            settings=settings(
                max_examples=machine.examples,
                stateful_step_count=30,
                deadline=None,
                database=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            ),
        )
