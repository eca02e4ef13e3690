"""A repository, many processes around it, and a hand that lets one of them take the next step.

Every process is a thread that runs the product's own code and stops before each call of its
storage, until it is told to go on, or dies there. Only one runs at a time, so a run is determined
by the order of turns. The world sees every call and holds garbage collection to its promises.
"""

import contextlib
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from unittest import mock

from sendense.core.clock import ManualClock
from sendense.core.errors import Conflict, SendenseError
from sendense.core.ids import SeededIds
from sendense.repository import chunk, diskmap, format, pack, record, session, uploader
from sendense.repository.check import check
from sendense.repository.chunk import ZERO_ID
from sendense.repository.descriptor import RepositorySettings
from sendense.repository.format import Frame
from sendense.repository.gc import records
from sendense.repository.gc.protocol import Collector, Options, Stage
from sendense.repository.gc.records import Final
from sendense.repository.gc.state import Collected
from sendense.repository.gc.verdict import Limits
from sendense.repository.keyed import Keyed
from sendense.repository.keys import UNSEALED
from sendense.repository.manifest import DiskTotals, Manifest, Mode
from sendense.repository.pack import BlobType, Kind, PackRef
from sendense.repository.repository import NO_RESERVE, Repository
from sendense.repository.segments import Segments
from sendense.repository.session import Outcome, State
from sendense.repository.storage.base import Buffer, Capacity, StoredObject
from sendense.repository.storage.locks import Locks
from sendense.repository.storage.memory import MemoryStorage
from tests import repository_kit as kit
from tests.repository_kit import CHUNK, KEY

R = TypeVar("R")

CONTENTS = [bytes([65 + number]) * CHUNK for number in range(6)]
# Not encrypted: random keys would make each run another one.
IDS = [UNSEALED.identify(content) for content in CONTENTS]
START = datetime(2026, 1, 1, tzinfo=UTC)
FENCE_SECONDS = 400.0  # of a world in which every call takes a second
POLL_SECONDS = 10.0
STEPS_MAX = 5000  # of one process; one that needs more has a loop it should not have
JOIN_SECONDS = 60.0  # a deadline for a thread that hangs, not a time it takes
EXPECTED = {  # what one process may find that another has done
    "parent-deleted",
    "session-aborted",
    "session-ended",
    "backup-unknown",
    "backup-exists",  # a twin has committed the same session meanwhile
    "disk-unfinished",  # and has tidied it up
    "exists",  # even between two calls of ours
}


class Death(BaseException):
    """The process is dead; no handler of the code under test may catch this."""


class Violation(AssertionError):
    """A promise was broken."""


class Inline:
    """Runs at once what a writer gives to its thread, so that a process is one thread here."""

    def __init__(self, max_workers: int, thread_name_prefix: str) -> None:
        del max_workers, thread_name_prefix

    def submit(self, work: Callable[..., R], *arguments: object) -> "Future[R]":
        future: Future[R] = Future()
        try:
            future.set_result(work(*arguments))
        except SendenseError as error:
            future.set_exception(error)
        return future

    def shutdown(self, *, wait: bool, cancel_futures: bool) -> None:
        del wait, cancel_futures


@contextlib.contextmanager
def small_packs() -> Iterator[None]:
    """One chunk fills a pack, and a writer's packs are put by its own thread."""
    with (
        mock.patch.object(pack, "TARGET_BYTES", 1),
        mock.patch.object(uploader, "ThreadPoolExecutor", Inline),
    ):
        yield


class Actor:
    """A process. `turn` is called by its own thread, everything else by the world's."""

    def __init__(self, world: "World", name: str, work: Callable[["Actor"], None]) -> None:
        self.world = world
        self.name = name
        self.storage = ActorStorage(self)
        self.clock = ActorClock(self)
        self.error: BaseException | None = None
        self.is_over = False
        self.blocked_until = 0.0
        self._work = work
        self._doomed = False
        self._go = threading.Semaphore(0)
        self._arrived = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        self._wait()

    def open(self) -> Repository:
        """Open the repository as this process sees it, with random numbers of its own."""
        return Repository.open(
            self.storage,
            clock=self.clock,
            ids=SeededIds(self.world.next_seed()),
            reserve=NO_RESERVE,
        )

    def turn(self) -> None:
        """Wait for the next turn. Raises Death where none comes any more."""
        if not self._doomed:
            self._arrived.release()
            self._go.acquire()
        if self._doomed:
            raise Death

    def step(self) -> None:
        """Let the process do its next call, up to the one after it."""
        self._go.release()
        self._wait()
        if self.error is not None:
            raise self.error

    def kill(self) -> None:
        """Let the process die where it stands."""
        self._doomed = True
        if not self.is_over:
            self._go.release()
            self._wait()

    def _wait(self) -> None:
        if not self._arrived.acquire(timeout=JOIN_SECONDS):
            raise Violation(f"{self.name} hangs")

    def _run(self) -> None:
        try:
            self.turn()
            self._work(self)
        except Death:
            pass
        except SendenseError as error:
            if error.kind not in EXPECTED:
                self.error = error
        except BaseException as error:  # noqa: BLE001 - raised again by the world's thread
            self.error = error
        finally:
            self.is_over = True
            self._arrived.release()


class ActorClock:
    """The world's time; sleeping lets others go on."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor

    def now(self) -> datetime:
        return START + timedelta(seconds=self._actor.world.time)

    def monotonic(self) -> float:
        return self._actor.world.time

    def sleep(self, seconds: float) -> None:
        self._actor.blocked_until = self._actor.world.time + seconds
        self._actor.turn()


class ActorStorage:
    """The storage as one process sees it: listings of what others did may be old."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self._world = actor.world

    def put_if_absent(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        self._actor.turn()
        self._world.storage.put_if_absent(name, data)
        self._world.note_put(name, self._actor)

    def get(self, name: str) -> bytes:
        self._actor.turn()
        return self._world.storage.get(name)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        self._actor.turn()
        return self._world.storage.get_range(name, offset, length)

    def map(self, name: str) -> memoryview:
        self._actor.turn()
        return self._world.storage.map(name)

    def size(self, name: str) -> int:
        return self._world.storage.size(name)  # goes with the `get` behind it

    def list_objects(self, prefix: str = "") -> Iterator[StoredObject]:
        self._actor.turn()
        return iter(self._world.list_objects(prefix, self._actor))

    def list_top(self) -> list[str]:
        return self._world.storage.list_top()

    def delete(self, name: str) -> None:
        self._actor.turn()
        self._world.check_delete(name)
        self._world.storage.delete(name)
        self._world.note_delete(name, self._actor)

    def tidy(self) -> int:
        return 0

    def capacity(self) -> Capacity | None:
        return None

    def listing_seconds(self) -> float:
        return self._world.stale_seconds

    def locks(self) -> Locks | None:
        return None

    def close(self) -> None:
        pass


@dataclass
class Change:
    """When a name came or went, and by whom."""

    time: float
    actor: Actor | None
    size: int | None


@dataclass
class World:
    """Everything that a run needs.

    Attributes:
        stale_seconds: how old a listing may be. needed: what each live backup needs, by object id.
    """

    seed: int = 0
    stale_seconds: float = 0.0
    sparse_share: float = 0.0
    time: float = 0.0
    steps: int = 0
    storage: MemoryStorage = field(default_factory=MemoryStorage)
    actors: list[Actor] = field(default_factory=list)
    disks: dict[str, list[int]] = field(default_factory=dict)  # of sessions, as contents' numbers
    needed: dict[str, set[bytes]] = field(default_factory=dict)
    backup_of: dict[str, Manifest] = field(default_factory=dict)
    finals: set[str] = field(default_factory=set)
    is_worst: bool = False  # every listing is as old as it may be
    is_frozen: bool = False  # nobody goes on while another sleeps
    commits: int = 0
    collections: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.keyed = Keyed(self.storage, UNSEALED)
        self._seeds = 0
        self._history: dict[str, list[Change]] = {}
        self._nodes: dict[bytes, list[bytes]] = {}
        self._packs: dict[str, set[bytes]] = {}
        self._count: dict[bytes, int] = {}
        made = Repository.create(
            self.storage,
            RepositorySettings(chunk_size=CHUNK),
            clock=ManualClock(),
            ids=SeededIds(self.next_seed()),
            reserve=NO_RESERVE,
        )
        made.close()

    def next_seed(self) -> int:
        self._seeds += 1
        return self.seed * 1_000_003 + self._seeds

    # What may happen.

    def start(self, name: str, work: Callable[[Actor], None]) -> Actor:
        actor = Actor(self, name, work)
        self.actors.append(actor)
        return actor

    def ready(self) -> list[Actor]:
        """Return who can go on, after time has passed where all of them sleep."""
        alive = [actor for actor in self.actors if not actor.is_over]
        if alive and all(actor.blocked_until > self.time for actor in alive):
            self.time = min(actor.blocked_until for actor in alive)
        return [actor for actor in alive if actor.blocked_until <= self.time]

    def step(self, actor: Actor) -> None:
        self.time += 1
        self.steps += 1
        actor.step()

    def run(self) -> None:
        """Let all of them take turns until they have ended."""
        while ready := self.ready():
            self.step(self.dice.choice(ready))

    def advance(self, actor: Actor, steps: int) -> int:
        """Let one process take some turns, others only while it sleeps; return how many it took."""
        taken = 0
        while taken < steps and not actor.is_over:
            ready = self.ready()
            if actor in ready:
                taken += 1
                self.step(actor)
            elif self.is_frozen:
                self.time = actor.blocked_until
            else:
                self.step(ready[0])
        return taken

    def finish(self, actor: Actor) -> None:
        """Let one process go on alone, and others only while it sleeps."""
        self.advance(actor, STEPS_MAX)
        if not actor.is_over:
            raise Violation(f"{actor.name} does not end")

    def close(self) -> None:
        for actor in self.actors:
            actor.kill()

    # What processes do.

    def writer(
        self,
        name: str,
        disk: list[int],
        *,
        parent: str | None = None,
        repository: Repository | None = None,
    ) -> Callable[[Actor], None]:
        """Make a backup; with a parent, an incremental that mentions only what differs."""
        self.disks[name] = disk

        def work(actor: Actor) -> None:
            try:
                write(actor)
            except SendenseError:
                # What somebody else has ended keeps nothing any more: all that it used may be gone.
                if not self._was_ended(name):
                    raise

        def write(actor: Actor) -> None:
            place = repository or actor.open()
            base = parent
            try:
                place.begin_session(name, parents=[base] if base else [])
            except Conflict as error:
                if error.kind != "parent-deleted":
                    raise
                base = None
                place.begin_session(name)
            try:
                self._write(place, name, disk, base)
            except Conflict as error:
                if error.kind != "parent-deleted":
                    raise
                self._write(place, name, disk, None)
            place.commit(name, kit.draft(place, name, f"at-{name}"))

        return work

    def _was_ended(self, name: str) -> bool:
        outcome = session.find_outcome(self.keyed, name)
        return outcome is not None and outcome.state is not State.COMMITTED

    def _write(self, place: Repository, name: str, disk: list[int], base: str | None) -> None:
        old = self.disks[base] if base else []
        with place.open_disk_writer(
            name,
            kit.identity(len(disk) * CHUNK),
            moment=f"at-{name}",
            mode=Mode.INCREMENTAL if base else Mode.FULL,
            parent_backup_id=base,
        ) as writer:
            for index in range(writer.resume_index, len(disk)):
                number = disk[index]
                if index < len(old) and old[index] == number:
                    continue
                if writer.find_known([IDS[number]])[0]:
                    writer.put_known(index, IDS[number])
                else:
                    codec, stored = chunk.encode(CONTENTS[number], 1)
                    writer.put_chunk(index, IDS[number], codec, stored, CHUNK)
            mode = Mode.INCREMENTAL if base else Mode.FULL
            writer.finish(DiskTotals(mode, "", f"change-{name}"))

    def aborter(self, name: str) -> Callable[[Actor], None]:
        return lambda actor: _discard(actor.open().abort(name, "cancelled"))

    def pruner(self, name: str) -> Callable[[Actor], None]:
        return lambda actor: _discard(actor.open().delete_backup(name, who="pruner", why="test"))

    def reader(self, name: str) -> Callable[[Actor], None]:
        """Read a backup bit for bit, and slowly."""
        disk = self.disks[name]

        def work(actor: Actor) -> None:
            with actor.open().open_disk_reader(name, KEY) as reader:
                for index, number in enumerate(disk):
                    found = reader.read(index * CHUNK, CHUNK)
                    if found != CONTENTS[number]:
                        raise Violation(f"chunk {index} of {name} is not what was written")

        return work

    def collector(self) -> Callable[[Actor], None]:
        """Finish the generation that is open, or do one."""

        def work(actor: Actor) -> None:
            collector = Collector(
                actor.open(),
                Options(
                    grace_seconds=0,
                    fence_seconds=FENCE_SECONDS,
                    limits=Limits(sparse_share=self.sparse_share, condemn_bytes=1 << 40),
                ),
            )
            while (stage := collector.step()) is not Stage.DONE:
                if stage.waits:
                    actor.clock.sleep(POLL_SECONDS)
            self.collections += 1

        return work

    # What is seen of it.

    def list_objects(self, prefix: str, actor: Actor) -> list[StoredObject]:
        now = list(self.storage.list_objects(prefix))
        if not self.stale_seconds:
            return now
        age = 1.0 if self.is_worst else self.dice.random()
        seen_at = self.time - age * self.stale_seconds
        shown = {
            name: found
            for name, changes in self._history.items()
            if name.startswith(prefix) and (found := _visible(name, changes, seen_at, actor))
        }
        fixed = {found.name: found for found in now if found.name not in self._history}
        return sorted((shown | fixed).values(), key=lambda found: found.name)

    def note_put(self, name: str, actor: Actor | None) -> None:
        size = self.storage.size(name)
        self._history.setdefault(name, []).append(Change(self.time, actor, size))
        if name.startswith(("packs/", "meta/")):
            self._note_pack(name)
        elif name.startswith("outcomes/"):
            self._note_outcome(name)
        elif name.startswith("tombs/"):
            body = format.get_frame(self.keyed, Frame.TOMBSTONE, name)
            self.needed.pop(format.load_json(body, name=name)["manifest_id"], None)
        elif name.endswith("/final"):
            generation = int(name.split("/")[1])
            self.finals.update(records.get(Final, self.keyed, generation).names())
            self.verify()

    def check_delete(self, name: str) -> None:
        """Only what a `final` names may go, but for sessions' traces."""
        if not name.startswith("sessions/") and name not in self.finals:
            raise Violation(f"{name} is deleted, and no final names it")

    def note_delete(self, name: str, actor: Actor | None) -> None:
        self._history.setdefault(name, []).append(Change(self.time, actor, None))
        for blob_id in self._packs.pop(name, ()):
            self._count[blob_id] -= 1
            if not self._count[blob_id]:
                for backup, ids in self.needed.items():
                    if blob_id in ids:
                        raise Violation(f"{name} is deleted, and {backup} needs it")

    def _note_pack(self, name: str) -> None:
        kind = Kind.DATA if name.startswith("packs/") else Kind.META
        ref = PackRef(bytes.fromhex(name.rpartition("/")[2]), kind, self.storage.size(name))
        ids = set()
        for entry in pack.read_directory(self.keyed, ref):
            ids.add(entry.id)
            if entry.type == BlobType.NODE:
                blob = self.storage.get_range(
                    name, entry.offset, pack.BLOB.size + entry.stored_length
                )
                plain = pack.open_blob(UNSEALED, ref, entry.offset, blob, entry.id)
                slots = diskmap.decode_node(plain, level=0)
                self._nodes[entry.id] = [one for one in slots if one != ZERO_ID]
        self._packs[name] = ids
        for blob_id in ids:
            self._count[blob_id] = self._count.get(blob_id, 0) + 1

    def _note_outcome(self, name: str) -> None:
        outcome = record.load(Outcome, format.get_frame(self.keyed, Frame.OUTCOME, name), name=name)
        if outcome.state is not State.COMMITTED:
            return
        assert outcome.manifest is not None
        made = outcome.manifest
        expected = [IDS[number] for number in self.disks[made.session_id]]
        (disk,) = made.disks
        slots = self._nodes[disk.root]
        if slots != expected:
            raise Violation(f"{name} commits another disk than was read")
        self.needed[made.object_id] = {disk.root, *slots}
        self.backup_of[made.object_id] = made
        self.commits += 1
        self.verify()

    def verify(self) -> None:
        """Look whether a reader that begins now finds all that live backups need."""
        segments = Segments(self.keyed, Collected(self.keyed))
        segments.refresh()
        for object_id, ids in self.needed.items():
            for blob_id, place in zip(ids, segments.find(list(ids)), strict=True):
                name = place.pack.name if place else None
                if name not in self._packs:
                    raise Violation(f"{object_id} needs {blob_id.hex()[:8]}, which is in {name}")

    def check_all(self) -> None:
        """Restore everything, with a process that begins now."""
        repository = Repository.open(
            self.storage, clock=ManualClock(), ids=SeededIds(self.next_seed())
        )
        repository.settle_sessions()
        report = check(repository, read_data=True)
        if report.problems:
            raise Violation(str(report.problems))
        live = {self.backup_of[object_id].backup_id for object_id in self.needed}
        if {one.backup_id for one in repository.list_backups()} != live:
            raise Violation("the backups listed are not those that are alive")
        for name in live:
            expected = b"".join(CONTENTS[number] for number in self.disks[name])
            if kit.restore(repository, name) != expected:
                raise Violation(f"{name} is not what was written")

    def live_backups(self) -> list[str]:
        return sorted(self.backup_of[object_id].backup_id for object_id in self.needed)

    def open_sessions(self) -> list[str]:
        found = {one.name.split("/")[1] for one in self.storage.list_objects("sessions/")}
        return sorted(
            one
            for one in found
            if one in self.disks and session.find_outcome(self.keyed, one) is None
        )


def _visible(name: str, changes: list[Change], seen_at: float, actor: Actor) -> StoredObject | None:
    shown = [one for one in changes if one.time <= seen_at or one.actor is actor]
    if not shown or shown[-1].size is None:
        return None
    return StoredObject(name, shown[-1].size)


def _discard(_: object) -> None:
    """Turn work with a result into one without."""
