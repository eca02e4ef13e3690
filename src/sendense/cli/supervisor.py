"""Keeps one worker running, and knows one that another hub left behind."""

import logging
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence

_log = logging.getLogger(__name__)

POLL_SECONDS = 0.1  # a dead worker is noticed soon; waiting costs nothing
FOUND_POLL_SECONDS = 1.0  # between two looks at a worker that is not ours
BACKOFF_SECONDS = 0.5
BACKOFF_SECONDS_MAX = 30.0
HEALTHY_SECONDS = 60.0  # a worker that ran this long did not die of its start
# Longer than a worker gives its running steps; see workflows/worker.py.
STOP_SECONDS_MAX = 20.0


class Supervisor:
    """Starts a worker, starts it again with growing pauses when it dies, and stops it.

    While a worker lives on this machine that an earlier hub started, none is started beside it: it
    goes on with what it does, takes new jobs as well, and ends by itself when it has nothing to do.
    `count_workers` counts those of this machine.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        count_workers: Callable[[], int],
    ) -> None:
        self._command = command
        self._environment = environment
        self._count_workers = count_workers
        self._stopping = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def wait_alive(self, seconds_max: float) -> bool:
        """Wait until a worker holds a lease; False where none does in time."""
        deadline = time.monotonic() + seconds_max
        while self._count_workers() == 0:
            if time.monotonic() > deadline or self._stopping.wait(POLL_SECONDS):
                return False
        return True

    def stop(self) -> None:
        """Ask the worker to stop and wait for it; end it where it takes too long."""
        self._stopping.set()
        self._thread.join()
        child = self._child
        if child is None:
            return
        child.terminate()
        try:
            child.wait(timeout=STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            _log.warning("the worker did not stop and is ended; its jobs are resumed later")
            child.kill()
            child.wait()

    def _run(self) -> None:
        backoff = BACKOFF_SECONDS
        while not self._stopping.is_set():
            if self._count_workers() > 0:
                self._stopping.wait(FOUND_POLL_SECONDS)
                continue
            started = time.monotonic()
            self._child = subprocess.Popen(
                self._command, env=dict(self._environment), stdin=subprocess.DEVNULL
            )
            if not self._wait_for(self._child):
                return
            status = self._child.returncode
            self._child = None
            if time.monotonic() - started > HEALTHY_SECONDS:
                backoff = BACKOFF_SECONDS
            _log.warning("the worker ended with status %d; a new one in %.1f s", status, backoff)
            self._stopping.wait(backoff)
            backoff = min(backoff * 2, BACKOFF_SECONDS_MAX)

    def _wait_for(self, child: subprocess.Popen[bytes]) -> bool:
        """Wait until the child ends; False where the supervisor is to stop before."""
        while child.poll() is None:
            if self._stopping.wait(POLL_SECONDS):
                return False
        return True
