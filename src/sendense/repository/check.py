"""Check: is everything here that the backups need, and does it say what it should?

Structural (the default; V0 and V3): every object that outcomes, manifests and the index name
exists in the right size, all of them decode, every disk map walks, every chunk of every backup is
in the index within a pack that exists. With `read_data` (V1 and V2) every pack is read as well: its
bytes hash to its name, and every blob decodes to its id.

Changes nothing. May run beside writers: what they have not committed is not judged.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from sendense.core.errors import Corrupt, NotFound, SendenseError
from sendense.repository import descriptor, diskmap, holds, hub_exports, pack, session
from sendense.repository.backups import get_manifest
from sendense.repository.chunk import ZERO_ID
from sendense.repository.diskmap import FAN_OUT, FAN_OUT_BITS
from sendense.repository.manifest import DiskRecord, Manifest
from sendense.repository.pack import Kind, PackRef
from sendense.repository.repository import Repository
from sendense.repository.session import Outcome, State

PROBLEMS_MAX = 1000  # more help nobody; the count goes on

Progress = Callable[[str, int, int], None]  # what is checked, how many are done, of how many


class Severity(StrEnum):
    """What a problem means for backups."""

    ERROR = "error"  # a backup cannot be restored whole, or nobody can say whether it can
    NOTE = "note"  # nothing is lost; a later run or a collector tidies up


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as it should be.

    Attributes:
        kind: a stable word: see docs/format.md. name: the object, "" where none is to blame.
        backup_id, disk_key, offset: what of a backup it spoils, where that is known.
    """

    severity: Severity
    kind: str
    message: str
    name: str = ""
    backup_id: str | None = None
    disk_key: int | None = None
    offset: int | None = None
    length: int | None = None


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found.

    Attributes:
        problems: at most `PROBLEMS_MAX`; `problem_count` counts all.
        read_data: whether the stored bytes were read, not only listed.
    """

    problems: tuple[Problem, ...]
    problem_count: int
    error_count: int
    backup_count: int
    disk_count: int
    pack_count: int
    chunk_count: int
    object_count: int
    object_bytes: int
    read_data: bool

    @property
    def clean(self) -> bool:
        """Whether every backup can be restored whole, as far as was looked."""
        return self.error_count == 0


@dataclass(slots=True)
class _Findings:
    problems: list[Problem] = field(default_factory=list)
    count: int = 0
    errors: int = 0

    def add(self, problem: Problem) -> None:
        self.count += 1
        self.errors += problem.severity is Severity.ERROR
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)

    def error(self, name: str, error: SendenseError) -> None:
        self.add(Problem(Severity.ERROR, error.kind, error.message, name))


def check(
    repository: Repository,
    *,
    read_data: bool = False,
    progress: Progress = lambda _what, _done, _total: None,
) -> CheckReport:
    """Check a repository and report all that is wrong. Raises Unavailable, never Corrupt."""
    return _Check(repository, progress).run(read_data=read_data)


class _Check:
    """One check's state: what was found and what was looked at already."""

    def __init__(self, repository: Repository, progress: Progress) -> None:
        self._repository = repository
        self._storage = repository.storage
        self._progress = progress
        self._found = _Findings()
        self._sizes: dict[str, int] = {}  # of packs: tens of bytes for each 32 MiB
        self._bad_packs: set[bytes] = set()
        self._walked: set[tuple[bytes, int]] = set()  # nodes below which all is well
        self._objects = self._bytes = self._disks = 0

    def run(self, *, read_data: bool) -> CheckReport:
        """Look at everything, from the whole to the parts."""
        self._list_objects()
        self._check_descriptor()
        manifests = self._check_manifests()
        outcomes = self._check_outcomes(manifests)
        self._check_beside()
        packs = self._check_index(outcomes)
        self._check_packs(packs, read_data=read_data)
        for number, one in enumerate(manifests):
            self._progress("maps", number, len(manifests))
            self._check_maps(one)
        return CheckReport(
            problems=tuple(self._found.problems),
            problem_count=self._found.count,
            error_count=self._found.errors,
            backup_count=len(manifests),
            disk_count=self._disks,
            pack_count=len(packs),
            chunk_count=len(self._repository.segments),
            object_count=self._objects,
            object_bytes=self._bytes,
            read_data=read_data,
        )

    def _list_objects(self) -> None:
        for found in self._storage.list_objects():
            self._objects += 1
            self._bytes += found.size
            if found.name.startswith(("packs/", "meta/")):
                self._sizes[found.name] = found.size

    def _check_descriptor(self) -> None:
        try:
            descriptor.get(self._storage)
        except SendenseError as error:
            self._found.error(descriptor.NAME, error)

    def _check_manifests(self) -> list[Manifest]:
        """Return the backups that are not deleted; deleted ones need nothing any more."""
        manifests, damaged = self._repository.backups.scan()
        for error in damaged:
            self._found.error(str(error.fields.get("name", "")), error)
        return manifests

    def _check_outcomes(self, manifests: list[Manifest]) -> list[Outcome]:
        """Return the committed outcomes, after comparing them with the manifests."""
        committed: dict[str, Outcome] = {}
        for found in self._storage.list_objects(session.OUTCOMES):
            session_id = found.name.removeprefix(session.OUTCOMES)
            try:
                outcome = session.find_outcome(self._storage, session_id)
            except SendenseError as error:
                self._found.error(found.name, error)
                continue
            if outcome is not None and outcome.state is State.COMMITTED:
                committed[session_id] = outcome
                self._check_written(outcome)
        for one in manifests:
            outcome = committed.get(one.session_id)
            if outcome is None or outcome.manifest != one:
                self._found.add(
                    Problem(
                        Severity.ERROR,
                        "outcome-missing",
                        f"backup {one.backup_id} has no outcome that commits it",
                        session.outcome_name(one.session_id),
                        one.backup_id,
                    )
                )
        return list(committed.values())

    def _check_written(self, outcome: Outcome) -> None:
        """A committed manifest that is not written yet is a crash's trace, and no loss."""
        made = outcome.manifest
        assert made is not None, "committed outcomes hold one"
        if self._repository.collected.refresh().is_dead(made.object_id):
            return
        try:
            get_manifest(self._storage, made.name)
        except NotFound:
            kept = any(True for _ in self._storage.list_objects(f"sessions/{made.session_id}/"))
            self._found.add(
                Problem(
                    Severity.NOTE if kept else Severity.ERROR,
                    "manifest-unwritten" if kept else "manifest-missing",
                    f"backup {made.backup_id} is committed, but its manifest is not there",
                    made.name,
                    made.backup_id,
                )
            )
        except Corrupt:
            return  # reported with the manifests

    def _check_beside(self) -> None:
        """Look at what no backup needs: holds, and what hubs have exported."""
        damaged = holds.scan(self._storage)[1]
        for error in [*damaged, *hub_exports.find_damaged(self._storage)]:
            self._found.error(str(error.fields.get("name", "")), error)

    def _check_index(self, outcomes: list[Outcome]) -> list[PackRef]:
        """Return all packs that the index names, after opening every segment that counts."""
        segments = self._repository.segments
        segments.refresh()
        for error in segments.view.damaged:
            self._found.error(str(error.fields.get("name", "")), error)
        for name, error in segments.damaged.items():
            self._found.error(name, error)
        opened = {segment.name for segment in segments.counted} | set(segments.damaged)
        committed = [outcome.manifest for outcome in outcomes if outcome.manifest]
        for name in sorted(segments.list_expected(committed) - opened):
            self._missing(name, "segment-missing", "an outcome or a collector's `final` names it")
        packs = {ref.id: ref for segment in segments.counted for ref in segment.packs()}
        return list(packs.values())

    def _missing(self, name: str, kind: str, why: str) -> None:
        message = f"object {name} is missing, but {why}"
        self._found.add(Problem(Severity.ERROR, kind, message, name))

    def _check_packs(self, packs: list[PackRef], *, read_data: bool) -> None:
        for number, ref in enumerate(packs):
            self._progress("packs", number, len(packs))
            size = self._sizes.pop(ref.name, None)
            is_known_bad = ref.id in self._repository.segments.quarantined
            if size is None and not is_known_bad:
                size = self._size_now(ref)
            if is_known_bad and not read_data:
                message = f"pack {ref.name} was found bad; what lies in it alone is lost"
                self._found.add(Problem(Severity.NOTE, "pack-quarantined", message, ref.name))
                self._bad_packs.add(ref.id)
            elif size is None:
                self._missing(ref.name, "pack-missing", "the index names it")
                self._bad_packs.add(ref.id)
            elif size != ref.size:
                message = f"pack {ref.name} has {size} bytes, the index says {ref.size}"
                self._found.add(Problem(Severity.ERROR, "pack-size", message, ref.name))
                self._bad_packs.add(ref.id)
            else:
                self._check_pack(ref, read_data=read_data)

    def _size_now(self, ref: PackRef) -> int | None:
        """Return the size of a pack that was put since the listing, or None."""
        try:
            return self._storage.size(ref.name)
        except NotFound:
            return None

    def _is_indexed(self, ref: PackRef) -> bool:
        """Look once more whether the index names a pack: a collector may have removed it."""
        segments = self._repository.segments
        segments.refresh()
        return any(ref in segment.packs() for segment in segments.counted)

    def _check_pack(self, ref: PackRef, *, read_data: bool) -> None:
        try:
            if read_data:
                pack.verify(self._storage.get(ref.name), ref, self._storage.keys)
            else:
                pack.read_directory(self._storage, ref)
        except (Corrupt, NotFound) as error:
            if isinstance(error, NotFound) and not self._is_indexed(ref):
                return
            self._found.error(ref.name, error)
            if read_data:
                self._bad_packs.add(ref.id)

    def _check_maps(self, one: Manifest) -> None:
        for disk in one.disks:
            self._disks += 1
            if disk.root != ZERO_ID:
                self._walk(one, disk, disk.root, diskmap.level_of(disk.chunk_count), 0)

    def _walk(
        self, one: Manifest, disk: DiskRecord, node_id: bytes, level: int, index: int
    ) -> bool:
        """Check the subtree under a node, once for all maps that share it. Returns if it is well.

        A subtree that is not well is walked again for every backup, so that each is named.
        """
        # Right at the end of a disk a chunk may be short, which is right for this disk only.
        shared = (index + 1) << FAN_OUT_BITS * (level + 1) < disk.chunk_count
        if shared and (node_id, disk.chunk_size) in self._walked:
            return True
        try:
            slots = diskmap.decode_node(self._repository.get_node(node_id), level=level)
        except SendenseError as error:
            self._spoilt(one, disk, error, level, index)
            return False
        if level == 0:
            well = self._check_leaf(one, disk, slots, index)
        else:
            well = True
            for slot, child in enumerate(slots):
                if child != ZERO_ID:
                    below = self._walk(one, disk, child, level - 1, index * FAN_OUT + slot)
                    well = well and below
        if shared and well:
            self._walked.add((node_id, disk.chunk_size))
        return well

    def _check_leaf(self, one: Manifest, disk: DiskRecord, slots: list[bytes], index: int) -> bool:
        used = [(slot, slot_id) for slot, slot_id in enumerate(slots) if slot_id != ZERO_ID]
        places = self._repository.segments.find([slot_id for _, slot_id in used])
        well = True
        for (slot, slot_id), place in zip(used, places, strict=True):
            number = index * FAN_OUT + slot
            error = None
            if number >= disk.chunk_count:
                error = Corrupt("a disk map goes on behind the disk's end", kind="map-corrupt")
            elif place is None:
                error = Corrupt(f"chunk {slot_id.hex()} is in no segment", kind="chunk-missing")
            elif place.pack.id in self._bad_packs and self._is_bad_everywhere(slot_id):
                error = Corrupt(
                    f"chunk {slot_id.hex()} lies in a bad pack", kind="chunk-unreadable"
                )
            elif place.pack.kind is not Kind.DATA or place.plain_length != disk.chunk_length(
                number
            ):
                error = Corrupt(
                    f"chunk {slot_id.hex()} is no chunk of the disk", kind="chunk-length"
                )
            if error is not None:
                well = False
                self._spoilt(one, disk, error, -1, number)
        return well

    def _is_bad_everywhere(self, chunk_id: bytes) -> bool:
        places = self._repository.segments.find_all(chunk_id)
        return all(place.pack.id in self._bad_packs for place in places)

    def _spoilt(
        self, one: Manifest, disk: DiskRecord, error: SendenseError, level: int, index: int
    ) -> None:
        """Report which bytes of a backup's disk a damaged node or chunk spoils."""
        start = (index << FAN_OUT_BITS * (level + 1)) * disk.chunk_size
        length = (disk.chunk_size << FAN_OUT_BITS * (level + 1)) if level >= 0 else disk.chunk_size
        self._found.add(
            Problem(
                Severity.ERROR,
                error.kind,
                f"disk {disk.key} of backup {one.backup_id}: {error.message}",
                str(error.fields.get("name", "")),
                one.backup_id,
                disk.key,
                start,
                max(0, min(length, disk.size_bytes - start)),
            )
        )
