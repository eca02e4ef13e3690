"""What is measured: Sendense, its peers, and the limits; each run is one fresh process."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import memory
from sendense.core import units
from sendense.nbd import process


@dataclass(frozen=True)
class Figures:
    """One run.

    Attributes:
        cpu: seconds of user and system time of the contender alone, without the NBD server.
        memory: highest anonymous memory in bytes, 0 where it was not looked at.
        counted: bytes of each kind that the contender told or left behind.
    """

    seconds: float
    cpu: float
    memory: int
    counted: dict[str, int]

    def counting(self, **counted: int) -> "Figures":
        """Return the same run with more that was counted."""
        return replace(self, counted={**self.counted, **counted})


Prepare = Callable[[], None]


@dataclass(frozen=True)
class Contender:
    """Something to measure: `prepare` is not timed, `run` is."""

    name: str
    shown: str
    run: Callable[[], Figures]
    prepare: Prepare = lambda: None


@contextmanager
def served(image: Path) -> Iterator[Path]:
    """Serve a raw image by qemu-nbd, the same server for everyone, and give its socket."""
    with process.serve_image(image, image_format="raw") as address:
        assert address.socket_path is not None
        yield Path(address.socket_path)


def run_ours(action: str, *arguments: str) -> Figures:
    """Run `benchmarks.ours` and return what it measured itself."""
    command = [sys.executable, "-m", "benchmarks.ours", action, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    told = json.loads(done.stdout)
    counted = {key: value for key, value in told.items() if key.startswith("bytes")}
    return Figures(told["seconds"], told["cpu"], told["memory"], counted)


def run_program(
    command: Sequence[str],
    *,
    output: Path | None = None,
    environment: Mapping[str, str] | None = None,
    within: Path | None = None,
) -> Figures:
    """Run a program to its end; what it wrote counts as `bytes_stored`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    with (
        subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, cwd=within
        ) as process,
        memory.watched(process.pid) as peak,
    ):
        _, told = process.communicate()
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {told.decode()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    counted = {"bytes_stored": output.stat().st_blocks * units.SECTOR} if output else {}
    return Figures(seconds, cpu, peak[0], counted)


def count_stored(folder: Path) -> int:
    """Return what the files below a folder take on the disk."""
    found = (path.stat() for path in folder.rglob("*") if path.is_file())
    return sum(one.st_blocks * units.SECTOR for one in found)


def remove(*paths: Path) -> None:
    """Remove files and folders that an earlier run left, and let the disk come to rest."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    os.sync()


def link(source: Path, target: Path) -> None:
    """Put a repository's objects, which never change, into another folder too, in no time."""
    remove(target)
    shutil.copytree(source, target, copy_function=os.link)


def to_null(socket: Path) -> Contender:
    """Return nbdcopy that throws away what it reads: the source's own limit."""
    return _copy("nbdcopy to null", ["nbdcopy", _uri(socket), "null:"])


def list_copies(socket: Path, folder: Path) -> list[Contender]:
    """Return nbdcopy and qemu-img over the whole disk, all of them durable at the end."""
    uri = _uri(socket)
    copy = folder / "nbdcopy.raw"
    raw = folder / "qemu.raw"
    packed = folder / "qemu.qcow2"
    convert = ["qemu-img", "convert", "-W", "-m", "16", "-t", "writeback"]
    zstd = ["-O", "qcow2", "-c", "-o", "compression_type=zstd"]
    return [
        to_null(socket),
        _copy("nbdcopy to file", ["nbdcopy", "--flush", uri, str(copy)], copy),
        _copy("qemu-img to raw", [*convert, "-O", "raw", uri, str(raw)], raw),
        _copy("qemu-img to qcow2, zstd", [*convert, *zstd, uri, str(packed)], packed),
    ]


def _uri(socket: Path) -> str:
    return f"nbd+unix:///?socket={socket}"


def _copy(name: str, command: list[str], output: Path | None = None) -> Contender:
    def prepare() -> None:
        if output is not None:
            remove(output)

    return Contender(name, " ".join(command), lambda: run_program(command, output=output), prepare)


def limit(name: str, *arguments: str) -> Contender:
    """Return one of the machine's limits; see benchmarks/limit.py."""
    command = [sys.executable, "-m", "benchmarks.limit", *arguments]

    def run() -> Figures:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        told = json.loads(done.stdout)
        return Figures(told["seconds"], told["cpu"], 0, {"bytes_read": told["bytes_read"]})

    return Contender(f"limit: {name}", " ".join(["python -m benchmarks.limit", *arguments]), run)
