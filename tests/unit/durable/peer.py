"""A process that holds a worker's file, to be frozen and killed: `FOLDER ID WAKE_SECONDS`."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from sendense.durable import process
from sendense.durable.presence import Place

ROOT = Path(__file__).parent.parent.parent.parent


def main() -> None:
    folder, worker_id, wake_seconds = sys.argv[1:]
    place = Place(Path(folder), worker_id)
    place.take()
    place.write(
        process.mark_self(thread=threading.get_native_id(), wake_seconds=float(wake_seconds))
    )
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not threading.Event().wait(float(wake_seconds)):
        pass


@contextmanager
def run(
    folder: Path, worker_id: str, *, wake_seconds: float = 0.02
) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.unit.durable.peer", str(folder), worker_id]
    with subprocess.Popen(
        [*command, str(wake_seconds)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "ready\n"
            yield running
        finally:
            running.kill()


def freeze(running: subprocess.Popen[str]) -> None:
    """Stop a process, and return once it is."""
    running.send_signal(signal.SIGSTOP)
    while psutil.Process(running.pid).status() != psutil.STATUS_STOPPED:
        threading.Event().wait(0.01)  # ended by the test's time limit


if __name__ == "__main__":
    main()
