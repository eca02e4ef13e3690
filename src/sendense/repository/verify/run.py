"""A verification: pack by pack, the one longest ago first, within a budget.

A result belongs to a pack, so all backups share it. A pack that is bad goes into quarantine: from
then on nothing refers to it, and the next backup stores again what lies in it alone.
"""

import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

from sendense.core.clock import format_utc
from sendense.core.cores import count_cores
from sendense.core.errors import Corrupt, Denied, NoSpace, NotFound, SendenseError
from sendense.repository import quarantine
from sendense.repository.check import CheckReport, check
from sendense.repository.chunk import ID_LENGTH, ZERO_ID
from sendense.repository.diskmap import MapBuilder
from sendense.repository.manifest import DiskRecord, Manifest
from sendense.repository.pack import PackRef
from sendense.repository.repository import Repository
from sendense.repository.verify import pieces
from sendense.repository.verify.health import HealthRecord

THREADS_MAX = 4  # each may hold a pack of up to 128 MiB
SAVE_SECONDS = 300.0  # between two records of health: what a crash costs

Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much


class Level(IntEnum):
    """How deep to look; each level includes those below it."""

    INVENTORY = 0  # V0: all that index and manifests name is there, in the right size
    STORED = 1  # V1: stored bytes hash to their names
    DECODED = 2  # V2: chunks and nodes decode to their ids
    MAPS = 3  # V3: every disk's map can be walked, and all that it names is there
    DISKS = 4  # V4: the bytes of every disk make up the map that its backup recorded


@dataclass(frozen=True, slots=True)
class Budget:
    """How much to do in one run; None for no limit. At least one pack is looked at."""

    bytes_max: int | None = None
    seconds_max: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What a verification found.

    Attributes:
        pack_count: of the repository. verified_count, verified_bytes: packs looked at now.
        left_count: packs that the budget left for the next run. oldest_at: when the pack that is
            due next was last verified at this level; None for never, or where there is none.
        bad: names of packs found bad now. quarantined_count: of all that are known to be bad.
        disks: how many disks were read whole and compared (V4). differing: those among them whose
            bytes are not what their backups recorded.
        check: what of backups is hurt, as the structure tells; None below V3 where no pack is bad.
    """

    level: int
    pack_count: int
    verified_count: int
    verified_bytes: int
    left_count: int
    oldest_at: datetime | None
    bad: tuple[str, ...]
    quarantined_count: int
    disks: int
    differing: tuple[str, ...]
    check: CheckReport | None

    @property
    def clean(self) -> bool:
        """Whether every backup can be restored whole, as far as was looked."""
        return not self.differing and (self.check is None or self.check.clean)

    def to_json(self, *, problems_max: int | None = None) -> dict[str, Any]:
        """Return the report as JSON, perhaps with fewer of the problems."""
        found = asdict(self)
        found["oldest_at"] = format_utc(self.oldest_at) if self.oldest_at else None
        if self.check is not None:
            found["check"]["problems"] = found["check"]["problems"][:problems_max]
        return {"clean": self.clean, **found}


def verify(
    repository: Repository,
    level: Level = Level.DECODED,
    budget: Budget = Budget(),
    *,
    progress: Progress = lambda _what, _done, _total: None,
) -> Report:
    """Verify packs, and what is asked for besides; put bad ones into quarantine.

    May be stopped at any time, by an error that `progress` raises too: what was verified is on
    record. Raises Unavailable and Denied, never Corrupt.
    """
    return _Run(repository, level, budget, progress).run()


@dataclass(slots=True)
class _Run:
    repository: Repository
    level: Level
    budget: Budget
    progress: Progress
    bad: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    count: int = 0
    size: int = 0
    begun_bytes: int = 0

    def run(self) -> Report:
        """Look at all that the level asks for and the budget allows."""
        storage, segments = self.repository.storage, self.repository.segments
        segments.refresh()
        refs = {ref.id: ref for segment in segments.counted for ref in segment.packs()}
        health = HealthRecord(storage)
        health.load()
        health.keep(refs.keys())
        unknown = [ref for ref in refs.values() if ref.id not in segments.quarantined]
        self._take_inventory(unknown)
        due = sorted(unknown, key=lambda ref: (self._last(health, ref), ref.id))
        try:
            done = self._verify_packs(due, health) if self.level >= Level.STORED else len(due)
        finally:
            self._save(health)
        left = due[done:]
        oldest = self._last(health, left[0]) if left else 0
        segments.refresh()
        disks = self._compare_disks() if self.level >= Level.DISKS else 0
        hurt = None
        if self.level >= Level.MAPS or segments.quarantined:
            hurt = check(self.repository, progress=self.progress)
        return Report(
            level=self.level,
            pack_count=len(refs),
            verified_count=self.count,
            verified_bytes=self.size,
            left_count=len(left),
            oldest_at=datetime.fromtimestamp(oldest, tz=UTC) if oldest else None,
            bad=tuple(self.bad),
            quarantined_count=len(segments.quarantined),
            disks=disks,
            differing=tuple(self.differing),
            check=hurt,
        )

    def _last(self, health: HealthRecord, ref: PackRef) -> int:
        proof = health.get(ref.id)
        return proof.decoded if self.level >= Level.DECODED else proof.stored

    def _take_inventory(self, refs: list[PackRef]) -> None:
        """V0 of packs: one listing, and a look at each that it leaves out."""
        kinds = {ref.kind for ref in refs}
        sizes = {
            stored.name: stored.size
            for kind in kinds
            for stored in self.repository.storage.list_objects(kind.folder + "/")
        }
        for ref in refs:
            size = sizes.get(ref.name)
            if size != ref.size:
                try:
                    size = self.repository.storage.size(ref.name)
                except NotFound:
                    if self._is_indexed(ref):
                        self._condemn(ref, "it is gone")
                    continue
                if size != ref.size:
                    self._condemn(ref, f"it has {size} bytes instead of {ref.size}")

    def _verify_packs(self, due: list[PackRef], health: HealthRecord) -> int:
        """Verify packs in order, as many as the budget allows; return how many.

        Threads share the pieces of a pack where it has several, and else have a pack each; packs
        are judged one after the other.
        """
        clock = self.repository.clock
        began = saved = clock.monotonic()
        threads = count_cores(most=THREADS_MAX)
        in_pieces = self.repository.storage.capacity() is not None  # no object store
        looked: deque[tuple[PackRef, _Looks]] = deque()
        begun = 0
        executor = ThreadPoolExecutor(threads, thread_name_prefix="verify")
        try:
            for ref in due:
                now = clock.monotonic()
                if begun and self._is_spent(ref, now - began):
                    break
                if now - saved >= SAVE_SECONDS:
                    self._save(health)
                    saved = now
                self.progress("packs", begun - len(looked), len(due))
                look = self._look_at(ref, in_pieces=in_pieces, hands=threads)
                looked.append((ref, [executor.submit(_work, look) for _ in range(look.hands)]))
                self.begun_bytes += ref.size
                begun += 1
                if len(looked) > threads:
                    self._judge(*looked.popleft(), health)
            while looked:
                self._judge(*looked.popleft(), health)
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
        return begun

    def _is_spent(self, ref: PackRef, seconds: float) -> bool:
        bytes_max, seconds_max = self.budget.bytes_max, self.budget.seconds_max
        return (bytes_max is not None and self.begun_bytes + ref.size > bytes_max) or (
            seconds_max is not None and seconds >= seconds_max
        )

    def _look_at(self, ref: PackRef, *, in_pieces: bool, hands: int) -> pieces.Look:
        storage, decode = self.repository.storage, self.level >= Level.DECODED
        return pieces.Look(storage, ref, decode=decode, in_pieces=in_pieces, hands=hands)

    def _judge(self, ref: PackRef, looks: "_Looks", health: HealthRecord) -> None:
        """Note what became of a pack. Raises what a thread raised."""
        found = [look.result() for look in looks]
        error = next((one for one in found if one is not None), None)
        if error is not None:
            health.forget(ref.id)
            if isinstance(error, Corrupt) or self._is_indexed(ref):
                self._condemn(ref, error.message)
            return
        health.note(ref.id, decoded=self.level >= Level.DECODED, at=self.repository.clock.now())
        self.count += 1
        self.size += ref.size

    def _save(self, health: HealthRecord) -> None:
        with contextlib.suppress(Denied, NoSpace):  # then the next run begins with the same packs
            health.save(self.repository.clock, self.repository.ids)

    def _condemn(self, ref: PackRef, why: str) -> None:
        self.repository.segments.suspect(ref.id)
        with contextlib.suppress(Denied, NoSpace):  # a copy that is mounted read-only: just tell
            quarantine.put(self.repository.storage, ref, at=self.repository.clock.now(), why=why)
        if ref.name not in self.bad:
            self.bad.append(ref.name)

    def _is_indexed(self, ref: PackRef) -> bool:
        """Look once more whether the index names a pack: a collector may have removed it."""
        segments = self.repository.segments
        segments.refresh()
        return any(ref in segment.packs() for segment in segments.counted)

    def _compare_disks(self) -> int:
        """V4: read all disks that differ and compare them with their recorded roots."""
        seen: set[tuple[bytes, int]] = set()
        manifests, _ = self.repository.backups.scan()
        for number, one in enumerate(manifests):
            self.progress("disks", number, len(manifests))
            for disk in one.disks:
                if (disk.root, disk.size_bytes) not in seen:
                    seen.add((disk.root, disk.size_bytes))
                    self._compare(one, disk)
        return len(seen)

    def _compare(self, one: Manifest, disk: DiskRecord) -> None:
        try:
            root = _read_root(self.repository, one, disk)
        except Corrupt:
            return  # the check says which bytes
        except NotFound:
            return  # deleted since the list was made
        if root != disk.root:
            self.differing.append(f"disk {disk.key} of backup {one.backup_id}")


_Looks = list[Future[SendenseError | None]]


def _work(look: pieces.Look) -> SendenseError | None:
    """Return what is wrong with a pack, or None; in any thread."""
    try:
        look.work()
    except (Corrupt, NotFound) as error:
        return error
    return None


def _read_root(repository: Repository, one: Manifest, disk: DiskRecord) -> bytes:
    """Return the root of the map that the bytes of a disk make up. Raises Corrupt, NotFound."""
    ids = bytearray(disk.chunk_count * ID_LENGTH)
    with repository.open_disk_reader(one.backup_id, disk.key) as reader:
        for offset, data in reader.read_chunks():
            at = offset // disk.chunk_size * ID_LENGTH
            ids[at : at + ID_LENGTH] = repository.identify(data)
    made = MapBuilder(disk.chunk_count, store=repository.storage.keys.identify_node)
    for number in range(disk.chunk_count):
        chunk_id = bytes(ids[number * ID_LENGTH : (number + 1) * ID_LENGTH])
        if chunk_id != ZERO_ID:
            made.put(number, chunk_id)
    return made.finish()
