"""The processor."""

import os


def count_cores(*, most: int) -> int:
    """Return how many cores this process may run on, at least 1 and at most `most`."""
    return max(1, min(most, len(os.sched_getaffinity(0))))
