"""Judging runs ahead of putting, and need not be in order."""

import random
from collections.abc import Iterator

import pytest

from sendense.engine import stages
from sendense.engine.ledger import Fate, Ledger, Loaded, Verdict
from sendense.engine.plan import Mode
from sendense.engine.progress import Progress
from sendense.engine.worklist import Action, Batch, Run
from sendense.repository.manifest import DiskIdentity, DiskTotals
from sendense.repository.writer import DiskWriter
from tests.engine_kit import CHUNK, KEY, Lab

DATA = random.Random(1).randbytes(CHUNK)


@pytest.fixture
def lab() -> Lab:
    return Lab()


@pytest.fixture
def writer(lab: Lab) -> Iterator[DiskWriter]:
    session_id = lab.begin()
    disk = DiskIdentity(KEY, 0, "disk", "uuid-1", 2 * CHUNK)
    with lab.repository.open_disk_writer(
        session_id, disk, moment=session_id, mode=Mode.FULL, parent_backup_id=None
    ) as opened:
        yield opened


def _loaded(writer: DiskWriter, index: int) -> Loaded:
    batch = Batch((Run(index, 1, Action.READ),), CHUNK)
    return Loaded(batch, [memoryview(DATA)], [writer.identify(DATA)])


def _fates(*verdicts: Verdict) -> list[Fate]:
    return [one.fate for verdict in verdicts for one in verdict.chunks]


def test_what_an_earlier_batch_brings_is_known(writer: DiskWriter) -> None:
    ledger = Ledger(writer, Progress(), mode=Mode.FULL)
    first, second = ledger.judge(_loaded(writer, 0)), ledger.judge(_loaded(writer, 1))
    assert _fates(first, second) == [Fate.NEW, Fate.KNOWN]


def test_a_batch_counts_on_none_that_is_put_after_it(writer: DiskWriter) -> None:
    progress = Progress()
    ledger = Ledger(writer, progress, mode=Mode.FULL)
    second, first = ledger.judge(_loaded(writer, 1)), ledger.judge(_loaded(writer, 0))
    assert _fates(first, second) == [Fate.NEW, Fate.NEW]
    for verdict in (first, second):
        ledger.put(stages.encode(verdict, level=1))
    shown = progress.snapshot()
    assert (shown.bytes_new, shown.bytes_deduplicated) == (CHUNK, CHUNK)
    record = writer.finish(DiskTotals(Mode.FULL, "", None, 2 * CHUNK, CHUNK, CHUNK))
    assert record.bytes_stored < 2 * CHUNK, "it is stored once"
