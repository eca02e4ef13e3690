"""Measures along every axis, prints tables, and keeps figures and the plot."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import content, machine, plot, results, scale
from benchmarks.growth import backups, chunks, crowd, disk, rows
from benchmarks.growth.series import Series
from benchmarks.scale import Scale
from sendense.core import units

COMMAND = "./dev bench --growth --save"
CONTENT_BYTES = 128 * units.MIB  # of the image that sparse disks get their chunks from
FIGURES = "growth.json"


@dataclass(frozen=True)
class Amounts:
    """Where along each axis is measured.

    Attributes:
        disk_places, crowd_places: chunks with data in each sparse disk.
        disk_bytes, backups, chunks, disks, rows, workers: what grows.
    """

    rounds: int
    disk_places: int
    crowd_places: int
    disk_bytes: tuple[int, ...]
    backups: tuple[int, ...]
    chunks: tuple[int, ...]
    disks: tuple[int, ...]
    rows: tuple[int, ...]
    workers: tuple[int, ...]


WHOLE = Amounts(
    rounds=3,
    disk_places=400,
    crowd_places=300,
    disk_bytes=tuple(size * units.GIB for size in (10, 32, 100, 320, 1024)),
    backups=(1, 10, 100, 300, 1000),
    chunks=(10**4, 10**5, 10**6, 10**7),
    disks=(1, 2, 4, 8),
    rows=(100, 1_000, 10_000, 100_000),
    workers=(1, 2, 3, 4),
)
QUICK = Amounts(
    rounds=1,
    disk_places=100,
    crowd_places=80,
    disk_bytes=tuple(size * units.GIB for size in (10, 100, 1024)),
    backups=(1, 10, 100),
    chunks=(10**4, 10**5, 10**6),
    disks=(1, 2, 4, 8),
    rows=(100, 1_000, 10_000),
    workers=(1, 2, 4),
)
CATALOG_ROUNDS = 40  # as many as a 95th percentile needs


def run(*, is_quick: bool, as_json: bool, is_saved: bool) -> None:
    """Measure, print, keep: in the tree where it is wanted, beside the caches in any case."""
    name = (scale.QUICK if is_quick else scale.WHOLE).name
    amounts = QUICK if is_quick else WHOLE
    with scale.work_folder() as folder:
        found = list(list_series(folder, amounts))
    seen = machine.describe()
    figures = {"machine": asdict(seen), "series": [one.to_json() for one in found]}
    lines = [seen.to_text(), "", *(line for one in found for line in one.to_lines())]
    print(json.dumps(figures, indent=2) if as_json else "\n".join(lines))
    results.save(scale.CACHE / FIGURES, name, figures)
    if is_saved:
        results.save(results.GROWTH_FIGURES, name, figures)
    if is_saved and not is_quick:
        shown = f"![Cost as work grows]({results.GROWTH_PLOT.name})"
        results.save_page(results.PAGE, COMMAND, ["## Cost as work grows", "", shown, "", *lines])
        drawn = results.GROWTH_PLOT
    else:
        drawn = scale.CACHE / results.GROWTH_PLOT.name
    plot.draw_growth(found, drawn, title=f"Cost as work grows; {seen.to_text()}")
    _note(f"plotted: {drawn}")


def list_series(work: Path, amounts: Amounts) -> Iterator[Series]:
    """Measure and yield one series after the other."""
    rounds = amounts.rounds
    image = content.make_image(scale.CACHE, content_bytes=CONTENT_BYTES)
    _note("size of a disk")
    sized = Scale("growth", CONTENT_BYTES, amounts.disk_places, rounds, is_thorough=False)
    yield from disk.measure(work, image, sized, amounts.disk_bytes)
    _note("backups in a repository")
    yield from backups.measure(work, amounts.backups, rounds=max(rounds, 3))
    _note("chunks in an index")
    yield from chunks.measure(scale.CACHE, work, image, amounts.chunks, rounds=max(rounds, 3))
    _note("disks at once, workers at once")
    yield from crowd.measure(
        work,
        image,
        places=amounts.crowd_places,
        rounds=rounds,
        threads=amounts.disks,
        processes=amounts.workers,
    )
    _note("rows in a catalog")
    yield from rows.measure(amounts.rows, rounds=CATALOG_ROUNDS)


def _note(text: str) -> None:
    print(text, file=sys.stderr)
