"""`./dev bench`: measure beside restic, borg, nbdcopy and qemu-img, and the machine's limits."""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil

from benchmarks import absolutes, catalog, content, garbage, goals, metadata
from benchmarks.report import Found
from benchmarks.suite import WIDE_BYTES, Suite
from sendense.core import units

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "bench"
CONTENT_BYTES = 2 * units.GIB
CONTENT_BYTES_QUICK = 512 * units.MIB
PLACES = 1638  # of 64 KiB: 0.1 % of 100 GiB
PLACES_QUICK = 400
ROUNDS = 5
ROUNDS_QUICK = 3


@contextmanager
def _work_folder() -> Iterator[Path]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="run-") as folder:
        yield Path(folder)


def _measure_full_disk(folder: Path, places: int) -> list[Found]:
    """Compare what incrementals of a full disk put: the changes in 100 GiB, and all over it."""
    narrow, wide = (
        metadata.measure(CACHE, folder, places=places, within=within, chunks=absolutes.INDEX_CHUNKS)
        for within in WIDE_BYTES
    )
    return goals.compare_metadata(narrow, wide)


def main() -> None:
    """Measure, check, print."""
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller image, fewer rounds")
    parser.add_argument("--rounds", type=int, help="how often each contender runs")
    parser.add_argument("--json", action="store_true", help="print figures for programs")
    parser.add_argument("--catalog", action="store_true", help="measure lists of 100,000 backups")
    parser.add_argument("--gc", action="store_true", help="measure a garbage collection")
    given, rest = parser.parse_known_args()
    if given.catalog or given.gc:
        (catalog if given.catalog else garbage).main(rest)
        return
    if rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    size = CONTENT_BYTES_QUICK if given.quick else CONTENT_BYTES
    rounds = given.rounds or (ROUNDS_QUICK if given.quick else ROUNDS)
    image = content.make_image(CACHE, content_bytes=size)
    with _work_folder() as folder:
        places = PLACES_QUICK if given.quick else PLACES
        tables = list(Suite(folder, image, rounds=rounds, places=places).list_tables())
        found = goals.compare(tables)
        found += _measure_full_disk(folder, places)
        found += absolutes.list_found(CACHE, folder, image, quick=given.quick)
    machine = {
        "date": f"{datetime.now(tz=UTC):%Y-%m-%d}",
        "cores": len(os.sched_getaffinity(0)),
        "memory": psutil.virtual_memory().total,
        "image": {"size": image.stat().st_size, "data": image.stat().st_blocks * units.SECTOR},
        "rounds": rounds,
    }
    if given.json:
        print(json.dumps({**machine, "tables": [table.to_json() for table in tables]}, indent=2))
        return
    print(
        f"{machine['date']}, {machine['cores']} cores, "
        f"{units.format_size(psutil.virtual_memory().total)} RAM; raw ext4 image of "
        f"{units.format_size(image.stat().st_size)} with "
        f"{units.format_size(image.stat().st_blocks * units.SECTOR)} of data, warm cache, "
        f"{rounds} rounds in alternation, medians\n"
    )
    print("\n".join(goals.to_lines(found)))
    for table in tables:
        print("\n".join(table.to_lines()))


if __name__ == "__main__":
    main()
