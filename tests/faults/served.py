"""The product as people run it, `sendense serve` and its worker, on a disk that can fail."""

import contextlib
import hashlib
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

SECONDS_MAX = 90.0
POLL_SECONDS = 0.05
LEASE_SECONDS = "4"
IMAGE_BYTES = 24 * 1024 * 1024
SHIM = Path(__file__).with_name("disk.c")
Answer = dict[str, Any]


@dataclass
class Served:
    """A running hub and its worker.

    Attributes:
        api: a client of its /api/v1.
        images: a folder that sources may name.
    """

    process: subprocess.Popen[str]
    api: httpx.Client
    folder: Path
    repository_id: str = ""

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    @property
    def images(self) -> Path:
        return self.folder / "images"

    def add_repository(self, name: str, path: Path) -> str:
        body = {"name": name, "type": "local", "config": {"path": str(path)}}
        self.repository_id = str(self._ask("POST", "/repositories", body)["id"])
        return self.repository_id

    def add_vm(self, name: str, *, seed: int) -> Path:
        """Register and discover a VM with one disk that nothing deduplicates."""
        self.images.mkdir(exist_ok=True)
        image = self.images / f"{name}.raw"
        self.write(image, seed=seed)
        config = {"vms": [{"name": name, "disks": [str(image)]}]}
        body = {"name": f"source of {name}", "type": "image", "config": config}
        source = self._ask("POST", "/sources", body)["id"]
        job = self.wait(self._ask("POST", f"/sources/{source}/discover", {})["job_id"])
        assert job["status"] == "completed", job
        return image

    def write(self, image: Path, *, seed: int) -> str:
        """Write what nothing deduplicates on a disk and return its digest."""
        image.write_bytes(random.Random(seed).randbytes(IMAGE_BYTES))
        return digest(image)

    def start_backup(self, vm: str) -> Answer:
        body = {"vm_name": vm, "repository_id": self.repository_id, "backup_type": "full"}
        return self._ask("POST", "/backups", body)

    def back_up(self, vm: str) -> Answer:
        started = self.start_backup(vm)
        job = self.wait(started["job_id"])
        assert job["status"] == "completed", job
        return started

    def check_restores(self, backup_id: str, wanted: str) -> None:
        """Restore a backup and compare what comes out with a digest."""
        target = self.data_dir / "restores" / f"{backup_id}-{time.monotonic_ns()}.raw"
        where = {"type": "file", "path": str(target), "format": "raw"}
        body = {"backup_id": backup_id, "disk_id": 0, "target": where}
        job = self.wait(self._ask("POST", "/restores", body)["job_id"])
        assert job["status"] == "completed", job
        assert digest(self.inside(target)) == wanted
        self.inside(target).unlink()

    def inside(self, path: Path) -> Path:
        """Return a path of the server's mounts as this process reaches it."""
        return Path(f"/proc/{self.process.pid}/root{path}")

    def job(self, job_id: str) -> Answer:
        return self._ask("GET", f"/jobs/{job_id}")

    def backup(self, backup_id: str) -> Answer:
        return self._ask("GET", f"/backups/{backup_id}")

    def wait(self, job_id: str) -> Answer:
        """Wait for a job's end; a hub that does not answer for a while may answer later."""
        ended = {"completed", "failed", "cancelled"}
        job: Answer = {}

        def is_over() -> bool:
            nonlocal job
            with contextlib.suppress(httpx.HTTPError):
                answer = self.api.get(f"/jobs/{job_id}")
                job = answer.json()
                return answer.status_code == 200 and job["status"] in ended
            return False

        until(is_over, lambda: job)
        return job

    def _ask(self, method: str, path: str, body: Answer | None = None) -> Answer:
        answer = self.api.request(method, path, json=body)
        assert answer.is_success, answer.text
        found: Answer = answer.json()
        return found


def until(condition: Any, tell: Any = lambda: "never", *, seconds: float = SECONDS_MAX) -> None:
    """Wait until something holds. The machine may be slow: the deadline is far away."""
    waiting = threading.Event()
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen: {tell()}"
        waiting.wait(POLL_SECONDS)


@contextlib.contextmanager
def serve(
    folder: Path, *, before: Sequence[str] = (), environment: dict[str, str] | None = None
) -> Iterator[Served]:
    """Serve a data directory on a free port until the block ends.

    Args:
        folder: where data and images are.
        before: a program that runs the server's command, in mounts of its own perhaps.
        environment: what the server finds beside its settings.
    """
    data = folder / "data"
    command = [sys.executable, "-m", "sendense.cli.main", "serve"]
    command += ["--data-dir", str(data), "--port", "0", "--no-auth"]
    found = {name: value for name, value in os.environ.items() if not name.startswith("SENDENSE_")}
    found |= {
        "SENDENSE_LEASE_SECONDS": LEASE_SECONDS,
        "SENDENSE_ALLOWED_DIRS": str(folder),
        **(environment or {}),
    }
    with (
        (folder / "serve.log").open("a") as log,
        subprocess.Popen(
            [*before, *command], stdout=subprocess.PIPE, stderr=log, text=True, env=found
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("Sendense listens on"), (folder / "serve.log").read_text()
            with httpx.Client(base_url=line.split()[-1], timeout=60) as api:
                yield Served(process, api, folder)
        finally:
            _end(process, data)


def _end(process: subprocess.Popen[str], data: Path) -> None:
    process.kill()
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if one.environ().get("SENDENSE_DATA_DIR") == str(data):
                one.kill()


def digest(path: Path) -> str:
    """Return the hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build_shim(folder: Path) -> Path | None:
    """Compile the failing disk, or return None where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    library = folder / "disk.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SHIM), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, timeout=SECONDS_MAX)
    return library
