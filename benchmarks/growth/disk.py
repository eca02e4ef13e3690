"""The size of a disk, with the same number of changes scattered over it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import metadata, report, suite
from benchmarks.growth.series import Curve, Quantity, Series
from benchmarks.scale import Scale
from benchmarks.suite import OURS, Suite
from sendense.core import units


def measure(work: Path, image: Path, measured: Scale, sizes: Sequence[int]) -> Iterator[Series]:
    """Yield the time of an incremental and what it puts under meta/, by the size of the disk."""
    compared = Suite(work, image, measured)
    tables = {
        size: compared.measure_wide(f"incremental of {units.format_size(size)}", size)
        for size in sizes
    }
    ours = {size: table.find(OURS) for size, table in tables.items()}
    limits = {size: table.find(f"limit: {suite.LIMIT_FULL}") for size, table in tables.items()}
    what = f"Incremental backup of {measured.places} places of 64 KiB"
    yield Series(
        "disk",
        what,
        "size of the sparse disk",
        Quantity.BYTES,
        Quantity.SECONDS,
        (
            Curve(OURS, tuple((size, row.seconds) for size, row in ours.items())),
            Curve(
                "limit: read, hash, zstd-1 of the chunks touched",
                tuple((size, row.seconds) for size, row in limits.items()),
            ),
        ),
    )
    yield Series(
        "metadata",
        "Metadata put by such an incremental",
        "size of the sparse disk",
        Quantity.BYTES,
        Quantity.BYTES,
        (
            Curve("under meta/", _counted(ours, "bytes_nodes")),
            Curve("all but packs/", _counted(ours, "bytes_metadata")),
            Curve(
                "a flat list would have",
                tuple((size, metadata.flat_list_bytes(size)) for size in sizes),
            ),
        ),
    )


def _counted(rows: dict[int, report.Row], key: str) -> tuple[tuple[float, float], ...]:
    return tuple((size, row.runs[-1].counted[key]) for size, row in rows.items())
