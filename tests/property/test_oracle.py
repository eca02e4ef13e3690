"""Dozens of backups in a row of disks whose platform changes, forgets and lies: a truth oracle.

The guest writes, trims and writes zeros; the disk grows, shrinks, is exchanged and put back, goes
back to an older state. Its change tracking is lost, or lies. After each backup the oracle knows the
disk's bytes at that moment and what the repository must hold, and all backups are read back.

What is promised where tracking lies by leaving something out, and what this suite holds it to:

- A chunk that is told as changed is read, so what is told too much costs time and no bytes.
- Of U chunks that are told as unchanged n are compared with the parent, chosen evenly on disks up
  to 1 GiB: n = 0.1 %, at least 10, at most 256. If k of the U differ, the chance that nobody
  notices is C(U-k, n) / C(U, n). It is 0, so a lie is found for certain, if U < n + k: where no
  more than 10 chunks are told as unchanged, always.
- What is noticed becomes a full read in the same run, with a reason: every byte is right then.
- What is not noticed is wrong in the omitted chunks alone, which hold what the parent holds, and
  every later incremental has the same chance to notice it.
- A trim is taken at its word, as holes of a full read are: where it covers a whole chunk that
  holds data, zeros are stored, and a later sample or full read mends it.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from sendense.connectors.base import (
    DISK_KEY_FIRST,
    DiskRequest,
    SnapshotOutcome,
    SnapshotRequest,
    Tracking,
)
from sendense.connectors.fake.disk import BLOCK, FakeDisk
from sendense.connectors.fake.source import FakePlatform
from sendense.core import extent, units
from sendense.core.extent import Extent
from sendense.engine import backup, plan, sampling
from sendense.engine.backup import Task, Transfer
from sendense.engine.plan import Mode, Reason, Wish
from sendense.engine.worklist import Worklist
from sendense.repository.check import check
from sendense.repository.manifest import DiskIdentity
from tests.engine_kit import CHUNK, Lab
from tests.rounds import Rounds

KEY = DISK_KEY_FIRST
BACKUPS = 24
CHUNKS_MAX = 40
SIGMAS = 5.0  # one false alarm in two million runs


@dataclass
class Told:
    """What the oracle works out about one incremental.

    Attributes:
        stored: the bytes that it must hold if no sample differs.
        untouched: chunks told as unchanged. differing: those of them that differ.
    """

    stored: bytes
    untouched: int
    differing: int

    @property
    def miss_probability(self) -> float:
        """Chance that no sample differs."""
        picked = min(self.untouched, sampling.COUNT_MIN)
        hidden = math.comb(self.untouched - self.differing, picked)
        return hidden / math.comb(self.untouched, picked)


def work_out(truth: bytes, parent: bytes, told: list[Extent]) -> Told:
    """Say what an incremental must do with what it is told; chunk by chunk, from sets of blocks."""
    stored = bytearray(parent)
    untouched = differing = 0
    for start in range(0, len(truth), CHUNK):
        end = min(start + CHUNK, len(truth))
        touching = [one for one in told if one.start < end and start < one.end]
        zeros = sum(min(one.end, end) - max(one.start, start) for one in touching if one.zero)
        if not touching:
            untouched += 1
            differing += truth[start:end] != parent[start:end]
        elif zeros == end - start:
            stored[start:end] = bytes(end - start)
        else:
            stored[start:end] = truth[start:end]
    return Told(bytes(stored), untouched, differing)


class World:
    """A VM with one disk on a fake platform, a repository, and the truth about both."""

    def __init__(self, dice: random.Random, *, chunks: int) -> None:
        self.dice = dice
        self.platform = FakePlatform()
        self.disk = self.platform.add_vm("one", chunks * CHUNK)[0]
        self.oracle = bytearray(self.disk.size_bytes)
        self.lab = Lab()
        self.name = random.Random(dice.random()).randbytes(4).hex()  # other moments in each run
        self.stored: dict[str, bytes] = {}
        self.parent: str | None = None
        self.told: list[Extent] = []
        self.expected: set[Reason | None] = {Reason.FIRST_BACKUP}
        self.away: tuple[FakeDisk, bytearray] | None = None
        self.kept: tuple[dict[int, bytes], bytes] | None = None
        self.seen: list[tuple[Told, Transfer]] = []  # of each incremental that was tried

    # What happens to the disk.

    def write(self, start: int, data: bytes) -> None:
        self.disk.write(start, data)
        self.oracle[start : start + len(data)] = data

    def change(self) -> None:
        """Write, zero and trim a few places."""
        for _ in range(self.dice.randint(0, 4)):
            length = min(len(self.oracle), self.dice.choice([512, 4096, BLOCK, 3 * CHUNK]))
            start = self.dice.randrange(0, len(self.oracle) - length + 1, units.SECTOR)
            kind = self.dice.choice(["data", "data", "zeros", "trim"])
            if kind == "trim":
                self.disk.trim(start, length)
                first, last = -(-start // BLOCK) * BLOCK, (start + length) // BLOCK * BLOCK
                self.oracle[first:last] = bytes(max(0, last - first))
            else:
                self.write(start, self.dice.randbytes(length) if kind == "data" else bytes(length))

    def resize(self) -> None:
        size = self.dice.randint(1, CHUNKS_MAX * CHUNK // units.SECTOR) * units.SECTOR
        self.disk.resize(size)
        if size != len(self.oracle):
            self.expected = {Reason.DISK_GROWN if size > len(self.oracle) else Reason.DISK_SHRUNK}
        self.oracle = self.oracle[:size].ljust(size, b"\0")

    def exchange(self) -> None:
        """Put in another disk, or the first one again."""
        other = FakePlatform().add_vm(f"other-{self.name}", len(self.oracle))[0]
        if self.away is None:
            self.away = (self.platform.exchange_disk("one", 0, other), self.oracle)
            self.disk, self.oracle = other, bytearray(len(self.oracle))
        else:
            self.disk, self.oracle = self.away
            self.platform.exchange_disk("one", 0, self.disk)
            self.away = None
        self.expected = {Reason.DISK_REPLACED}

    def revert(self) -> None:
        """Keep the state, or go back to the one kept."""
        if self.kept is None or len(self.kept[1]) != len(self.oracle):
            self.kept = (dict(self.disk.freeze()), bytes(self.oracle))
            return
        self.disk.revert(self.kept[0], size_bytes=len(self.kept[1]))
        self.oracle = bytearray(self.kept[1])
        self.expected = {Reason.TRACKING_LOST}

    def lose(self) -> None:
        self.platform.lose_tracking()
        self.expected = {Reason.TRACKING_LOST}

    # What the platform tells.

    def tell(self, changes: list[Extent]) -> list[Extent]:
        self.told = changes
        return changes

    def omit(self, changes: list[Extent]) -> list[Extent]:
        """Leave out about half."""
        return self.tell([one for one in changes if self.dice.random() < 0.5])

    def exaggerate(self, changes: list[Extent]) -> list[Extent]:
        """Tell gaps between changes as changed too, and something behind the disk's end."""
        size = len(self.oracle)
        gaps = [one for one in extent.gaps(changes, size=size) if self.dice.random() < 0.5]
        told = sorted([*changes, *gaps], key=lambda one: one.start)
        return self.tell([*told, Extent(size + BLOCK, BLOCK)])

    def pad(self, changes: list[Extent]) -> list[Extent]:
        """Let an extent at the disk's end reach over it."""
        size = len(self.oracle)
        return self.tell(
            [
                Extent(one.start, one.length + (CHUNK if one.end == size else 0), one.zero)
                for one in changes
            ]
        )

    def trim_falsely(self, changes: list[Extent]) -> list[Extent]:
        """Call zero what holds data."""
        return self.tell([Extent(one.start, one.length, zero=True) for one in changes])

    # Backups.

    def back_up(self) -> Transfer:
        """Back up the disk as a job does and compare what was stored with what must be."""
        old = self.lab.repository.get_backup(self.parent).find_disk(KEY) if self.parent else None
        parent = None
        if old is not None:
            parent = plan.Parent(old.uuid, old.size_bytes, old.chunk_size, old.change_id)
        decide = plan.decide_mode(Wish.AUTO, parent, tracking=Tracking.SUPPORTED, chunk_size=CHUNK)
        base = old.change_id if old and decide.mode is Mode.INCREMENTAL else None
        session_id = self.lab.begin(self.parent)
        request = SnapshotRequest("vm-one", session_id, (DiskRequest(KEY, "chain", base),))
        snapshot = self.platform.take_snapshot(request)
        disk = snapshot.disks[0]
        decision = plan.decide_mode(
            Wish.AUTO, parent, tracking=Tracking.SUPPORTED, chunk_size=CHUNK, snapshot=disk
        )
        moment = f"{session_id}-{self.name}"
        truth = bytes(self.oracle)
        identity = DiskIdentity(KEY, 0, "disk", disk.uuid, disk.size_bytes)
        with self.platform.open_disk(snapshot.reference, KEY) as view:
            done = backup.back_up_disk(
                Task(
                    view=view,
                    open_writer=lambda mode: self.lab.repository.open_disk_writer(
                        session_id,
                        identity,
                        moment=session_id,
                        mode=mode,
                        parent_backup_id=self.parent,
                    ),
                    decision=decision,
                    moment=moment,
                    change_id=disk.change_id,
                ),
                settings=self.lab.settings,
                control=self.lab.control,
                progress=self.lab.progress,
            )
        self.lab.commit(session_id)
        self.platform.remove_snapshot(
            snapshot.reference, SnapshotOutcome.COMMITTED, frozenset({str(disk.change_id)})
        )
        self._judge(decision, done, session_id, truth)
        self.parent = session_id
        return done

    def _judge(
        self, decision: plan.Decision, done: Transfer, session_id: str, truth: bytes
    ) -> None:
        assert decision.code in self.expected, decision
        self.expected = {None}
        assert (done.decision.mode is Mode.FULL) == bool(done.decision.reason)
        self.stored[session_id] = truth
        if decision.mode is Mode.INCREMENTAL:
            assert self.parent is not None
            told = work_out(truth, self.stored[self.parent], self.told)
            self.seen.append((told, done))
            if done.decision.code is Reason.SAMPLE_DIFFERED:
                assert told.differing, "an honest platform was called a liar"
                assert done.suspect_reason
            else:
                assert told.miss_probability > 0, "a lie that must be noticed was not"
                assert done.decision.mode is Mode.INCREMENTAL
                self.stored[session_id] = told.stored
        self.assert_reads_back(session_id)

    def assert_reads_back(self, backup_id: str) -> None:
        with self.lab.repository.open_disk_reader(backup_id, KEY) as reader:
            assert reader.read(0, reader.size_bytes) == self.stored[backup_id]

    def count_misses(self) -> tuple[int, float, float]:
        """Return lies that went by, and how many were to be expected, with their variance."""
        tried = [(told.miss_probability, done) for told, done in self.seen if told.differing]
        missed = sum(done.decision.mode is Mode.INCREMENTAL for _, done in tried)
        return missed, sum(p for p, _ in tried), sum(p * (1 - p) for p, _ in tried)


def run(world: World, lies: list[str]) -> Iterator[Transfer]:
    """Make a backup, then `BACKUPS` more, each after something happened, and read all back."""
    dice = world.dice
    world.write(0, dice.randbytes(min(len(world.oracle), 4 * CHUNK)))
    yield world.back_up()
    for _ in range(BACKUPS):
        world.platform.tamper = getattr(world, dice.choice(lies))
        if dice.random() < 0.3:
            getattr(world, dice.choice(["resize", "exchange", "revert", "lose"]))()
        world.change()
        yield world.back_up()
    for backup_id in world.stored:
        world.assert_reads_back(backup_id)
    assert check(world.lab.repository, read_data=True).problems == ()
    assert world.platform.snapshots == []


@pytest.mark.share(4)
def test_every_backup_is_the_truth_whatever_happens_to_an_honest_disk(rounds: Rounds) -> None:
    for seed in rounds:
        dice = random.Random(seed)
        world = World(dice, chunks=dice.randint(1, CHUNKS_MAX))
        modes = {done.decision.mode for done in run(world, ["tell", "exaggerate", "pad"])}
        assert modes == set(Mode)
        assert all(not told.differing for told, _ in world.seen)


@pytest.mark.share(4)
def test_a_lie_is_noticed_as_often_as_promised_and_never_wrong_where_noticed(
    rounds: Rounds,
) -> None:
    missed, expected, variance = 0, 0.0, 0.0
    for seed in rounds:
        dice = random.Random(seed)
        world = World(dice, chunks=dice.randint(1, CHUNKS_MAX))
        for _ in run(world, ["tell", "omit", "omit", "pad", "trim_falsely"]):
            pass
        more = world.count_misses()
        missed, expected, variance = missed + more[0], expected + more[1], variance + more[2]
    assert abs(missed - expected) <= SIGMAS * math.sqrt(variance) + 1


def test_a_lie_is_certainly_noticed_where_ten_chunks_or_fewer_are_called_unchanged(
    rounds: Rounds,
) -> None:
    for seed in rounds:
        world = World(random.Random(seed), chunks=sampling.COUNT_MIN)
        world.platform.tamper = lambda _changes: []
        world.back_up()
        world.write(world.dice.randrange(len(world.oracle)), b"x")
        done = world.back_up()
        assert done.decision.code is Reason.SAMPLE_DIFFERED
        assert "change tracking is wrong" in done.decision.reason


@pytest.mark.parametrize("differing", [1, 20, 200])
def test_samples_of_a_larger_disk_miss_as_often_as_the_formula_says(
    seed: int, differing: int
) -> None:
    chunks, tries = 2000, 400
    dice = random.Random(seed)
    missed = 0
    for _ in range(tries):
        work = Worklist(size_bytes=chunks * CHUNK, chunk_size=CHUNK)
        hidden = set(dice.sample(range(chunks), differing))
        missed += hidden.isdisjoint(sampling.choose(work, seed=str(dice.random())))
    chance = Told(b"", chunks, differing).miss_probability
    assert abs(missed - tries * chance) <= SIGMAS * math.sqrt(tries * chance * (1 - chance)) + 1
