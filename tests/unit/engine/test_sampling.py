from sendense.core import units
from sendense.core.extent import Extent
from sendense.engine import sampling
from sendense.engine.worklist import Worklist

CHUNK = 512 * units.KIB


def make(size_bytes: int, *changed: Extent) -> Worklist:
    work = Worklist(size_bytes=size_bytes, chunk_size=CHUNK)
    list(work.mark_changed(changed))
    return work


def test_a_thousandth_is_sampled_half_of_it_at_the_start() -> None:
    work = make(50 * units.GIB)
    chosen = sampling.choose(work, seed="moment-1")
    assert len(chosen) == 102
    near = [index for index in chosen if index * CHUNK < sampling.START_BYTES]
    assert 51 <= len(near) <= 60  # those picked over the whole disk may fall there too
    assert chosen == sorted(set(chosen))


def test_a_small_disk_is_sampled_at_least_ten_times_and_a_huge_one_not_too_often() -> None:
    assert len(sampling.choose(make(units.GIB), seed="m")) == sampling.COUNT_MIN
    assert len(sampling.choose(make(10 * units.TIB), seed="m")) == sampling.COUNT_MAX


def test_the_same_moment_samples_the_same_chunks_and_another_moment_others() -> None:
    work = make(50 * units.GIB)
    assert sampling.choose(work, seed="a") == sampling.choose(work, seed="a")
    assert sampling.choose(work, seed="a") != sampling.choose(work, seed="b")


def test_changed_chunks_are_never_sampled() -> None:
    work = make(100 * CHUNK, Extent(0, 90 * CHUNK))
    assert sampling.choose(work, seed="m") == list(range(90, 100))


def test_a_disk_of_which_all_changed_has_nothing_to_sample() -> None:
    assert sampling.choose(make(10 * CHUNK, Extent(0, 10 * CHUNK)), seed="m") == []


def test_a_disk_of_one_sector_has_one_chunk_to_sample() -> None:
    assert sampling.choose(make(512), seed="m") == [0]


def test_over_many_backups_every_chunk_has_its_turn() -> None:
    work = make(200 * CHUNK)
    seen = {index for moment in range(300) for index in sampling.choose(work, seed=str(moment))}
    assert seen == set(range(200))
