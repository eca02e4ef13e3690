"""`./dev bench --gc`: what a collection costs where there are many chunks and many backups.

The repository is written by the product's own writer, encrypted, with chunks that compress to
nearly nothing and packs of as many chunks as real ones have. Then every tenth backup is deleted,
and one process collects while another makes small backups.
"""

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import memory
from benchmarks.ours import KEY, ROOT_KEY, open_repository
from sendense.core import units
from sendense.core.clock import SystemClock
from sendense.core.ids import SystemIds
from sendense.repository import chunk, pack
from sendense.repository.descriptor import RepositorySettings
from sendense.repository.gc import records
from sendense.repository.gc.protocol import Collector, Options, Stage
from sendense.repository.gc.records import Final
from sendense.repository.manifest import DiskIdentity, DiskTotals, ManifestDraft, Mode, VmRecord
from sendense.repository.repository import Repository
from sendense.repository.storage.local import LocalStorage

CHUNK = chunk.SIZE_MIN
CHUNKS = 2_000_000
BACKUPS = 1_000
VMS = 10
CHANGED = 100  # chunks of each incremental, scattered
CHUNKS_PER_PACK = 192  # 256 KiB each, compressed to two thirds, in 32 MiB
DELETED_EACH = 10
BESIDE_ALONE = 20  # small backups that are timed before the collection begins
DRAIN_POLL_SECONDS = 0.2


def build(folder: Path, *, chunks: int, backups: int) -> None:
    """Write a repository of so many chunks in so many backups, and delete every tenth."""
    place = Repository.create(
        LocalStorage(folder),
        RepositorySettings(chunk_size=CHUNK, root_key=ROOT_KEY),
        clock=SystemClock(),
        ids=SystemIds(),
    )
    whole, target = pack.TARGET_BYTES, CHUNKS_PER_PACK * (pack.BLOB.size + 50)
    pack.TARGET_BYTES = target  # so few stored bytes would fit into a handful of packs
    try:
        each = (chunks - (backups - VMS) * CHANGED) // VMS
        for vm in range(VMS):
            write(place, vm, 0, range(each), size=each)
        for number in range(backups - VMS):
            vm, turn = number % VMS, 1 + number // VMS
            changed = sorted(random.Random(number).sample(range(each), CHANGED))
            write(place, vm, turn, changed, size=each)
    finally:
        pack.TARGET_BYTES = whole
    for found in place.list_backups()[::DELETED_EACH]:
        place.delete_backup(found.backup_id, who="bench", why="every tenth goes")


def write(place: Repository, vm: int, turn: int, changed: Sequence[int], *, size: int) -> None:
    """Make one backup of a VM: turn 0 is a full one, later ones build on the turn before."""
    name, parent = f"vm{vm}-{turn}", f"vm{vm}-{turn - 1}" if turn else None
    place.begin_session(name, parents=[parent] if parent else [])
    disk = DiskIdentity(KEY, 0, "disk", f"disk-{vm}", size * place.chunk_size)
    mode = Mode.INCREMENTAL if parent else Mode.FULL
    with place.open_disk_writer(
        name, disk, moment=name, mode=mode, parent_backup_id=parent
    ) as writer:
        for index in changed:
            line = b"%032d" % (vm * 10**20 + turn * 10**10 + index)
            plain = line * (place.chunk_size // len(line))
            codec, stored = chunk.encode(plain, 1)
            writer.put_chunk(index, writer.identify(plain), codec, stored, len(plain))
        writer.finish(DiskTotals(mode))
    now = datetime.now(tz=UTC)
    machine = VmRecord("image", "bench", "source", f"vm{vm}", f"vm{vm}")
    place.commit(name, ManifestDraft(name, machine, (KEY,), name, "none", "auto", now, now))


def collect(folder: Path) -> dict[str, object]:
    """Collect all that can be collected now, and say how long each part took."""
    spent: dict[str, float] = {}
    with memory.watched() as peak:
        began = time.perf_counter()
        place = open_repository(folder)
        collector = Collector(place, Options(grace_seconds=0, is_confirmed=True))
        spent["open"] = time.perf_counter() - began
        stage = None
        while stage is not Stage.DONE:
            began = time.perf_counter()
            stage = collector.step()
            if stage is Stage.DRAIN:
                time.sleep(DRAIN_POLL_SECONDS)
            spent[stage] = spent.get(stage, 0.0) + time.perf_counter() - began
    final = records.get(Final, place.storage, place.collected.refresh().generation)
    status = Path("/proc/self/status").read_text().splitlines()
    resident = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    return {
        "spent": spent,
        "packs": final.pack_count,
        "freed_bytes": final.pack_bytes,
        "anonymous": peak[0],
        "resident": resident * units.KIB,
    }


def back_up_small(folder: Path, name: str) -> float:
    """Make a full backup of a small disk of its own; return the seconds it took."""
    began = time.perf_counter()
    place = open_repository(folder)
    place.begin_session(name, parents=[])
    disk = DiskIdentity(KEY, 0, "disk", "small", 64 * CHUNK)
    with place.open_disk_writer(name, disk, moment=name, mode=Mode.FULL) as writer:
        for index in range(64):
            plain = random.Random(f"{name}{index}").randbytes(CHUNK)
            writer.put_chunk(index, writer.identify(plain), *chunk.encode(plain, 1), CHUNK)
        writer.finish(DiskTotals(Mode.FULL))
    now = datetime.now(tz=UTC)
    vm = VmRecord("image", "bench", "source", "small", "small")
    place.commit(name, ManifestDraft(name, vm, (KEY,), name, "none", "auto", now, now))
    return time.perf_counter() - began


def measure(folder: Path) -> Iterator[str]:
    """Collect in a process of its own with backups beside it; yield the lines of the table."""
    alone = [back_up_small(folder, f"alone-{number}") for number in range(BESIDE_ALONE)]
    command = [sys.executable, "-m", "benchmarks.garbage", "--collect", str(folder)]
    beside: list[float] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        while running.poll() is None:
            beside.append(back_up_small(folder, f"beside-{len(beside)}"))
        assert running.stdout is not None
        told = json.loads(running.stdout.read())
    yield f"freed {units.format_size(told['freed_bytes'])} in {told['packs']:,} packs"
    for what, seconds in told["spent"].items():
        yield f"{what:30} {seconds:8.1f} s"
    yield f"{'anonymous memory, peak':30} {units.format_size(told['anonymous']):>10}"
    yield f"{'with mapped files, peak':30} {units.format_size(told['resident']):>10}"
    yield (
        f"a small backup: alone {statistics.median(alone):.2f} s (longest {max(alone):.2f}), "
        f"beside it {statistics.median(beside):.2f} s (longest {max(beside):.2f}, {len(beside)})"
    )


def main(arguments: Sequence[str]) -> None:
    """Build, collect, print."""
    parser = argparse.ArgumentParser(prog="./dev bench --gc", description=__doc__)
    parser.add_argument("--chunks", type=int, default=CHUNKS)
    parser.add_argument("--backups", type=int, default=BACKUPS)
    parser.add_argument("--folder", type=Path, help="keep the repository here, and use it again")
    parser.add_argument("--collect", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.collect:
        print(json.dumps(collect(given.collect)))
        return
    with tempfile.TemporaryDirectory(prefix="sendense-bench-") as made:
        folder = Path(made) / "repository"
        if given.folder and given.folder.exists():
            shutil.copytree(given.folder, folder)
        else:
            folder.mkdir()
            began = time.perf_counter()
            build(folder, chunks=given.chunks, backups=given.backups)
            seconds = time.perf_counter() - began
            print(f"{given.chunks:,} chunks, {given.backups:,} backups in {seconds:.0f} s")
            if given.folder:
                shutil.copytree(folder, given.folder)
        for line in measure(folder):
            print(line)


if __name__ == "__main__":
    main(sys.argv[1:])
