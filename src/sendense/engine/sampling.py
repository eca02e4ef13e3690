"""Which "unchanged" chunks to compare with the parent: every platform's change tracking has lied.

0.1 % of the unchanged chunks, at least 10, at most 256; half of them at the disk's start, where
partition tables and superblocks lie and where a lie hurts most. The seed is the snapshot's moment:
another choice at each backup, the same one when a run is taken up again.
"""

import random

from sendense.core import units
from sendense.engine.worklist import Worklist

SHARE = 1 / 1000
COUNT_MIN = 10
COUNT_MAX = 256  # 64 MiB read at chunks of 256 KiB: a fraction of a second
START_BYTES = units.GIB  # what counts as the disk's start
TRIES_PER_PICK = 8  # where most chunks changed, picking at random finds few unchanged ones


def choose(work: Worklist, *, seed: str) -> list[int]:
    """Return the indexes of unchanged chunks to compare, ascending, without repetition.

    Fewer than `COUNT_MIN` only where the disk has fewer unchanged chunks, or next to none.
    """
    chooser = random.Random(seed)  # noqa: S311 - must be repeatable, not secret
    count = min(COUNT_MAX, max(COUNT_MIN, round(work.chunk_count * SHARE)))
    start_chunks = min(work.chunk_count, -(-START_BYTES // work.chunk_size))
    near = work.list_untouched(first=0, end=start_chunks).tolist()
    chosen = set(chooser.sample(near, min(len(near), -(-count // 2))))
    for _ in range(TRIES_PER_PICK * count):
        if len(chosen) >= count:
            break
        index = chooser.randrange(work.chunk_count)
        if work.is_untouched(index):
            chosen.add(index)
    if len(chosen) < count:  # a small or mostly changed disk: what is left at its start
        rest = [index for index in near if index not in chosen]
        chosen.update(chooser.sample(rest, min(len(rest), count - len(chosen))))
    return sorted(chosen)
