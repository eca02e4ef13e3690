"""The hub of the demonstration: `sendense serve` as a child, and the API as any client uses it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from sendense.core.errors import SendenseError

START_SECONDS_MAX = 60.0  # migrations and two Python processes on a busy machine
STOP_SECONDS_MAX = 20.0
JOB_SECONDS_MAX = 120.0
REQUEST_SECONDS_MAX = 30.0
POLL_SECONDS = 0.1
LOG_SHOWN_BYTES = 3000


class DemoFailed(SendenseError):
    """Something that the demonstration promises did not hold."""

    default_kind = "demo-failed"


class Hub:
    """A running hub. Leaving the context stops it, unless `leave_running` was called."""

    def __init__(
        self, folder: Path, allowed: Path, *, environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.port = _find_port()
        self._log_path = folder / "hub.log"
        self._leave = False
        folder.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sendense.cli.main", "serve", "--no-auth",
                 "--data-dir", str(folder / "data"), "--host", "127.0.0.1",
                 "--port", str(self.port), "--allow-dir", str(allowed)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **(environment or {})},
                start_new_session=True,  # Ctrl-C is for us; we stop the hub in order
            )  # fmt: skip
        self._http = httpx.Client(
            base_url=f"{self.address}/api/v1", timeout=REQUEST_SECONDS_MAX, trust_env=False
        )

    @property
    def address(self) -> str:
        """Where the hub answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def process_id(self) -> int:
        """The hub's process."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()
        if not self._leave:
            self.stop()

    def leave_running(self) -> None:
        """Do not stop the hub at the end."""
        self._leave = True

    def stop(self) -> None:
        """Ask the hub to end, and end it where it does not."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                # The session is ours: hub and worker, nothing else.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()

    def wait_until_ready(self) -> dict[str, Any]:
        """Return the hub's health once it is well."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                answer = self._http.get("/health")
                if answer.status_code == httpx.codes.OK:
                    return dict(answer.json())
            time.sleep(POLL_SECONDS)
        raise DemoFailed(f"the hub did not start; its log ends:\n{self.read_log()}")

    def read_log(self) -> str:
        """Return the end of the hub's log."""
        return self._log_path.read_text(errors="replace")[-LOG_SHOWN_BYTES:]

    def get(self, path: str, **query: str) -> Any:
        """GET a path below /api/v1."""
        return self._ask("GET", path, params=query)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """POST a body to a path below /api/v1."""
        return self._ask("POST", path, json=body)

    def wait_for_step(self, job_id: str, step: str) -> None:
        """Return when a job has done a step. Raises DemoFailed where it ends before."""
        deadline = time.monotonic() + JOB_SECONDS_MAX
        while time.monotonic() < deadline:
            job = self.get(f"/jobs/{job_id}")
            if any(one["name"] == step and one["status"] == "completed" for one in job["steps"]):
                return
            if job["status"] in {"failed", "cancelled"}:
                break
            time.sleep(POLL_SECONDS)
        raise self._explain(job_id, f"did not reach {step}")

    def wait_for_job(self, job_id: str) -> dict[str, Any]:
        """Return a job once it is completed. Raises DemoFailed where it ends otherwise."""
        job = self.wait_for_end(job_id)
        if job["status"] != "completed":
            raise self._explain(job_id, "did not complete")
        return job

    def wait_for_end(self, job_id: str) -> dict[str, Any]:
        """Return a job once it is over, however it ended."""
        deadline = time.monotonic() + JOB_SECONDS_MAX
        while time.monotonic() < deadline:
            job = self.get(f"/jobs/{job_id}")
            if job["status"] in {"completed", "failed", "cancelled"}:
                return dict(job)
            time.sleep(POLL_SECONDS)
        raise self._explain(job_id, f"did not end in {JOB_SECONDS_MAX:g} s")

    def _explain(self, job_id: str, what: str) -> DemoFailed:
        job = self.get(f"/jobs/{job_id}")
        reason = (job.get("error") or {}).get("message") or job.get("error")
        return DemoFailed(
            f"job {job_id} {what}: {job['status']} in {job['current_phase']}, {reason}"
        )

    def _ask(self, method: str, path: str, **more: Any) -> Any:
        answer = self._http.request(method, path, **more)
        if answer.is_success:
            return answer.json()
        raise DemoFailed(f"{method} {path} answered {answer.status_code}: {answer.text[:500]}")


def _find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
