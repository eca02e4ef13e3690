"""`./dev bench --guest`: what a backup costs the writes of the guest that is backed up.

The demonstration guest writes 4 KiB with O_DIRECT and O_SYNC to random places of the disk that is
read, with a pause between any two, and logs how long each write took inside the guest. Meanwhile
its disk is backed up by connector, engine and an encrypted repository, as in a worker.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import content, ours
from demo.guest import disk as disks
from demo.guest import image
from demo.guest.vm import Disk, Guest, choose_accelerator
from sendense.connectors.base import (
    ConsistencyWish,
    DiskRequest,
    Snapshot,
    SnapshotOutcome,
    SnapshotRequest,
)
from sendense.connectors.capability import Measuring
from sendense.connectors.impact import ImpactLimit
from sendense.connectors.qemu import meter
from sendense.connectors.qemu.meter import Counters
from sendense.connectors.qemu.source import QemuSource
from sendense.core import units
from sendense.core.clock import SystemClock
from sendense.core.errors import Cancelled
from sendense.core.ids import SystemIds
from sendense.engine import backup
from sendense.engine.backup import EngineSettings, Task
from sendense.engine.control import Control
from sendense.engine.plan import INCREMENTAL, Decision, Mode
from sendense.engine.progress import Progress
from sendense.engine.throttle import Throttle
from sendense.repository.descriptor import RepositorySettings
from sendense.repository.manifest import DiskIdentity, ManifestDraft, VmRecord
from sendense.repository.repository import Repository
from sendense.repository.storage.local import LocalStorage

PROGRAM = Path(__file__).resolve().parent / "latency.c"
QDEV = "/machine/peripheral/disk0-device/virtio-backend"
CONTENT_BYTES = 768 * units.MIB
SPAN_BYTES = 64 * units.MIB  # behind the file system: what the guest writes to
TOOLS_BYTES = 16 * units.MIB
PAUSE_MICROSECONDS = 2000  # some hundred commits a second: a busy database, no test of the disk
QUIET_SECONDS = 8.0
INCREMENTALS = 3  # one is over too soon to tell a percentile
BACKUP_SECONDS_MAX = 30.0  # a throttled backup is stopped then: what it settles at has been seen
LIMIT_RATIO = 2.0  # of what QEMU counted without a backup, where no limit is given
HEAD = (
    "| | seconds | writes/s | p50 ms | p99 ms | longest ms | QEMU's mean ms | |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
)


@dataclass(frozen=True)
class Phase:
    """The guest's writes while something was done.

    Attributes:
        p50, p99, longest: milliseconds, as measured inside the guest.
        qemu: the mean as QEMU counts it, to which the limit is held.
        note: what was done.
    """

    name: str
    seconds: float
    writes: int
    p50: float
    p99: float
    longest: float
    qemu: float
    note: str = ""

    def to_line(self) -> str:
        """Return the phase as a row of Markdown."""
        return (
            f"| {self.name} | {self.seconds:.1f} | {self.writes / self.seconds:.0f} "
            f"| {self.p50:.2f} | {self.p99:.2f} | {self.longest:.1f} | {self.qemu:.2f} "
            f"| {self.note} |"
        )


class Rig:
    """A guest that writes, and backups of its first disk."""

    def __init__(self, guest: Guest, folder: Path, *, span_start: int) -> None:
        self._guest = guest
        vm = {"name": guest.name, "qmp": str(guest.qmp_socket), "agent": None}
        self._source = QemuSource({"vms": [vm]}, Path, folder / "scratch")
        self._folder = folder
        self._repository = create_repository(folder / "repository-0")
        self._span_start = span_start
        self._parent: tuple[str, str | None] | None = None  # the last backup, and its change id
        self._count = 0

    def forget(self) -> None:
        """Go on with an empty repository, so that a further full backup has as much to do."""
        self._repository = create_repository(self._folder / f"repository-{self._count}")
        self._parent = None

    def begin(self) -> None:
        """Fill what the guest will write to, so that nothing is allocated later, and let it."""
        first, count = self._span_start // units.MIB, SPAN_BYTES // units.MIB
        fill = f"dd if=/dev/zero of=/dev/vda bs=1M seek={first} count={count} conv=fsync"
        place = f"/dev/vda {self._span_start} {SPAN_BYTES} {PAUSE_MICROSECONDS}"
        self._guest.shell(fill)
        self._guest.shell(f"/mnt/tools/latency {place} </dev/null >/tmp/log 2>&1 &")

    def watch(self, name: str, work: Callable[[], str | None]) -> Phase:
        """Do something, and return what the guest's writes took meanwhile."""
        before, began, started = self._count_writes(), self._read_clock(), time.monotonic()
        note = work()
        seconds = time.monotonic() - started
        after, ended = self._count_writes(), self._read_clock()
        lines = self._guest.shell(
            f"awk '$1 > {began * 1e6:.0f} && $1 <= {ended * 1e6:.0f} {{print $2}}' /tmp/log"
        )
        took = sorted(int(line) / 1000 for line in lines.split())
        return Phase(
            name=name,
            seconds=seconds,
            writes=len(took),
            p50=took[len(took) // 2],
            p99=took[len(took) * 99 // 100],
            longest=took[-1],
            qemu=(meter.find_mean(before, after) or 0.0) * 1000,
            note=note or "",
        )

    def back_up(self, limit: ImpactLimit, *, full: bool, seconds_max: float = 1e9) -> str:
        """Back up the disk, and say what was read; one that takes too long is stopped."""
        self._count += 1
        name = f"backup-{self._count}"
        parent, change_id = (None, None) if full or self._parent is None else self._parent
        wanted = DiskRequest(ours.KEY, "bench", change_id)
        snapshot = self._source.take_snapshot(
            SnapshotRequest(self._guest.uuid, name, (wanted,), ConsistencyWish.OFF)
        )
        progress, started = Progress(), time.monotonic()
        outcome, stopped = SnapshotOutcome.DISCARDED, ""
        try:
            self._transfer(name, snapshot, parent, limit, progress, started + seconds_max)
            outcome = SnapshotOutcome.COMMITTED
            self._parent = name, snapshot.disks[0].change_id
        except Cancelled:
            self._repository.abort(name, "the benchmark has seen enough")
            stopped = f", stopped at {progress.snapshot().fraction:.0%}"
        finally:
            live = frozenset([self._parent[1]] if self._parent and self._parent[1] else [])
            self._source.remove_snapshot(snapshot.reference, outcome, live)
        read, seconds = progress.snapshot().bytes_read, time.monotonic() - started
        speed = units.format_size(int(read / seconds))
        return f"{units.format_size(read)} read, {speed}/s{stopped}"

    def _transfer(
        self,
        name: str,
        snapshot: Snapshot,
        parent: str | None,
        limit: ImpactLimit,
        progress: Progress,
        deadline: float,
    ) -> None:
        """Transfer the disk and commit."""
        held, control = snapshot.disks[0], Control()
        assert held.base_lost_reason is None, held.base_lost_reason
        disk = DiskIdentity(ours.KEY, 0, "disk", held.uuid, held.size_bytes)

        def wait(seconds: float) -> None:
            control.wait(seconds)
            if time.monotonic() > deadline:
                control.cancel()

        self._repository.begin_session(name, parents=[parent] if parent else [])
        with self._source.open_disk(snapshot.reference, ours.KEY) as view:
            assert isinstance(view, Measuring)
            throttle = Throttle(
                limit,
                clock=SystemClock(),
                wait=wait,
                measure=view.measure_write_latency,
                tell=lambda _what: None,
            )
            task = Task(
                view=view,
                open_writer=lambda mode: self._repository.open_disk_writer(
                    name, disk, moment=name, mode=mode, parent_backup_id=parent
                ),
                decision=INCREMENTAL if parent else Decision(Mode.FULL),
                moment=name,
                change_id=held.change_id,
                hold_back=throttle.hold_back,
            )
            backup.back_up_disk(task, settings=EngineSettings(), control=control, progress=progress)
        now = datetime.now(tz=UTC)
        vm = VmRecord("qemu", "bench", "source", self._guest.uuid, self._guest.name)
        self._repository.commit(
            name, ManifestDraft(name, vm, (ours.KEY,), name, "crash", "auto", now, now)
        )

    def _read_clock(self) -> float:
        return float(self._guest.shell("cat /proc/uptime").split()[0])

    def _count_writes(self) -> Counters:
        found = meter.find_counters(self._guest.monitor.execute("query-blockstats"), QDEV)
        assert found is not None, "the guest has lost its disk"
        return found


def create_repository(folder: Path) -> Repository:
    """Create an encrypted repository, as users have it."""
    folder.mkdir()
    return Repository.create(
        LocalStorage(folder),
        RepositorySettings(root_key=ours.ROOT_KEY),
        clock=SystemClock(),
        ids=SystemIds(),
    )


@contextmanager
def started(folder: Path) -> Iterator[Rig]:
    """Start a guest with real content on its disk, and let it write."""
    real = content.make_image(find_cache(), content_bytes=CONTENT_BYTES)
    span_start = real.stat().st_size
    tools = folder / "tools"
    tools.mkdir()
    command = ["cc", "-O2", "-static", "-o", str(tools / "latency"), str(PROGRAM)]
    subprocess.run(command, check=True)
    disks.make_partitioned(folder / "1.img", TOOLS_BYTES, tools, image_format="raw")
    first = str(folder / "0.img")
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(real), first], check=True)
    grown = str(span_start + SPAN_BYTES)
    subprocess.run(["qemu-img", "resize", "-q", "-f", "qcow2", first, grown], check=True)
    with Guest(
        name="busy",
        uuid=str(uuid.uuid4()),
        folder=folder,
        image=image.build(),
        disks=[Disk("disk0", folder / "0.img", "qcow2"), Disk("disk1", folder / "1.img", "raw")],
        mounts=[("/dev/vdb1", "/mnt/tools")],
    ) as guest:
        guest.start()
        rig = Rig(guest, folder, span_start=span_start)
        rig.begin()
        yield rig


def find_cache() -> Path:
    """Return the folder that images are kept in for the next run."""
    return image.ROOT / ".cache" / "bench"


def measure(rig: Rig, *, limit_ms: float | None, say: Callable[[str], None]) -> list[Phase]:
    """Watch the guest before, during and after a full, an incremental and a throttled backup."""
    phases: list[Phase] = []

    def add(name: str, work: Callable[[], str | None]) -> Phase:
        say(f"{name} …")
        phases.append(rig.watch(name, work))
        return phases[-1]

    def rest() -> None:
        time.sleep(QUIET_SECONDS)

    def increment() -> str:
        return "; ".join(rig.back_up(ImpactLimit(), full=False) for _ in range(INCREMENTALS))

    before = add("before", rest)
    add("full backup", lambda: rig.back_up(ImpactLimit(), full=True))
    add("after it", rest)
    add(f"{INCREMENTALS} incremental backups", increment)
    add("after it", rest)
    chosen = limit_ms or LIMIT_RATIO * before.qemu
    limit = ImpactLimit(chosen / 1000)
    rig.forget()
    add(
        f"full backup, limit {chosen:.2f} ms",
        lambda: rig.back_up(limit, full=True, seconds_max=BACKUP_SECONDS_MAX),
    )
    add("after it", rest)
    return phases


def main(arguments: Sequence[str]) -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(prog="./dev bench --guest", description=__doc__)
    parser.add_argument("--limit-ms", type=float, help="of the throttled backup")
    parser.add_argument("--json", action="store_true", help="print figures for programs")
    given = parser.parse_args(arguments)
    # Not below the cache: its path may be too long for a unix socket's name.
    with tempfile.TemporaryDirectory(prefix="sendense-bench-") as name, started(Path(name)) as rig:
        phases = measure(
            rig, limit_ms=given.limit_ms, say=(lambda _: None) if given.json else print
        )
    machine = {
        "date": f"{datetime.now(tz=UTC):%Y-%m-%d}",
        "cores": len(os.sched_getaffinity(0)),
        "accelerator": choose_accelerator(image.build()),
        "load": os.getloadavg()[0],
    }
    if given.json:
        print(json.dumps({**machine, "phases": [asdict(phase) for phase in phases]}, indent=2))
        return
    print(
        f"\n{machine['date']}, {machine['cores']} cores, guest under {machine['accelerator']}, load"
        f" {machine['load']:.1f}; 4 KiB, O_DIRECT and O_SYNC, a pause of"
        f" {PAUSE_MICROSECONDS / 1000:g} ms between two writes\n"
    )
    print("\n".join((*HEAD, *(phase.to_line() for phase in phases))))
