"""A real guest, a real hub and real workers, all to be killed; and what must hold afterwards."""

import abc
import contextlib
import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from demo.guest import disk as disks
from demo.guest.image import GuestImage
from demo.guest.vm import Disk, Guest
from demo.hub import Hub
from sendense.connectors.qemu.agent import AgentRefused, AgentSilent
from sendense.core.clock import SystemClock
from sendense.core.ids import SystemIds
from sendense.core.units import KIB, MIB
from sendense.durable import presence
from sendense.durable.presence import Presence
from sendense.repository import check, recovery
from sendense.repository.repository import Repository
from sendense.repository.storage.local import LocalStorage
from tests.kill import stops

ROOT = Path(__file__).resolve().parent.parent.parent
LEASE_SECONDS = 6.0  # a healthy worker must never miss it, however busy the machine is
# 1.5 leases and a sweep, as the design says; then a step has to begin on a machine that is shared.
RESUME_SECONDS_MAX = 1.5 * LEASE_SECONDS + LEASE_SECONDS / 4 + 10.0
WAIT_SECONDS_MAX = 240.0
POLL_SECONDS = 0.05
RAW_BYTES = 64 * MIB  # written past any file system, so that its content is known at any time
MOUNTED_BYTES = 16 * MIB  # what the guest agent freezes
RAW_KEY, MOUNTED_KEY = 2000, 2001
BLOCK = 64 * KIB
# Behind this the guest writes all the time; before it only where a test says so.
STILL_BYTES = 56 * MIB
SCRIBBLE = (
    "while :; do dd if=/dev/urandom of=/dev/vda bs=64k count=1 conv=notrunc "
    f"seek=$(({STILL_BYTES // BLOCK} + RANDOM % {(RAW_BYTES - STILL_BYTES) // BLOCK})); "
    "sync; usleep 100000; done"
)


@dataclass(frozen=True)
class Kept:
    """A committed backup, and what its raw disk must hold when it is restored."""

    backup_id: str
    repository: Path
    digest: str


@dataclass(frozen=True)
class Started:
    """A backup that was asked for, with the raw disk's content at that time."""

    job_id: str
    backup_id: str
    repository: Path
    digest: str


class BaseRig(abc.ABC):
    """Hub, workers and a VM called `guest`. Workers are found by their files, whoever started them.

    What the VM is, and where, is a subclass's: it calls `prepare` and `register` when it begins.
    """

    hub: Hub

    def prepare(self, folder: Path) -> None:
        """Lay out the folder; nothing runs yet."""
        self.folder = folder
        self.stops = folder / "stops"
        self.stops.mkdir()
        self.history: list[Kept] = []
        self._hub_stack = ExitStack()
        self._spares: list[subprocess.Popen[bytes]] = []
        path = (str(ROOT / "tests/kill/hook"), str(ROOT), os.environ.get("PYTHONPATH", ""))
        self._environment = {
            "SENDENSE_LEASE_SECONDS": str(LEASE_SECONDS),
            "SENDENSE_TEST_STOPS": str(self.stops),
            "PYTHONPATH": os.pathsep.join(part for part in path if part),
        }
        self.repositories: dict[Path, str] = {}
        self.root_keys: dict[Path, bytes] = {}

    def register(self, **source: Any) -> None:
        """Start the hub, make the source known, discover it, and make a repository."""
        self.hub = self._start_hub()
        self.source_id = str(self.hub.post("/sources", {"name": "q", **source})["id"])
        self.hub.wait_for_job(self.hub.post(f"/sources/{self.source_id}/discover", {})["job_id"])
        self.repository = self.add_repository("main")

    @abc.abstractmethod
    def write(self, *, count: int = 16) -> str:
        """Let the VM write blocks to its raw disk; return the digest of what it holds then."""

    @abc.abstractmethod
    def list_left_in_guest(self) -> list[str]:
        """Return what must not be on the platform when no job runs."""

    def close(self) -> None:
        """End everything that was started."""
        for spare in self._spares:
            with contextlib.suppress(ProcessLookupError):
                spare.kill()
            spare.wait()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.hub.process_id, signal.SIGCONT)
        self._hub_stack.close()
        for pid in self.list_workers().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # Parts.

    def add_repository(self, name: str) -> Path:
        """Make another repository."""
        path = self.folder / "hub" / "data" / "repositories" / name
        config = {"path": str(path)}
        made = self.hub.post("/repositories", {"name": name, "type": "local", "config": config})
        self.repositories[path] = str(made["id"])
        self.root_keys[path] = recovery.parse(made["recovery_key"])
        return path

    def _start_hub(self) -> Hub:
        hub = Hub(self.folder / "hub", self.folder, environment=self._environment)
        self._hub_stack.enter_context(hub)
        hub.wait_until_ready()
        return hub

    def kill_hub(self) -> None:
        """Kill the hub's own process; its worker goes on."""
        os.kill(self.hub.process_id, signal.SIGKILL)
        self._hub_stack.close()

    def stop_hub(self) -> None:
        """Stop the hub in order, and its worker with it."""
        self._hub_stack.close()

    def restart_hub(self) -> None:
        """Start a hub on the data of the one that was killed."""
        self.hub = self._start_hub()

    def list_workers(self) -> dict[str, int]:
        """Return the ids of all workers that exist, with their processes."""
        found = {}
        for path in (self.folder / "hub/data/locks").glob(f"*{presence.SUFFIX}"):
            held, mark = presence.look(path)
            if held is Presence.HELD and mark is not None:
                found[path.stem] = mark.pid
        return found

    def start_worker(self) -> None:
        """Start a worker beside the hub's own, as an administrator may."""
        command = [sys.executable, "-m", "sendense.cli.main", "worker"]
        told = {
            "SENDENSE_DATA_DIR": str(self.folder / "hub" / "data"),
            "SENDENSE_ALLOWED_DIRS": str(self.folder),
        }
        with (self.folder / "workers.log").open("ab") as log:
            self._spares.append(
                subprocess.Popen(
                    command,
                    env={**os.environ, **self._environment, **told},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )

    def replace_worker(self, pid: int) -> None:
        """Start another worker in the place of a spare one; the hub itself replaces its own.

        One more for each blow would soon be a dozen, who take the machine from each other.
        """
        if any(spare.pid == pid for spare in self._spares):
            self.start_worker()

    def ensure_workers(self, count: int) -> None:
        """Return once that many workers live; those missing are started."""
        self._spares = [spare for spare in self._spares if spare.poll() is None]
        for _ in range(count - len(self.list_workers())):
            self.start_worker()
        wait_for(lambda: len(self.list_workers()) >= count, f"{count} workers")

    def find_owner(self, job_id: str) -> int:
        """Return the process that runs a job, or that may be about to."""
        executor, workers = self._executor_of(job_id), self.list_workers()
        return workers.get(executor) or min(workers.values())

    def has_owner(self, job_id: str) -> bool:
        """Whether the worker that runs a job exists, or the job has ended."""
        return self._executor_of(job_id) in self.list_workers() or self.is_over(job_id)

    def _executor_of(self, job_id: str) -> str:
        with contextlib.closing(self._open_engine()) as engine:
            query = "select executor_id from workflow_status where workflow_uuid = ?"
            row = engine.execute(query, (job_id,)).fetchone()
        return str(row[0]) if row else ""

    def _open_engine(self) -> sqlite3.Connection:
        path = self.folder / "hub/data/engine.sqlite"
        return sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)

    def drop_spares(self) -> None:
        """Have no worker but the hub's own."""
        for spare in self._spares:
            spare.terminate()
        for spare in self._spares:
            spare.wait(WAIT_SECONDS_MAX)
        self._spares.clear()
        wait_for(lambda: len(self.list_workers()) == 1, "the hub's own worker")

    def heal(self) -> None:
        """Bring back what a test that failed left dead; and have a backup to build on."""
        if not is_running(self.hub.process_id):
            self.restart_hub()
        if not self.history:
            self.back_up()

    # Work.

    def ask(self, digest: str, repository: Path | None = None, **more: Any) -> Started:
        """Ask for a backup of a raw disk that holds `digest` and does not change."""
        place = repository or self.repository
        body = {"vm_name": "guest", "repository_id": self.repositories[place], **more}
        answer = self.hub.post("/backups", body)
        return Started(answer["job_id"], answer["backup_id"], place, digest)

    def wait_for_end(self, started: Started) -> dict[str, Any]:
        """Return a job that is over, in the engine too."""
        wait_for(lambda: self.is_over(started.job_id), f"the end of {started.job_id}")
        return dict(self.hub.get(f"/jobs/{started.job_id}"))

    def delete(self, path: str) -> int:
        """DELETE a path below /api/v1 and return the status."""
        return httpx.delete(f"{self.hub.address}/api/v1{path}", trust_env=False).status_code

    def back_up(self, repository: Path | None = None, **more: Any) -> dict[str, Any]:
        """Write something and back it up undisturbed; return the backup."""
        started = self.ask(self.write(), repository, **more)
        self.hub.wait_for_job(started.job_id)
        return self.settle(started)

    def stop_at(self, when: str, step: str) -> None:
        """Let the next worker stop on one side of a step."""
        (self.stops / f"stop-{when}-{step}").touch()

    def wait_until_held(self, job_id: str) -> None:
        """Return when a worker holds where `stop_at` said. Raises where the job ends before."""
        held = self.stops / "held"
        wait_for(lambda: held.exists() or self.is_over(job_id), f"{job_id} at the stop")
        assert held.exists(), (self.hub.get(f"/jobs/{job_id}"), self.journal_of(job_id))

    def release(self) -> None:
        """Let the worker that holds go on."""
        (self.stops / "held").unlink(missing_ok=True)

    @contextlib.contextmanager
    def slow_reads(self, seconds: float) -> Iterator[None]:
        """Make each read from a source take longer within the block."""
        (self.stops / "slow").write_text(str(seconds))
        try:
            yield
        finally:
            (self.stops / "slow").unlink()

    def journal_of(self, job_id: str) -> list[stops.Entry]:
        """Return what was done for a job, its children and clean-ups."""
        return [one for one in stops.read_journal(self.stops) if job_id in one.workflow_id]

    # What must hold.

    def wait_for_successor(self, job_id: str, pid: int, since: float) -> None:
        """Assert that another process goes on with a job in time, or that the job is over."""

        def goes_on() -> bool:
            others = [one for one in self.journal_of(job_id) if one.pid != pid and one.at > since]
            return bool(others) or self.is_over(job_id)

        wait_for(goes_on, f"somebody else on {job_id}", since + RESUME_SECONDS_MAX - time.time())

    def is_over(self, job_id: str) -> bool:
        """Whether a job has ended and the engine has nothing of it left to do."""
        with contextlib.closing(self._open_engine()) as engine:
            query = "select count(*) from workflow_status where workflow_uuid like ? and status in"
            (left,) = engine.execute(
                f"{query} ('PENDING', 'ENQUEUED', 'DELAYED')", (f"%{job_id}%",)
            ).fetchone()
        job = self.hub.get(f"/jobs/{job_id}")
        return left == 0 and job["status"] in {"completed", "failed", "cancelled"}

    def settle(self, started: Started, *, repeats: int = 0, kills: int = 0) -> dict[str, Any]:
        """Wait for a job's end, assert that nothing is left behind, and return its backup.

        Args:
            started: the job.
            repeats: how many steps may have been done twice, since their worker was killed.
            kills: how many workers were killed; as many as `repeats` unless it is more.
        """
        wait_for(lambda: self.is_over(started.job_id), f"the end of {started.job_id}")
        self.assert_run_once(started, repeats, max(kills, repeats))
        self.assert_nothing_left()
        backup = dict(self.hub.get(f"/backups/{started.backup_id}"))
        if backup["status"] == "completed":
            self.history.append(Kept(started.backup_id, started.repository, started.digest))
            self.assert_restores(self.history[-1])
        else:
            job = self.hub.get(f"/jobs/{started.job_id}")
            assert job["error"]["kind"], job
            assert job["error"]["message"], job
        return backup

    def assert_run_once(self, started: Started, repeats: int, kills: int) -> None:
        """Assert one commit, one outcome, one completed row, and no step done twice."""
        job = self.hub.get(f"/jobs/{started.job_id}")
        backup = self.hub.get(f"/backups/{started.backup_id}")
        assert job["status"] == backup["status"]
        with self.open_repository(started.repository) as repository:
            manifests = [one for one in repository.list_backups() if one.job_id == started.job_id]
        assert [one.backup_id for one in manifests] == (
            [started.backup_id] if job["status"] == "completed" else []
        ), (job, manifests)
        done = [one for one in self.journal_of(started.job_id) if one.when == "after"]
        again = {place: count - 1 for place, count in Counter(map(_place, done)).items()}
        # A transfer runs beside other steps, and each kill may come between its end and the note.
        beside = {place: again.pop(place) for place in [*again] if place[0].startswith("transfer")}
        assert sum(again.values()) <= repeats, done
        assert max(beside.values(), default=0) <= kills, done
        waited = min((one.at for one in done if one.step == "wait_transfers"), default=None)
        if kills and waited is not None:  # by then all of them are noted
            assert not [one for one in done if one.step.startswith("transfer") and one.at > waited]

    def assert_restores(self, kept: Kept) -> None:
        """Assert that a backup's raw disk reads back bit for bit."""
        with (
            self.open_repository(kept.repository) as repository,
            repository.open_disk_reader(kept.backup_id, RAW_KEY) as reader,
        ):
            disk = bytearray(reader.size_bytes)
            for offset, data in reader.read_chunks():
                disk[offset : offset + len(data)] = data
        assert hashlib.sha256(disk[:STILL_BYTES]).hexdigest() == kept.digest, kept

    def open_repository(self, path: Path) -> Repository:
        """Open a repository past the hub; close it."""
        return Repository.open(
            LocalStorage(path),
            root_key=self.root_keys[path],
            clock=SystemClock(),
            ids=SystemIds(),
        )

    def assert_repositories_whole(self) -> None:
        """Assert that a check which reads everything finds no problem."""
        for path in self.repositories:
            with self.open_repository(path) as repository:
                report = check.check(repository, read_data=True)
            assert report.error_count == 0, report.problems

    def assert_nothing_left(self) -> None:
        """Assert what jobs.md calls "nothing left behind", and that the guest runs, thawed."""
        left: list[str] = []

        def is_clean() -> bool:
            left[:] = [*self.list_left_in_guest(), *self.list_left_in_folders()]
            return not left

        with contextlib.suppress(NeverHappened):
            wait_for(is_clean, "nothing left", 2 * LEASE_SECONDS)
        assert left == []

    def list_left_in_folders(self) -> list[str]:
        """Return scratch files and sessions without an outcome.

        What a writer was killed in the middle of (`.tmp-`) counts as absent, says docs/format.md,
        and is left to the collection of garbage: which of two parallel transfers a kill hits in
        its write is chance.
        """
        data = self.folder / "hub" / "data"
        left = [str(path) for path in (data / "scratch").rglob("*") if not path.is_dir()]
        for place in self.repositories:
            ended = {path.name for path in (place / "outcomes").rglob("*")}
            sessions = {path.parent.name for path in (place / "sessions").glob("*/registration*")}
            left += [f"session {name}" for name in sorted(sessions - ended)]
        return left


class Rig(BaseRig):
    """A real guest, which writes all the time."""

    def __init__(self, folder: Path, image: GuestImage, **disk_formats: str) -> None:
        self.prepare(folder)
        self.guest = self._create_guest(image, disk_formats.get("raw", "qcow2"))
        self._offset = 0
        self.start_guest()
        vm = {
            "name": self.guest.name,
            "qmp": str(self.guest.qmp_socket),
            "agent": str(self.guest.agent_socket),
        }
        self.register(type="qemu", config={"vms": [vm]})

    def close(self) -> None:
        """End everything that was started."""
        super().close()
        self.guest.kill()

    def heal(self) -> None:
        """Bring back what a test that failed left dead; and have a backup to build on."""
        if not self.guest.is_running:
            self.start_guest()
        super().heal()

    def _create_guest(self, image: GuestImage, raw_format: str) -> Guest:
        folder = self.folder / "guest"
        folder.mkdir()
        disks.make_empty(folder / "0.img", RAW_BYTES, image_format=raw_format)
        disks.make_filesystem(folder / "1.img", MOUNTED_BYTES, image_format="raw")
        return Guest(
            name="guest",
            uuid=str(uuid.uuid4()),
            folder=folder,
            image=image,
            disks=[
                Disk("disk0", folder / "0.img", raw_format),
                Disk("disk1", folder / "1.img", "raw"),
            ],
            mounts=[("/dev/vdb", "/mnt/b")],
        )

    def start_guest(self) -> None:
        """Boot the guest, which then writes all the time to the end of its raw disk."""
        self.guest.start()

        def is_scribbling() -> bool:
            # A job that goes on may have the guest frozen at this moment.
            with contextlib.suppress(AgentRefused, AgentSilent):
                self.guest.spawn(SCRIBBLE)
                return True
            return False

        wait_for(is_scribbling, "a guest that takes commands")

    def write(self, *, count: int = 16) -> str:
        """Let the guest write blocks to its raw disk; return the digest of what it holds then."""
        if count:
            self.guest.shell(
                f"dd if=/dev/urandom of=/dev/vda bs=64k seek={self._offset} count={count} "
                "conv=notrunc; sync; echo $RANDOM > /mnt/b/file"
            )
            self._offset = (self._offset + 17 * count) % (STILL_BYTES // BLOCK - count)
        truth = self.guest.folder / "truth.raw"
        self.guest.pause()
        try:
            disk = self.guest.disks[0]
            disks.copy_truth(disk.path, truth, image_format=disk.image_format)
        finally:
            self.guest.resume()
        return digest_of(truth)

    def list_left_in_guest(self) -> list[str]:
        """Return what must not be inside QEMU when no job runs."""
        execute = self.guest.monitor.execute
        nodes = execute("query-named-block-nodes", flat=True)
        left = [node["node-name"] for node in nodes if node["node-name"].startswith("sendense")]
        left += [export["id"] for export in execute("query-block-exports")]
        marks = execute("qom-list", path="/objects")
        left += [mark["name"] for mark in marks if mark["name"].startswith("sendense")]
        wanted = self._list_live_bitmaps()
        for node in nodes:
            for bitmap in node.get("dirty-bitmaps", []):
                name = bitmap.get("name", "")
                if name.startswith("sendense") and (node["node-name"], name) not in wanted:
                    left.append(f"bitmap {name}")
        if not execute("query-status")["running"]:
            left.append("the guest is paused")
        return left

    def _list_live_bitmaps(self) -> set[tuple[str, str]]:
        """Return the bitmaps that the newest backup of each lineage names, with their nodes."""
        newest: dict[tuple[Path, int], str] = {}
        for path in self.repositories:
            with self.open_repository(path) as repository:
                for manifest in repository.list_backups():
                    for disk in manifest.disks:
                        newest[path, disk.key] = str(disk.change_id)
        return {
            (f"disk{key - RAW_KEY}", change_id.rpartition(":")[2])
            for (_, key), change_id in newest.items()
        }


def digest_of(path: Path) -> str:
    """Return the SHA-256 of what the raw disk in a file holds, without what is scribbled."""
    with path.open("rb") as file:
        return hashlib.sha256(file.read(STILL_BYTES)).hexdigest()


class NeverHappened(AssertionError):
    """What was waited for did not happen in time."""


def wait_for(
    condition: Callable[[], bool], what: str, seconds_max: float = WAIT_SECONDS_MAX
) -> None:
    """Return when a condition holds. Raises NeverHappened."""
    deadline = time.monotonic() + seconds_max
    while not condition():
        if time.monotonic() > deadline:
            raise NeverHappened(f"{what}: not within {seconds_max:.1f} s")
        threading.Event().wait(POLL_SECONDS)


def is_running(pid: int) -> bool:
    """Whether a process exists and is not a corpse."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def _place(one: stops.Entry) -> tuple[str, str]:
    return one.step, one.workflow_id
