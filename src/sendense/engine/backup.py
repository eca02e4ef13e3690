"""Backs up one disk of a snapshot: list what to read, sample, read, sift, put in disk order.

    list extents → worklist → [readers] → [sifters: zero? same as parent? known? compress] → writer

Readers are connections to the source, sifters are bound to cores; the writer is the caller's
thread. Memory is bounded by `EngineSettings.bytes_in_flight_max`, whatever the disk's size.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sendense.connectors.base import DiskView
from sendense.core import units
from sendense.core.errors import Unavailable
from sendense.core.extent import Extent
from sendense.engine import pipeline, plan, sampling
from sendense.engine.control import Control
from sendense.engine.pipeline import Item, Stage
from sendense.engine.plan import Decision, Mode
from sendense.engine.progress import Phase, Progress
from sendense.engine.stages import Answer, Comparer, Fate, Reader, Sifted, Sifter
from sendense.engine.worklist import BATCH_BYTES, Action, Batch, Run, Worklist
from sendense.repository import chunk
from sendense.repository.session import DiskWriter

# Four connections read as fast as more (measured with qemu-nbd and nbdkit); a slow, distant source
# gains from them by what is in flight.
CONNECTIONS_MAX = 4
BYTES_IN_FLIGHT_MAX = 48 * units.MIB  # 12 batches: enough for 4 readers and 4 sifters
BATCH_OVERHEAD = 64 * units.KIB  # what a batch weighs without bytes: bounds how many are inside
BATCHES_PER_SIFTER = 3  # on machines with many cores: one in work, one waiting, one done
SIFTERS_MAX = 32  # beyond that one interpreter cannot feed them


def _default_sifters() -> int:
    return max(2, min(SIFTERS_MAX, len(os.sched_getaffinity(0))))


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How a transfer uses the machine.

    Attributes:
        level: zstd level 1 to 19, or 0 for none.
        connections: to the source for one disk; the source's own limit applies besides.
        sifters: threads that hash and compress, None for one per core.
        bytes_in_flight_max: plain bytes read and not yet handed to the repository.
    """

    level: int = chunk.LEVEL_DEFAULT
    connections: int = CONNECTIONS_MAX
    sifters: int | None = None
    bytes_in_flight_max: int = BYTES_IN_FLIGHT_MAX


@dataclass(frozen=True, slots=True)
class Transfer:
    """What became of a disk; the writer has all of it, nothing is finished yet.

    Attributes:
        decision: how the disk was really read, and why.
        bytes_read: plain bytes read from the source, by this attempt and those it resumed.
        bytes_new: plain bytes of chunks stored.
        bytes_stored: what they take compressed.
        bytes_deduplicated: plain bytes read that the repository had already.
        suspect_reason: set where sampling caught change tracking lying: alarm, mark the chain.
    """

    decision: Decision
    bytes_read: int
    bytes_new: int
    bytes_stored: int
    bytes_deduplicated: int
    suspect_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """What to transfer.

    Attributes:
        view: the disk in its snapshot, open.
        writer: of the same disk, open; with the parent where there is one.
        decision: how to read it, as `plan.decide_mode` said.
        seed: chooses the chunks to sample; the snapshot's moment, so that a resumed run samples the
            same ones and comes to the same end.
    """

    view: DiskView
    writer: DiskWriter
    decision: Decision
    seed: str


def back_up_disk(
    task: Task, *, settings: EngineSettings, control: Control, progress: Progress
) -> Transfer:
    """Transfer a disk from its snapshot into its writer, in order, without finishing the writer.

    An incremental that turns out not to be trustworthy goes on as a full read in the same run; the
    result's decision says so. Chunks below the writer's `resume_index` are not read again.

    Raises Cancelled, and whatever source or repository raise: Unavailable, Corrupt, NoSpace,
    ProtocolError. Then all threads have ended and the writer holds nothing that must not be there:
    another attempt may resume from its last checkpoint.
    """
    return _Backup(task, settings, control, progress).run()


class _Backup:
    def __init__(
        self, task: Task, settings: EngineSettings, control: Control, progress: Progress
    ) -> None:
        self._view = task.view
        self._writer = task.writer
        self._decision = task.decision
        self._seed = task.seed
        self._settings = settings
        self._control = control
        self._progress = progress
        self._suspect_reason: str | None = None

    def run(self) -> Transfer:
        self._control.check()
        work = self._list_work()
        if self._decision.mode is Mode.INCREMENTAL:
            work = self._sample(work)
        self._transfer(work)
        self._progress.enter(Phase.FINISHING)
        counted = self._progress.snapshot()
        return Transfer(
            decision=self._decision,
            bytes_read=counted.bytes_read,
            bytes_new=counted.bytes_new,
            bytes_stored=counted.bytes_stored,
            bytes_deduplicated=counted.bytes_deduplicated,
            suspect_reason=self._suspect_reason,
        )

    def _list_work(self) -> Worklist:
        self._progress.enter(Phase.LISTING)
        if self._decision.mode is Mode.INCREMENTAL:
            try:
                return self._fill(Worklist.mark_changed, self._view.list_changed)
            except Unavailable as error:
                if error.kind != "tracking-lost":
                    raise
                self._decision = plan.lost_tracking(error.message)
        return self._fill(Worklist.mark_allocated, self._view.list_allocated)

    def _fill(
        self,
        mark: Callable[[Worklist, Iterable[Extent]], Iterator[int]],
        list_extents: Callable[[], Iterator[Extent]],
    ) -> Worklist:
        work = Worklist(size_bytes=self._view.size_bytes, chunk_size=self._writer.chunk_size)

        def fill() -> None:
            for _ in mark(work, list_extents()):
                if self._control.is_cancelled:
                    return

        self._control.run_apart(fill, name="list-extents")
        return work

    def _sample(self, work: Worklist) -> Worklist:
        """Return the work to do: as it was, or all of the disk where the platform lied."""
        self._progress.enter(Phase.SAMPLING)
        indexes = sampling.choose(work, seed=self._seed)
        batches = [
            Batch((Run(index, 1, Action.READ),), work.chunk_length(index)) for index in indexes
        ]
        compare = Stage("compare", 1, lambda: Comparer(self._writer))
        differing = [index for found in self._run(batches, compare) for index in found]
        if not differing:
            return work
        self._decision = plan.sample_differed(start=differing[0] * work.chunk_size)
        self._suspect_reason = self._decision.reason
        return self._list_work()

    def _transfer(self, work: Worklist) -> None:
        self._progress.enter(Phase.TRANSFERRING)
        first = self._writer.resume_index
        total = work.bytes_to_read()
        self._progress.start(bytes_total=total, bytes_done=total - work.bytes_to_read(first=first))
        sifters = self._settings.sifters or _default_sifters()
        sift = Stage("sift", sifters, lambda: Sifter(self._writer, level=self._settings.level))
        for answer in self._run(work.list_batches(first=first), sift):
            self._put(answer)

    def _run(self, batches: Iterable[Batch], last: Stage) -> Iterator[Any]:
        connections = max(1, min(self._settings.connections, self._view.connections_max))
        read = Stage(
            "read", connections, lambda: Reader(self._view, chunk_size=self._writer.chunk_size)
        )
        items = (Item(batch.bytes_to_read + BATCH_OVERHEAD, batch) for batch in batches)
        return pipeline.run(
            items,
            [read, last],
            bytes_in_flight_max=max(
                self._settings.bytes_in_flight_max, last.threads * BATCHES_PER_SIFTER * BATCH_BYTES
            ),
            control=self._control,
        )

    def _put(self, answer: Answer) -> None:
        """Hand a batch to the writer, in order, and count it."""
        chunks = iter(answer.chunks)
        for run in answer.batch.runs:
            if run.action is Action.READ:
                for _ in range(run.count):
                    self._put_chunk(next(chunks))
            elif run.action is Action.ZERO or self._decision.mode is Mode.FULL:
                self._writer.put_zero(run.first, run.count)

    def _put_chunk(self, one: Sifted) -> None:
        if one.fate is Fate.ZERO:
            self._writer.put_zero(one.index, 1)
            self._progress.add(read=one.length, zero=one.length)
        elif one.fate is Fate.NEW:
            assert one.codec is not None, f"chunk {one.index} is new and not encoded"
            self._writer.put_chunk(one.index, one.chunk_id, one.codec, one.stored, one.length)
            self._progress.add(read=one.length, new=one.length, stored=len(one.stored))
        else:
            self._writer.put_known(one.index, one.chunk_id)
            self._progress.add(read=one.length, deduplicated=one.length)
