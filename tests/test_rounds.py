"""A long run's time is shared, and any round can be come back to."""

from types import SimpleNamespace

import pytest

from tests.rounds import Rounds

SEED = 7


def test_a_quick_run_has_one_round_with_the_seed_of_the_run(rounds: Rounds) -> None:
    quick = Rounds(SEED, seconds=0)
    assert list(quick) == [SEED]
    assert quick.count == 1
    assert rounds.seconds >= 0


def test_rounds_go_on_with_fresh_seeds_until_the_time_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter(range(100))
    # Its own clock alone: hypothesis looks at the real one in each collection of garbage.
    clock = SimpleNamespace(monotonic=lambda: float(next(now)))
    monkeypatch.setattr("tests.rounds.time", clock)
    seeds = list(Rounds(SEED, seconds=10))
    assert len(set(seeds)) == len(seeds) == 10
    assert seeds[0] == SEED


def test_the_same_seed_gives_the_same_rounds() -> None:
    first, second = iter(Rounds(SEED, seconds=3600)), iter(Rounds(SEED, seconds=3600))
    assert [next(first) for _ in range(5)] == [next(second) for _ in range(5)]
