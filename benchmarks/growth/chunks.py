"""The number of chunks in the index."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import absolutes, contenders, millions, ours
from benchmarks.growth.series import Curve, Quantity, Series, median_seconds
from sendense.repository.chunk import ID_LENGTH
from sendense.repository.repository import Repository

BATCH = 4096  # ids looked up at once
KNOWN_EACH = 2  # every second of them is in the index
LOOK_UPS = 50  # batches whose median counts


def measure(
    cache: Path, work: Path, image: Path, amounts: Sequence[int], *, rounds: int
) -> Iterator[Series]:
    """Yield look-ups a second, the time to open, and the anonymous memory of a backup."""
    folder = work / "chunks"
    looked_up, opened, held = [], [], []
    for amount in amounts:
        contenders.link(millions.make(cache, chunks=amount), folder)
        seconds = median_seconds(lambda: ours.open_repository(folder).close(), rounds=rounds)
        opened.append((amount, seconds))
        with ours.open_repository(folder) as place:
            looked_up.append((amount, _look_ups_per_second(place, amount)))
        held.append((amount, absolutes.anonymous_bytes(cache, work, image, chunks=amount)))
    contenders.remove(folder)
    shared = ("chunks in the index", Quantity.COUNT)
    yield Series(
        "look-ups",
        f"Look-ups, {BATCH:,} at once, half of them known",
        *shared,
        Quantity.PER_SECOND,
        (Curve("look-ups a second", tuple(looked_up)),),
    )
    yield Series(
        "open",
        "Opening a repository whose files are in memory",
        *shared,
        Quantity.SECONDS,
        (Curve("to open", tuple(opened)),),
    )
    yield Series(
        "memory",
        "Anonymous memory of a process that backs up",
        *shared,
        Quantity.BYTES,
        (Curve("RssAnon, highest", tuple(held)),),
        is_log=False,
    )


def _look_ups_per_second(place: Repository, chunks: int) -> float:
    dice = random.Random(chunks)
    known = dice.sample(list(_list_some(place)), BATCH // KNOWN_EACH)
    wanted = known + [dice.randbytes(ID_LENGTH) for _ in range(BATCH - len(known))]
    dice.shuffle(wanted)
    assert place.segments.find_known(wanted).sum() == len(known)
    return BATCH / median_seconds(lambda: place.segments.find_known(wanted), rounds=LOOK_UPS)


def _list_some(place: Repository) -> Iterator[bytes]:
    """Yield ids from all over the index, a little more than are looked up."""
    step = max(1, len(place.segments) // (BATCH * KNOWN_EACH))
    return (found for number, found in enumerate(millions.list_ids(place)) if number % step == 0)
