"""The number of backups in a repository, each an incremental of a few chunks."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import garbage, ours
from benchmarks.growth.series import Curve, Quantity, Series, median_seconds
from sendense.repository.repository import Repository

CHANGED = (7, 300, 555, 900)  # chunks of a disk of 1,024, in all its leaves
SIZE = 1024


def measure(work: Path, amounts: Sequence[int], *, rounds: int) -> Iterator[Series]:
    """Yield how long opening, listing and a small incremental take beside so many backups."""
    folder = work / "backups"
    opened, listed, backed_up = [], [], []
    made, turns = 0, itertools.count()
    with ours.create_repository(folder) as writing:
        for amount in amounts:
            for _ in range(made, amount):
                _write(writing, next(turns))
            opened.append((amount, median_seconds(lambda: _open(folder), rounds=rounds)))
            listed.append((amount, median_seconds(lambda: _list(folder), rounds=rounds)))
            seconds = median_seconds(lambda: _back_up(folder, next(turns)), rounds=rounds)
            backed_up.append((amount, seconds))
            made = amount + rounds  # those that were timed are in it too
    yield Series(
        "backups",
        "Backups in the repository, each with a segment",
        "backups",
        Quantity.COUNT,
        Quantity.SECONDS,
        (
            Curve("open it", tuple(opened)),
            Curve("open it and list all", tuple(listed)),
            Curve(f"open it, incremental of {len(CHANGED)} chunks", tuple(backed_up)),
        ),
    )


def _write(place: Repository, turn: int) -> None:
    garbage.write(place, 0, turn, CHANGED, size=SIZE)


def _open(folder: Path) -> None:
    ours.open_repository(folder).close()


def _list(folder: Path) -> None:
    with ours.open_repository(folder) as place:
        assert place.list_backups()


def _back_up(folder: Path, turn: int) -> None:
    with ours.open_repository(folder) as place:
        _write(place, turn)
