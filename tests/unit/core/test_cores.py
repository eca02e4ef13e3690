import os

import pytest

from sendense.core.cores import count_cores


@pytest.mark.parametrize(("cores", "most", "expected"), [(1, 4, 1), (3, 4, 3), (64, 4, 4)])
def test_no_more_cores_are_counted_than_are_wanted(
    monkeypatch: pytest.MonkeyPatch, cores: int, most: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert count_cores(most=most) == expected
