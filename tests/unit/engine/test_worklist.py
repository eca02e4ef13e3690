import random

import psutil
import pytest

from sendense.core import units
from sendense.core.extent import Extent
from sendense.engine import worklist
from sendense.engine.worklist import Action, Batch, Run, Worklist

CHUNK = 128 * units.KIB


def make(size_bytes: int) -> Worklist:
    return Worklist(size_bytes=size_bytes, chunk_size=CHUNK)


def allocated(size_bytes: int, *extents: Extent) -> list[Run]:
    work = make(size_bytes)
    assert all(0 < position <= size_bytes for position in work.mark_allocated(extents))
    return list(work.list_runs())


def changed(size_bytes: int, *extents: Extent) -> list[Run]:
    work = make(size_bytes)
    list(work.mark_changed(extents))
    return list(work.list_runs())


def test_a_full_read_leaves_out_only_what_the_source_calls_zero() -> None:
    assert allocated(
        4 * CHUNK, Extent(0, CHUNK), Extent(CHUNK, 2 * CHUNK, zero=True), Extent(3 * CHUNK, CHUNK)
    ) == [Run(0, 1, Action.READ), Run(1, 2, Action.DEFAULT), Run(3, 1, Action.READ)]


def test_a_chunk_that_is_allocated_in_part_is_read_whole() -> None:
    assert allocated(
        3 * CHUNK,
        Extent(0, CHUNK + 4096, zero=True),
        Extent(CHUNK + 4096, 512),
        Extent(CHUNK + 4608, 2 * CHUNK - 4608, zero=True),
    ) == [Run(0, 1, Action.DEFAULT), Run(1, 1, Action.READ), Run(2, 1, Action.DEFAULT)]


def test_what_the_source_does_not_mention_is_read() -> None:
    assert allocated(4 * CHUNK, Extent(CHUNK, CHUNK, zero=True)) == [
        Run(0, 1, Action.READ),
        Run(1, 1, Action.DEFAULT),
        Run(2, 2, Action.READ),
    ]
    assert allocated(2 * CHUNK) == [Run(0, 2, Action.READ)]


def test_an_incremental_reads_whole_chunks_around_the_changes() -> None:
    assert changed(4 * CHUNK, Extent(CHUNK + 512, 512), Extent(3 * CHUNK - 1, 2)) == [
        Run(0, 1, Action.DEFAULT),
        Run(1, 3, Action.READ),
    ]


def test_a_chunk_trimmed_as_a_whole_is_zero_and_one_trimmed_in_part_is_read() -> None:
    assert changed(5 * CHUNK, Extent(CHUNK // 2, 3 * CHUNK, zero=True)) == [
        Run(0, 1, Action.READ),
        Run(1, 2, Action.ZERO),
        Run(3, 1, Action.READ),
        Run(4, 1, Action.DEFAULT),
    ]
    assert changed(2 * CHUNK, Extent(512, 512, zero=True)) == [
        Run(0, 1, Action.READ),
        Run(1, 1, Action.DEFAULT),
    ]
    assert changed(2 * CHUNK, Extent(CHUNK, 512, zero=True)) == [
        Run(0, 1, Action.DEFAULT),
        Run(1, 1, Action.READ),
    ]


def test_a_trim_up_to_the_end_makes_the_short_last_chunk_zero() -> None:
    size = 2 * CHUNK + 512
    assert changed(size, Extent(CHUNK, CHUNK + 512, zero=True)) == [
        Run(0, 1, Action.DEFAULT),
        Run(1, 2, Action.ZERO),
    ]
    assert changed(size, Extent(CHUNK, 10 * CHUNK, zero=True))[-1] == Run(1, 2, Action.ZERO)


def test_trims_that_touch_make_one_whole_chunk() -> None:
    half = CHUNK // 2
    assert changed(CHUNK, Extent(0, half, zero=True), Extent(half, half, zero=True)) == [
        Run(0, 1, Action.ZERO)
    ]


def test_every_kind_of_change_agrees_with_a_count_byte_by_byte(seed: int) -> None:
    chooser = random.Random(seed)
    unit = CHUNK // 4
    for _ in range(200):
        units_count = chooser.randrange(1, 40)
        size = units_count * unit - chooser.choice([0, 512])
        kinds = [chooser.choice("-dz") for _ in range(units_count)]
        extents = [
            Extent(place * unit, min(unit, size - place * unit), zero=kind == "z")
            for place, kind in enumerate(kinds)
            if kind != "-"
        ]
        expected = []
        for first in range(0, units_count, 4):
            inside = set(kinds[first : first + 4])
            if inside == {"-"}:
                expected.append(Action.DEFAULT)
            else:
                expected.append(Action.ZERO if inside == {"z"} else Action.READ)
        found = [run.action for run in changed(size, *extents) for _ in range(run.count)]
        assert found == expected, (kinds, size)


def test_the_bytes_to_read_count_a_short_last_chunk_as_what_it_is() -> None:
    work = make(2 * CHUNK + 512)
    list(work.mark_changed([Extent(CHUNK, CHUNK + 512)]))
    assert work.bytes_to_read() == CHUNK + 512
    assert work.bytes_to_read(first=2) == 512
    assert work.bytes_to_read(first=3) == 0
    assert [work.chunk_length(index) for index in range(3)] == [CHUNK, CHUNK, 512]


def test_blocks_with_something_to_read_are_told_in_order(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worklist, "SCAN_CHUNKS", 64)
    chooser = random.Random(seed)
    for _ in range(50):
        count = chooser.randrange(1, 300)
        work = make(count * CHUNK)
        marked = chooser.sample(range(count), chooser.randrange(0, min(count, 9)))
        zeros = {index for index in marked if chooser.random() < 0.3}
        list(
            work.mark_changed(
                Extent(index * CHUNK, CHUNK, zero=index in zeros) for index in sorted(marked)
            )
        )
        first = chooser.randrange(count)
        expected = {index // 16 for index in marked if index not in zeros}
        found = list(work.list_blocks(16, first=first))
        assert found == sorted(block for block in expected if block >= first // 16)


def test_batches_hold_everything_once_in_order_and_within_their_bound(seed: int) -> None:
    chooser = random.Random(seed)
    work = make(5000 * CHUNK + 512)
    extents = [
        Extent(place * 3 * CHUNK, chooser.choice([512, 2 * CHUNK]), zero=chooser.random() < 0.3)
        for place in range(1600)
    ]
    list(work.mark_changed(extents))
    batches = list(work.list_batches(first=7))
    assert all(batch.bytes_to_read <= worklist.BATCH_BYTES for batch in batches)
    assert all(len(batch.runs) <= worklist.BATCH_RUNS_MAX for batch in batches)
    assert sum(batch.bytes_to_read for batch in batches) == work.bytes_to_read(first=7)
    position = 7
    for run in (run for batch in batches for run in batch.runs):
        assert run.first == position
        position = run.end
    assert position == work.chunk_count


def test_a_batch_of_the_last_chunk_weighs_what_it_holds() -> None:
    work = make(512)
    list(work.mark_allocated([Extent(0, 512)]))
    assert list(work.list_batches()) == [Batch((Run(0, 1, Action.READ),), 512)]


def test_a_sparse_disk_of_64_tib_costs_next_to_no_memory() -> None:
    size = 64 * units.TIB
    before = psutil.Process().memory_info().rss
    work = Worklist(size_bytes=size, chunk_size=CHUNK)  # 512 Mi entries
    list(work.mark_allocated([Extent(0, size - 512, zero=True), Extent(size - 512, 512)]))
    assert psutil.Process().memory_info().rss - before < 64 * units.MIB
