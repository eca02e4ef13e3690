"""Backs up one disk of a snapshot: list what to read, sample, read, judge, compress, put in order.

    extents → worklist → read → identify → judge (zero? as the parent? known?) → compress → put

A crew with a thread for each core does all of it from reading on, batch by batch; a connection
brings the next one meanwhile. `judge` and `put` are one hand's, for a writer belongs to one thread
at a time. Memory is bounded by the batches under way, whatever the disk's size.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sendense.connectors.base import DiskView
from sendense.core.cores import count_cores
from sendense.core.errors import Corrupt, Unavailable
from sendense.core.extent import Extent
from sendense.engine import crew, plan, sampling, stages
from sendense.engine.control import Control
from sendense.engine.crew import Crew
from sendense.engine.ledger import Ledger, Loaded, Verdict
from sendense.engine.plan import Decision, Mode
from sendense.engine.progress import Phase, Progress
from sendense.engine.stages import Brought, Buffers, Lane
from sendense.engine.worklist import BATCH_BYTES, Action, Batch, Run, Worklist
from sendense.repository import chunk
from sendense.repository.diskmap import FAN_OUT
from sendense.repository.manifest import DiskRecord, DiskTotals
from sendense.repository.writer import DiskWriter

# Four connections read as fast as more (measured with qemu-nbd and nbdkit).
CONNECTIONS_MAX = 4
THREADS_MAX = 32  # beyond that one interpreter cannot feed them
PARENT_DAMAGED = "parent-damaged"  # the kind with which `list_lost` asks for a full read

TRACKING_LOST = "tracking-lost"  # the kind with which `list_changed` says that it cannot tell


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How a transfer uses the machine.

    Attributes:
        level: zstd level 1 to 19, or 0 for none.
        connections: to the source for one disk; the source's own limit applies besides.
        threads: that work on what was read, None for one per core.
    """

    level: int = chunk.LEVEL_DEFAULT
    connections: int = CONNECTIONS_MAX
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """What to transfer.

    Attributes:
        view: the disk in its snapshot, open.
        open_writer: opens the disk's writer for a mode, with the parent where there is one
            (`Repository.open_disk_writer`); closed here. Called a second time where an incremental
            must become a full read, so that nothing an untrusted tracking said stays.
        decision: how to read the disk, as `plan.decide_mode` said.
        moment: the snapshot's; seeds the choice of chunks to sample, so that a resumed run samples
            the same ones and comes to the same end.
        change_id: the snapshot's, to remember in the record.
        hold_back: gives each batch when it may be read; see `throttle`.
    """

    view: DiskView
    open_writer: Callable[[Mode], DiskWriter]
    decision: Decision
    moment: str
    change_id: str | None = None
    hold_back: Callable[[Iterable[Batch]], Iterable[Batch]] = iter


@dataclass(frozen=True, slots=True)
class Transfer:
    """What became of a disk; it is finished in its session.

    Attributes:
        record: as the commit will find it.
        decision: how the disk was really read, and why.
    """

    record: DiskRecord
    decision: Decision

    @property
    def suspect_reason(self) -> str | None:
        """Set where change tracking was caught lying: raise an alarm, mark the chain."""
        return self.decision.suspect_reason


def back_up_disk(
    task: Task, *, settings: EngineSettings, control: Control, progress: Progress
) -> Transfer:
    """Transfer a disk from its snapshot into its session, and finish it there.

    An incremental that turns out not to be trustworthy goes on as a full read in the same run; the
    result's decision says so. Chunks below the writer's `resume_index` are not read again.

    Raises Cancelled, and whatever source or repository raise: Unavailable, Corrupt, NoSpace,
    ProtocolError. Then all threads have ended and the disk is not finished; another attempt resumes
    from its last checkpoint.
    """
    return _Backup(task, settings, control, progress).run()


class _Backup:
    """One run of `back_up_disk`."""

    def __init__(
        self, task: Task, settings: EngineSettings, control: Control, progress: Progress
    ) -> None:
        self._task = task
        self._view = task.view
        self._settings = settings
        self._control = control
        self._progress = progress
        self._buffers = Buffers(max(BATCH_BYTES, chunk.SIZE_MAX))

    def run(self) -> Transfer:
        """Back up the disk: incrementally where that is decided and holds, else in full."""
        self._control.check()
        decision = self._task.decision
        if decision.mode is Mode.INCREMENTAL:
            record, decision = self._try_incremental()
            if record is not None:
                return Transfer(record, decision)
        with self._task.open_writer(Mode.FULL) as writer:
            work = self._list_work(
                writer.chunk_size, Worklist.mark_allocated, self._view.list_allocated
            )
            record = self._transfer(work, writer, decision)
        return Transfer(record, decision)

    def _try_incremental(self) -> tuple[DiskRecord | None, Decision]:
        """Return the record of an incremental, or None and the decision to read everything."""
        with self._task.open_writer(Mode.INCREMENTAL) as writer:
            try:
                lost = writer.list_lost()
                work = self._list_work(
                    writer.chunk_size, Worklist.mark_changed, self._view.list_changed
                )
            except Unavailable as error:
                if error.kind != TRACKING_LOST:
                    raise
                return None, plan.lost_tracking(error.message)
            except Corrupt as error:
                if error.kind != PARENT_DAMAGED:
                    raise
                return None, plan.parent_damaged()
            for _ in work.mark_changed(lost):
                pass
            differing = self._find_difference(work, writer)
            if differing is not None:
                return None, plan.sample_differed(start=differing * writer.chunk_size)
            return self._transfer(work, writer, self._task.decision), self._task.decision

    def _list_work(
        self,
        chunk_size: int,
        mark: Callable[[Worklist, Iterable[Extent]], Iterator[int]],
        list_extents: Callable[[], Iterator[Extent]],
    ) -> Worklist:
        """Ask the source what to read."""
        self._progress.enter(Phase.LISTING)
        work = Worklist(size_bytes=self._view.size_bytes, chunk_size=chunk_size)

        def fill() -> None:
            for _ in mark(work, list_extents()):
                if self._control.is_cancelled:
                    return

        self._control.run_apart(fill, name="list-extents")
        return work

    def _find_difference(self, work: Worklist, writer: DiskWriter) -> int | None:
        """Return a chunk that is called unchanged and is not as in the parent, or None."""
        self._progress.enter(Phase.SAMPLING)
        chosen = sampling.choose(work, seed=self._task.moment)
        writer.expect(iter(sorted({index // FAN_OUT for index in chosen})))
        together = max(1, BATCH_BYTES // work.chunk_size)
        groups = (chosen[start : start + together] for start in range(0, len(chosen), together))
        batches = [
            Batch(
                tuple(Run(index, 1, Action.READ) for index in group),
                sum(map(work.chunk_length, group)),
            )
            for group in groups
        ]

        def compare(loaded: Loaded) -> None:
            for run, chunk_id in zip(loaded.batch.runs, loaded.ids, strict=True):
                if chunk_id != writer.parent_id(run.first):
                    raise _Differs(run.first)

        try:
            self._work(batches, writer, work=lambda loaded: loaded, put=compare)
        except _Differs as found:
            return found.index
        return None

    def _transfer(self, work: Worklist, writer: DiskWriter, decision: Decision) -> DiskRecord:
        """Read, judge, compress and put all there is to do, and finish the writer."""
        self._progress.enter(Phase.TRANSFERRING)
        first = writer.resume_index
        total = work.bytes_to_read()
        self._progress.start(
            bytes_total=total,
            bytes_done=total - work.bytes_to_read(first=first),
            bytes_new=writer.counted.bytes_new,
            bytes_stored=writer.counted.bytes_stored,
        )
        ledger = Ledger(writer, self._progress, mode=decision.mode)

        def judge_and_encode(loaded: Loaded) -> Verdict:
            return stages.encode(ledger.judge(loaded), level=self._settings.level)

        writer.expect(work.list_blocks(FAN_OUT, first=first))
        batches = work.list_batches(first=first)
        self._work(batches, writer, work=judge_and_encode, put=ledger.put)
        self._control.check()
        self._progress.enter(Phase.FINISHING)
        counted = self._progress.snapshot()
        totals = DiskTotals(
            mode=decision.mode,
            mode_reason=decision.reason,
            change_id=self._task.change_id,
            bytes_read=counted.bytes_read,
            bytes_new=counted.bytes_new,
            bytes_deduplicated=counted.bytes_deduplicated,
        )
        return writer.finish(totals)

    def _work(
        self,
        batches: Iterable[Batch],
        writer: DiskWriter,
        *,
        work: Callable[[Loaded], Any],
        put: Callable[[Any], None],
    ) -> None:
        """Read and identify batches, `work` on each, and `put` the results in order."""

        def serve(brought: Brought) -> Any:
            result = work(stages.identify(brought, by=writer.identify))
            self._buffers.give(brought.buffer)
            return result

        hands = Crew(
            threads=self._settings.threads or count_cores(most=THREADS_MAX),
            lanes=max(1, min(self._settings.connections, self._view.connections_max)),
            open_lane=lambda: Lane(self._view, chunk_size=writer.chunk_size, buffers=self._buffers),
            work=serve,
            put=put,
            rest=writer.seal,
        )
        crew.run(self._task.hold_back(batches), hands, control=self._control)


class _Differs(Exception):
    """A chunk is not as in the parent, though it is called unchanged."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index
