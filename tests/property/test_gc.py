"""Garbage collection beside writers, readers and other collectors, stopped anywhere.

The real code of all of them runs on the memory storage, one call of the storage at a time, in an
order that hypothesis, chance or an exhaustive search chooses (tests/gc_world.py). Each guard of the
protocol is shown to matter: without it the same search finds a loss.
"""

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sendense.core.errors import Conflict, SendenseError
from sendense.repository.commit import Endings
from sendense.repository.gc import protocol, records, rewrite, survey
from sendense.repository.gc.look import Look
from sendense.repository.gc.protocol import Collector
from sendense.repository.gc.state import View
from sendense.repository.gc.survey import Survey
from sendense.repository.manifest import Manifest
from sendense.repository.repository import Repository
from sendense.repository.segments import Segments
from sendense.repository.session import Role
from tests.gc_world import STEPS_MAX, Actor, Violation, World, small_packs
from tests.rounds import Rounds

pytestmark = pytest.mark.usefixtures("untraced")

STEPS_PER_ROUND = 100_000
TURNS = 400  # choices in one random world
ACTORS_MAX = 6


class Play:
    """Chooses what happens in a world; every choice comes from a number."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.count = 0

    def alive(self) -> list[Actor]:
        return [actor for actor in self.world.actors if not actor.is_over]

    def begin(self, dice: random.Random) -> Actor | None:
        """Let a process begin, unless there are enough."""
        if len(self.alive()) >= ACTORS_MAX:
            return None
        return self.world.start("process", self._choose(dice))

    def _choose(self, dice: random.Random) -> Callable[[Actor], None]:
        world = self.world
        live, opened = world.live_backups(), world.open_sessions()
        chosen = dice.random()
        if chosen < 0.2:
            return world.collector()
        if chosen < 0.45 and live:
            name = dice.choice(live)
            return world.pruner(name) if chosen < 0.35 else world.reader(name)
        if chosen < 0.55 and opened:
            name = dice.choice(opened)  # ended by a user, or taken over while the first may wake
            if chosen < 0.5:
                return world.aborter(name)
            return world.writer(name, world.disks[name])
        self.count += 1
        parent = dice.choice(live) if live and dice.random() < 0.6 else None
        disk = [dice.randrange(6) for _ in range(dice.randint(1, 3))]
        if parent:
            disk = list(world.disks[parent])
            disk[dice.randrange(len(disk))] = dice.randrange(6)
        name = f"s{self.count}"
        return world.writer(name, disk, parent=parent)

    def end(self) -> None:
        """Let all end, and see that everything is there and that what is garbage goes."""
        self.world.run()
        self.world.check_all()
        for _ in range(2):
            self.world.finish(self.world.start("collector", self.world.collector()))
        self.world.check_all()


def play(seed: int, *, stale_seconds: float, sparse_share: float) -> World:
    """Play one random world to its end."""
    dice = random.Random(seed)
    world = World(seed, stale_seconds=stale_seconds, sparse_share=sparse_share)
    made = Play(world)
    weights: dict[Actor, float] = {}
    try:
        for _ in range(TURNS):
            chosen = dice.random()
            if chosen < 0.06:
                actor = made.begin(dice)
                if actor is not None:
                    weights[actor] = dice.random() ** 2 + 0.02  # some hardly ever get a turn
            elif chosen < 0.065 and made.alive():
                dice.choice(made.alive()).kill()
            elif chosen < 0.07:
                world.time += 300
            elif ready := world.ready():
                (actor,) = dice.choices(ready, [weights[one] for one in ready])
                for _ in range(dice.choice([1, 1, 1, 5, 20])):
                    if not actor.is_over and actor.blocked_until <= world.time:
                        world.step(actor)
        made.end()
    finally:
        world.close()
    return world


@pytest.mark.slow
@pytest.mark.share(10)
def test_nothing_is_lost_whatever_order_chance_chooses(rounds: Rounds) -> None:
    with small_packs():
        for seed in rounds:
            steps, number = 0, 0
            while steps < STEPS_PER_ROUND:
                stale, sparse = (0.0, 20.0)[number % 2], (0.0, 0.6)[number // 2 % 2]
                try:
                    steps += play(seed + number, stale_seconds=stale, sparse_share=sparse).steps
                except BaseException as error:
                    error.add_note(f"play({seed + number}, {stale=}, {sparse=})")
                    raise
                number += 1


class CollectionMachine(RuleBasedStateMachine):
    """The same, in an order that hypothesis chooses and makes shorter."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = ExitStack()
        self.patches.enter_context(small_packs())
        self.play: Play | None = None

    @initialize(
        seed=st.integers(0, 2**32),
        stale=st.sampled_from([0.0, 20.0]),
        sparse=st.sampled_from([0.0, 0.6]),
    )
    def make(self, seed: int, stale: float, sparse: float) -> None:
        self.play = Play(World(seed, stale_seconds=stale, sparse_share=sparse))

    @rule(seed=st.integers(0, 2**16))
    def begin(self, seed: int) -> None:
        assert self.play is not None
        self.play.begin(random.Random(seed))

    @precondition(lambda self: self.play is not None and self.play.world.ready())
    @rule(pick=st.integers(0, 99), steps=st.integers(1, 40))
    def go_on(self, pick: int, steps: int) -> None:
        assert self.play is not None
        ready = self.play.world.ready()
        self.play.world.advance(ready[pick % len(ready)], steps)

    @precondition(lambda self: self.play is not None and self.play.alive())
    @rule(pick=st.integers(0, 99))
    def die(self, pick: int) -> None:
        assert self.play is not None
        alive = self.play.alive()
        alive[pick % len(alive)].kill()

    @rule(seconds=st.sampled_from([1.0, 30.0, 500.0]))
    def wait(self, seconds: float) -> None:
        assert self.play is not None
        self.play.world.time += seconds

    def teardown(self) -> None:
        try:
            if self.play is not None:
                self.play.end()
        finally:
            if self.play is not None:
                self.play.world.close()
            self.patches.close()


def test_nothing_is_lost_whatever_order_hypothesis_chooses(seed: int) -> None:
    hypothesis.seed(seed)(run_state_machine_as_test)(
        CollectionMachine,
        settings=settings(
            max_examples=80,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


# Small worlds, searched through: every order with at most so many interruptions.


def chain(world: World, *works: Callable[[Actor], None]) -> Callable[[Actor], None]:
    """Return work that does several works one after the other."""
    del world

    def work(actor: Actor) -> None:
        for one in works:
            try:
                one(actor)
            except SendenseError as error:
                if error.kind != "backup-unknown":
                    raise

    return work


def _back_up(world: World, name: str, disk: list[int]) -> None:
    world.finish(world.start(name, world.writer(name, disk)))


def _delete(world: World, name: str) -> None:
    world.finish(world.start("pruner", world.pruner(name)))


def settle(actor: Actor) -> None:
    """Complete what others have decided."""
    actor.open().settle_sessions()


def deduplicating(world: World) -> list[Callable[[Actor], None]]:
    """A writer finds the chunks of a deleted backup in the index. Upload against sweep."""
    _back_up(world, "old", [0, 1])
    _back_up(world, "other", [2])
    _delete(world, "old")
    return [world.writer("new", [0, 1]), world.collector()]


def inheriting(world: World) -> list[Callable[[Actor], None]]:
    """PBS PSA-2025-00019-1: an incremental inherits chunks while its parent is pruned."""
    _back_up(world, "old", [0, 1])
    return [
        world.writer("new", [0, 2], parent="old"),
        chain(world, world.pruner("old"), world.collector()),
    ]


def two_writers(world: World) -> list[Callable[[Actor], None]]:
    """Duplicacy: two backups of the same data, and a prune that has seen only one of them."""
    _back_up(world, "old", [0])
    _delete(world, "old")
    return [
        world.writer("left", [0, 1]),
        world.writer("right", [0, 1]),
        world.collector(),
    ]


def two_collectors(world: World) -> list[Callable[[Actor], None]]:
    """kopia: maintenance by two owners at once, the second of them late."""
    _back_up(world, "old", [0, 1])
    _back_up(world, "other", [1])
    _delete(world, "old")
    return [
        world.collector(),
        chain(world, world.collector(), world.writer("new", [0, 1]), world.collector()),
    ]


def reading(world: World) -> list[Callable[[Actor], None]]:
    """A backup is deleted and collected while somebody reads it."""
    _back_up(world, "old", [0, 1])
    return [
        world.reader("old"),
        chain(world, world.pruner("old"), world.collector(), world.collector()),
    ]


def repeated(world: World) -> list[Callable[[Actor], None]]:
    """rustic: the same blob in several packs, of which one goes."""
    for name in ("a", "b"):
        world.start(name, world.writer(name, [0, 1]))
    world.run()
    _delete(world, "a")
    return [world.writer("new", [1, 0]), world.collector()]


def settled_twice(world: World) -> list[Callable[[Actor], None]]:
    """A process sleeps after its commit; its backup is deleted and collected before it wakes."""
    return [
        world.writer("old", [0, 1]),
        chain(
            world,
            settle,
            world.pruner("old"),
            world.collector(),
            world.collector(),
        ),
    ]


SMALL_WORLDS = {
    build.__name__: build
    for build in (
        deduplicating,
        inheriting,
        two_writers,
        two_collectors,
        reading,
        repeated,
        settled_twice,
    )
}

Segment = tuple[int, int]  # which process, how many turns
Build = Callable[[World], list[Callable[[Actor], None]]]


@dataclass(frozen=True)
class Conditions:
    """Under which a small world is searched.

    Attributes:
        is_frozen: who is interrupted sleeps on while another waits for it, so that it is fenced.
    """

    sparse_share: float = 0.0
    stale_seconds: float = 0.0
    is_frozen: bool = False


def execute(build: Build, plan: list[Segment], conditions: Conditions) -> tuple[int, int]:
    """Run a small world by a plan, then all to the end.

    Returns how many processes there are, and how many turns the last segment of the plan took.
    """
    world = World(sparse_share=conditions.sparse_share)
    try:
        works = build(world)
        world.stale_seconds, world.is_worst = conditions.stale_seconds, True
        world.is_frozen = conditions.is_frozen
        actors = [world.start(f"process {at}", work) for at, work in enumerate(works)]
        taken = [world.advance(actors[at], steps) for at, steps in plan]
        for actor in actors:
            world.finish(actor)
        world.stale_seconds = 0
        world.check_all()
    finally:
        world.close()
    return len(actors), taken[-1]


def search(build: Build, interruptions: int, conditions: Conditions = Conditions()) -> int:
    """Try every order with at most so many interruptions; return how many orders there are."""
    count = 0
    processes, _ = execute(build, [(0, STEPS_MAX)], conditions)
    pending: list[list[Segment]] = [[(at, STEPS_MAX)] for at in range(processes)]
    while pending:
        plan = pending.pop()
        try:
            _, taken = execute(build, plan, conditions)
        except BaseException as error:
            error.add_note(f"{build.__name__}: {plan}, {conditions}")
            raise
        count += 1
        if len(plan) <= interruptions:
            *before, (current, _) = plan
            pending += [
                [*before, (current, steps), (other, STEPS_MAX)]
                for steps in range(1, taken)
                for other in range(processes)
                if other != current
            ]
    return count


NORMAL, SPARSE, OLD = Conditions(), Conditions(sparse_share=0.9), Conditions(stale_seconds=20)
FROZEN = Conditions(is_frozen=True)


QUICK = {  # what a quick run searches: the conditions that a world was made for
    "deduplicating": [NORMAL, FROZEN],
    "inheriting": [NORMAL, FROZEN],
    "reading": [SPARSE],
    "repeated": [SPARSE],
    "settled_twice": [NORMAL],
    "two_collectors": [SPARSE],
    "two_writers": [NORMAL],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALL_WORLDS))
def test_no_order_of_a_small_world_loses_anything(name: str, *, long_run: bool) -> None:
    with small_packs():
        for conditions in (NORMAL, FROZEN, SPARSE) if long_run else QUICK[name]:
            assert search(SMALL_WORLDS[name], 2 if long_run else 1, conditions) > 40


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deduplicating", "inheriting"])
def test_no_order_of_a_small_world_loses_anything_where_listings_are_old(name: str) -> None:
    with small_packs():
        assert search(SMALL_WORLDS[name], 1, OLD) > 40


# Mutants: without a guard the same search finds a loss.

Patch = Callable[[], AbstractContextManager[Any]]


def _without(owner: object, name: str, replacement: object) -> Patch:
    return lambda: mock.patch.object(owner, name, replacement)


def _begin_then_register(self: Repository, session_id: str, *, parents: Sequence[str] = ()) -> None:
    """Look first and register then: the wrong way round."""
    self.segments.refresh()
    for backup_id in parents:
        self._get_parent(backup_id)
    LOOKED.add(id(self.segments))
    self._register(session_id, Role.WRITER, parents)


LOOKED: set[int] = set()  # indexes that are not read again
_refresh = Segments.refresh


def _refresh_unless_frozen(self: Segments) -> None:
    if id(self) not in LOOKED:
        _refresh(self)


def _look_first() -> AbstractContextManager[Any]:
    LOOKED.clear()
    stack = ExitStack()
    stack.enter_context(mock.patch.object(Repository, "begin_session", _begin_then_register))
    stack.enter_context(mock.patch.object(Segments, "refresh", _refresh_unless_frozen))
    return stack


def _any_parent(self: Repository, backup_id: str) -> Manifest:
    """Find a parent whether it is deleted or not."""
    for one in self.backups.list_manifests()[0]:
        if one.backup_id == backup_id:
            return one
    raise Conflict("gone", kind="parent-deleted")


def _backups_before_sessions(
    repository: Repository, view: View, *, pause: Callable[[], None]
) -> Survey:
    found, _ = repository.backups.list_manifests()
    pause()
    sessions = survey.list_sessions(repository.storage)
    manifests = {one.object_id: one for one in found if not view.is_dead(one.object_id)}
    ended = frozenset(
        records.digest(one.session_id) for one in survey.list_new_outcomes(repository)
    )
    return Survey(tuple(sessions), manifests, ended, frozenset())


MUTANTS: dict[str, tuple[Patch, Build, Conditions]] = {
    "nobody is waited for": (
        _without(Collector, "_is_drained", lambda _self, _number: True), deduplicating, NORMAL,
    ),
    "nothing is marked again": (
        _without(Look, "needed", lambda _self: set()), deduplicating, NORMAL,
    ),
    "writers refer to what is condemned": (
        _without(Segments, "find_known", Segments.find_held), deduplicating, NORMAL,
    ),
    "writers register after they have looked": (_look_first, deduplicating, NORMAL),
    "what is read is no root": (_without(Survey, "pinned", lambda _self: set()), reading, NORMAL),
    "a deleted parent is built upon": (
        _without(Repository, "_get_parent", _any_parent), inheriting, NORMAL,
    ),
    "backups are listed before sessions": (
        _without(survey, "take", _backups_before_sessions), two_writers, NORMAL,
    ),
    "packs of open sessions are orphans": (
        _without(protocol, "_is_over", lambda *_: True), two_writers, NORMAL,
    ),
    "every segment counts": (
        _without(Segments, "_counts", lambda _self, _name: True), deduplicating, NORMAL,
    ),
    "the dead are forgotten": (
        _without(View, "is_dead", lambda _self, _id: False), settled_twice, NORMAL,
    ),
    "who is fenced may go on": (
        _without(Endings, "fence", lambda _self, _id: None), deduplicating, FROZEN,
    ),
    "new segments name what goes": (
        _without(rewrite, "choose_segments", lambda _counted, _gone: []), deduplicating, NORMAL,
    ),
    "copies are not indexed": (
        _without(Collector, "_rewrite_index", lambda _self, _number, look, _gone, copies: {
            one.name for one in look.segments if one.name not in copies
        }), two_collectors, SPARSE,
    ),
    "old listings are not waited out": (
        _without(Collector, "_pause", lambda _self: None), deduplicating, OLD,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_without_a_guard_something_is_lost(name: str) -> None:
    patch, build, conditions = MUTANTS[name]
    with small_packs(), patch(), pytest.raises((Violation, SendenseError)):
        search(build, 1, conditions)
