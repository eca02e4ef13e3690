"""`./dev bench`: measure beside restic, borg, nbdcopy and qemu-img, and the machine's limits.

One run of all contenders in alternation, then what has no contender: the metadata of increments,
memory beside ten million chunks, lists of 100,000 backups, discovery of 1,000 VMs. It prints what
must be reached and what was found, and a table for each comparison. Options choose something else:
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks import (
    absolutes,
    catalog,
    chunk_sizes,
    content,
    garbage,
    goals,
    guard,
    impact,
    machine,
    metadata,
    plot,
    profiled,
    results,
    scale,
)
from benchmarks.growth import run
from benchmarks.report import Found, Table
from benchmarks.scale import Scale
from benchmarks.suite import PLOTTED, WIDE_BYTES, Suite
from sendense.core import units

EPILOG = """
What is compared and what is kept:
  .cache/bench                 images and repositories that take long to make; may be removed
  benchmarks/results.json      figures of the last saved run of each scale, whole and quick
  benchmarks/RESULTS.md, .png  tables and bars of the last saved whole run; remarks around them stay
  benchmarks/growth.json, .png the same of --growth, whose tables are in RESULTS.md too; without
                               --save, or of a quick run, the plot lies in .cache/bench

Growth: the size of a sparse disk (10 GiB to 1 TiB), backups in a repository (1 to 1,000), chunks in
an index (10,000 to 10 million), disks backed up at once by one process (1 to 8), workers at once
(1 to 4), backups in a catalog (100 to 100,000). With --quick fewer of each, the last ones left out.

The guard compares with results.json: the limit's time divided by ours, for a full backup, another
one of the same disk, a restore, a verification and two incrementals. It measures these alone, and
ends with 1 where one is slower by more than 15 %. Runs of a --quick one are so short that they vary
by more than that: it finds what has become much slower.
"""
COMMAND = "./dev bench --save"


def main() -> None:
    """Do what the command line asks for."""
    given, rest = (parser := _make_parser()).parse_known_args()
    if given.guest:
        impact.main([*rest, *(["--json"] if given.json else [])])
    elif given.chunk_sizes:
        chunk_sizes.main()
    elif given.catalog or given.gc:
        (catalog if given.catalog else garbage).main(rest)
    else:
        _compare(given, rest, parser)


def _compare(given: argparse.Namespace, rest: list[str], parser: argparse.ArgumentParser) -> None:
    """Measure beside others, whatever of it is asked for."""
    if rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    if given.growth and given.rounds:
        parser.error("--growth has rounds of its own")
    if (given.guard or given.profile) and (given.save or given.json):
        parser.error("one table is printed and nothing kept: --save and --json are not for it")
    measured = scale.QUICK if given.quick else scale.WHOLE
    if given.rounds:
        measured = replace(measured, rounds=given.rounds)
    if given.growth:
        run.run(is_quick=given.quick, as_json=given.json, is_saved=given.save)
    elif given.guard:
        guard.run(measured)
    elif given.profile:
        profiled.main(measured)
    else:
        _run(measured, as_json=given.json, is_saved=given.save)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./dev bench",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="less data, fewer rounds, nothing that takes long to make: under three minutes",
    )
    parser.add_argument("--rounds", type=int, help="how often each contender runs")
    parser.add_argument("--json", action="store_true", help="print figures for programs")
    parser.add_argument(
        "--save", action="store_true", help="keep what was found, and plots of it, in benchmarks/"
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--guard", action="store_true", help="compare with the results in the tree; 1 where slower"
    )
    modes.add_argument(
        "--growth", action="store_true", help="measure what things cost as work grows, and plot it"
    )
    modes.add_argument(
        "--catalog",
        action="store_true",
        help="measure every list of the API, with --url, --backups and --only",
    )
    modes.add_argument(
        "--gc",
        action="store_true",
        help="measure a garbage collection, with --chunks, --backups and --folder",
    )
    modes.add_argument(
        "--chunk-sizes", action="store_true", help="measure what chunks of each size cost"
    )
    modes.add_argument(
        "--profile", action="store_true", help="tell what a full backup needs the processor for"
    )
    modes.add_argument(
        "--guest", action="store_true", help="measure what a guest notices, with --limit-ms"
    )
    return parser


def _run(measured: Scale, *, as_json: bool, is_saved: bool) -> None:
    """Measure all, check, print and keep."""
    image = content.make_image(scale.CACHE, content_bytes=measured.content_bytes)
    with scale.work_folder() as folder:
        tables = list(Suite(folder, image, measured).list_tables())
        found = goals.compare(tables)
        if measured.is_thorough:
            found += _measure_full_disk(folder)
        found += absolutes.list_found(scale.CACHE, folder, image, measured)
    seen = machine.describe()
    figures = {
        "machine": asdict(seen),
        "scale": asdict(measured),
        "image": {
            "size": image.stat().st_size,
            "data": image.stat().st_blocks * units.SECTOR,
            "made_of": content.describe_image(image),
        },
        "goals": [one.to_json() for one in found],
        "tables": [table.to_json() for table in tables],
    }
    told = f"{seen.to_text()}; {_describe(image, measured)}"
    lines = [told, "", *goals.to_lines(found), *(line for one in tables for line in one.to_lines())]
    print(json.dumps(figures, indent=2) if as_json else "\n".join(lines))
    if is_saved:
        results.save(results.FIGURES, measured.name, figures)
        if measured.name == scale.WHOLE.name:
            shown = f"![Seconds of each contender]({results.PLOT.name})"
            results.save_page(results.PAGE, COMMAND, [shown, "", *lines])
            _plot(tables, told)


def _plot(tables: list[Table], told: str) -> None:
    plot.draw_results([one for one in tables if one.key in PLOTTED], results.PLOT, title=told)


def _describe(image: Path, measured: Scale) -> str:
    found = image.stat()
    return (
        f"raw ext4 image of {units.format_size(found.st_size)} with "
        f"{units.format_size(found.st_blocks * units.SECTOR)} of data, "
        f"{content.describe_image(image)}, warm cache, "
        f"{measured.rounds} rounds in alternation, medians"
    )


def _measure_full_disk(folder: Path) -> list[Found]:
    """Compare what incrementals of a full disk put: the changes in 100 GiB, and all over it."""
    narrow, wide = (
        metadata.measure(
            scale.CACHE,
            folder,
            places=scale.WHOLE.places,  # fewer: the nodes above leaves would weigh too much
            within=within,
            chunks=absolutes.INDEX_CHUNKS,
        )
        for within in WIDE_BYTES
    )
    return goals.compare_metadata(narrow, wide)


if __name__ == "__main__":
    main()
