"""`./dev bench`: measure beside nbdcopy and qemu-img, and beside the machine's limit."""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil

from benchmarks import catalog, contenders, content, garbage, report
from benchmarks.contenders import Contender, Figures
from benchmarks.report import Table
from sendense.core import units

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "bench"
CONTENT_BYTES = 2 * units.GIB
CONTENT_BYTES_QUICK = 512 * units.MIB
CHANGES = 400  # places of 64 KiB
CHANGES_QUICK = 100
ROUNDS = 5
ROUNDS_QUICK = 3
OURS = "Sendense"


class Bench:
    """One run of everything: an image, its changed copy, and what is measured on them."""

    def __init__(self, folder: Path, image: Path, *, rounds: int, changes: int) -> None:
        self._folder = folder
        self._image = image
        self._rounds = rounds
        self._changes = changes
        self._repository = folder / "repository"
        self._parent = folder / "parent"
        self._restored = folder / "restored.raw"

    def list_tables(self) -> Iterator[Table]:
        """Measure and yield one table after the other, and check what came out."""
        with contenders.served(self._image) as socket:
            peers = contenders.list_peers(socket, self._folder)
            rows = self._measure([self._full(socket), contenders.limit(socket), *peers])
            yield Table("Full backup of a disk, zstd-1", rows, OURS)
        rows = self._measure([self._restore(), self._convert_back()])
        self._compare(self._image)
        yield Table("Restore to a raw file", rows, OURS)
        yield self._measure_incremental()

    def _measure_incremental(self) -> Table:
        changed = self._folder / "changed.raw"
        shutil.copyfile(self._image, changed)
        places = content.scatter_changes(changed, count=self._changes, seed=1)
        listed = self._folder / "changes.json"
        listed.write_text(json.dumps(places))
        self._repository.rename(self._parent)
        with contenders.served(changed) as socket:
            ours = self._incremental(socket, listed)
            rows = self._measure([ours, *contenders.list_peers(socket, self._folder)])
        self._restore(name="second").run()
        self._compare(changed)
        size = units.format_size(self._changes * content.CHANGE_BYTES)
        title = f"Incremental backup of {self._changes} scattered places of 64 KiB ({size})"
        return Table(f"{title}; the others have no increments", rows, OURS)

    def _measure(self, measured: list[Contender]) -> tuple[report.Row, ...]:
        return report.measure(measured, rounds=self._rounds, note=_note)

    def _full(self, socket: Path) -> Contender:
        arguments = ["--repository", str(self._repository), "--socket", str(socket)]
        return Contender(
            OURS,
            "zstd-1, 512 KiB chunks, local repository",
            lambda: contenders.run_ours("full", "--name", "first", *arguments),
            lambda: contenders.remove(self._repository),
        )

    def _incremental(self, socket: Path, listed: Path) -> Contender:
        def prepare() -> None:
            contenders.remove(self._repository)
            shutil.copytree(self._parent, self._repository, copy_function=os.link)

        arguments = ["--repository", str(self._repository), "--socket", str(socket)]
        arguments += ["--name", "second", "--parent", "first", "--changes", str(listed)]
        return Contender(
            OURS,
            "incremental with sampling",
            lambda: contenders.run_ours("incremental", *arguments),
            prepare,
        )

    def _restore(self, *, name: str = "first") -> Contender:
        arguments = ["--repository", str(self._repository), "--name", name]
        return Contender(
            OURS,
            "verified, synced, sparse",
            lambda: contenders.run_ours("restore", *arguments, "--target", str(self._restored)),
            lambda: contenders.remove(self._restored),
        )

    def _convert_back(self) -> Contender:
        target = self._folder / "back.raw"
        packed = self._folder / "qemu.qcow2"
        command = ["qemu-img", "convert", "-W", "-m", "16", "-t", "writeback"]
        command += ["-f", "qcow2", "-O", "raw", str(packed), str(target)]

        def run() -> Figures:
            return contenders.run_program(command, output=target)

        name = "qemu-img from qcow2, zstd"
        return Contender(name, " ".join(command), run, lambda: contenders.remove(target))

    def _compare(self, image: Path) -> None:
        """Stop where the restored bytes are not those of the image."""
        contenders.run_program(["cmp", str(image), str(self._restored)])


def _note(text: str) -> None:
    print(text, file=sys.stderr)


@contextmanager
def _work_folder() -> Iterator[Path]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="run-") as folder:
        yield Path(folder)


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
        changes = CHANGES_QUICK if given.quick else CHANGES
        bench = Bench(folder, image, rounds=rounds, changes=changes)
        tables = list(bench.list_tables())
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
    for table in tables:
        print("\n".join(table.to_lines()))


if __name__ == "__main__":
    main()
