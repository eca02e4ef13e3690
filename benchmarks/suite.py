"""One run of everything: an image, its changed copy, and what is measured on them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import contenders, content, peers, report
from benchmarks.contenders import Contender, Figures
from benchmarks.report import Table
from benchmarks.scale import Scale
from sendense.core import units

OURS = "Sendense"
LIMIT_FULL = "read, hash, zstd-1"
LIMIT_AGAIN = "read, hash"
LIMIT_VERIFY = "unzstd, hash"
FULL, AGAIN, RESTORE, VERIFY = "full", "again", "restore", "verify"
PLOTTED = (FULL, AGAIN, RESTORE, VERIFY)
EXTREME_BYTES = units.GIB
EXTREMES = (content.NOISE, content.ZEROS, content.ONE_BYTE)
WIDE_BYTES = (100 * units.GIB, units.TIB)
INCREMENTALS = tuple(f"incremental of {units.format_size(size)}" for size in WIDE_BYTES)
CONVERT = ["qemu-img", "convert", "-W", "-m", "16", "-t", "writeback"]

Wanted = Callable[[str, str], bool]


class Suite:
    """What is compared, table by table; every table's contenders run in alternation.

    Args:
        wanted: says of a table's key and a contender's name whether it runs; without it all do.
    """

    def __init__(
        self, folder: Path, image: Path, measured: Scale, *, wanted: Wanted | None = None
    ) -> None:
        self._folder = folder
        self._image = image
        self._rounds = measured.rounds
        self._places = measured.places
        self._is_thorough = measured.is_thorough and not wanted
        self._wanted = wanted
        self._repository = folder / "repository"
        self._restored = folder / "restored.raw"
        self._packed = folder / "qemu.qcow2"
        self._back = folder / "back.raw"
        with_benji = measured.is_thorough
        self._peers = [] if wanted else peers.list_installed(folder, with_benji=with_benji)
        self._backups = 0

    def list_tables(self) -> Iterator[Table]:
        """Measure and yield one table after the other, and check what came out."""
        with contenders.served(self._image) as socket:
            yield self._measure(
                FULL,
                "Full backup of a disk, encrypted, zstd-1",
                [
                    self._full(socket),
                    contenders.limit(LIMIT_FULL, "compress", str(socket)),
                    *contenders.list_copies(socket, self._folder),
                    *(peer.full(self._image) for peer in self._peers),
                ],
            )
            yield self._measure(
                AGAIN,
                "The same disk again, unchanged, without change tracking",
                [
                    self._again(socket),
                    contenders.limit(LIMIT_AGAIN, "hash", str(socket)),
                    contenders.to_null(socket),
                    *(peer.again(self._image) for peer in self._peers),
                ],
            )
            stored = self._store_for_limit(socket)
        yield self._measure(
            RESTORE,
            "Restore to a raw file",
            [
                self._restore("first"),
                contenders.limit(LIMIT_VERIFY, "decompress", str(stored)),
                self._convert("qemu-img from raw", "raw", self._image),
                self._convert("qemu-img from qcow2, zstd", "qcow2", self._packed),
                *(peer.restore() for peer in self._peers),
            ],
        )
        for restored in (self._restored, *(peer.restored() for peer in self._peers)):
            contenders.run_program(["cmp", str(self._image), str(restored)])
        contenders.remove(self._packed, self._back, self._restored)
        yield self._measure(
            VERIFY,
            "Verify all that is stored",
            [
                Contender(OURS, "level V2", self._run_verify),
                contenders.limit(LIMIT_VERIFY, "decompress", str(stored)),
                *(peer.verify() for peer in self._peers),
            ],
        )
        contenders.remove(stored, self._repository, *(peer.repository for peer in self._peers))
        for kind in EXTREMES if self._is_thorough else ():
            yield self._measure_extreme(kind)
        for key, size in zip(INCREMENTALS, WIDE_BYTES, strict=True):
            yield self.measure_wide(key, size)

    def _measure_extreme(self, kind: str) -> Table:
        """Compare full backups of an artificial disk."""
        image = self._folder / "extreme.raw"
        content.make_extreme(image, kind, size=EXTREME_BYTES)
        with contenders.served(image) as socket:
            table = self._measure(
                kind,
                f"Full backup of {units.format_size(EXTREME_BYTES)}: {kind}",
                [
                    self._full(socket),
                    contenders.limit(LIMIT_FULL, "compress", str(socket)),
                    contenders.to_null(socket),
                    *(peer.full(image) for peer in self._peers),
                ],
            )
        places = (self._repository, *(peer.repository for peer in self._peers))
        contenders.remove(image, *places)
        return table

    def measure_wide(self, key: str, size: int) -> Table:
        """Compare an incremental of scattered places in a wide disk with the chunks they touch."""
        disk = self._folder / "wide.raw"
        listed = self._folder / "changes.json"
        content.make_wide(disk, self._image, size=size, places=self._places, seed=1)
        with contenders.served(disk) as socket:
            self._full(socket).run()
        listed.write_text(json.dumps(content.change_wide(disk, self._image, seed=2)))
        parent = self._folder / "parent"
        self._repository.rename(parent)

        with contenders.served(disk) as socket:
            arguments = self._arguments(socket, "--changes", str(listed), "--parent", "first")
            ours = Contender(
                OURS,
                "incremental with sampling",
                lambda: contenders.run_ours("incremental", "--name", "second", *arguments),
                lambda: contenders.link(parent, self._repository),
            )
            limit = contenders.limit(LIMIT_FULL, "compress", str(socket), str(listed))
            told = units.format_size(size)
            table = self._measure(
                key,
                f"Incremental backup of {self._places} places of 64 KiB in {told}; the limit does"
                " the chunks that they touch",
                [ours, limit],
            )
        contenders.remove(parent, self._repository, disk)
        return table

    def _measure(self, key: str, title: str, measured: list[Contender]) -> Table:
        if self._wanted:
            measured = [one for one in measured if self._wanted(key, one.name)]
        rows = report.measure(measured, rounds=self._rounds, note=_note)
        return Table(key, title, rows, OURS)

    def _arguments(self, socket: Path, *more: str) -> list[str]:
        return ["--repository", str(self._repository), "--socket", str(socket), *more]

    def _full(self, socket: Path) -> Contender:
        def run() -> Figures:
            return contenders.run_ours("full", "--name", "first", *self._arguments(socket))

        shown = "zstd-1, 256 KiB chunks, encrypted local repository"
        return Contender(OURS, shown, run, lambda: contenders.remove(self._repository))

    def _again(self, socket: Path) -> Contender:
        def run() -> Figures:
            self._backups += 1
            name = f"again-{self._backups}"
            return contenders.run_ours("full", "--name", name, *self._arguments(socket))

        return Contender(OURS, "all is read, nothing is new", run, os.sync)

    def _restore(self, name: str) -> Contender:
        arguments = ["--repository", str(self._repository), "--name", name]
        return Contender(
            OURS,
            "verified, synced, sparse",
            lambda: contenders.run_ours("restore", *arguments, "--target", str(self._restored)),
            lambda: contenders.remove(self._restored),
        )

    def _run_verify(self) -> Figures:
        return contenders.run_ours("verify", "--repository", str(self._repository))

    def _convert(self, name: str, kind: str, source: Path) -> Contender:
        command = [*CONVERT, "-f", kind, "-O", "raw", str(source), str(self._back)]

        def run() -> Figures:
            return contenders.run_program(command, output=self._back)

        return Contender(name, " ".join(command), run, lambda: contenders.remove(self._back))

    def _store_for_limit(self, socket: Path) -> Path:
        stored = self._folder / "limit.zst"
        command = [sys.executable, "-m", "benchmarks.limit", "store", str(socket), str(stored)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return stored


def _note(text: str) -> None:
    print(text, file=sys.stderr)
