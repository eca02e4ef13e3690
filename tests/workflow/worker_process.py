"""Runs a worker of a test's world in a process of its own, to be killed: `FOLDER ID BYTES/S`."""

import os
import signal
import sys
import threading
from pathlib import Path

from tests.workflow import world as worlds

LEASE_SECONDS = 2.0


def main() -> None:
    folder, worker_id, bytes_per_second = sys.argv[1:]
    world = worlds.build(Path(folder), worker_id=worker_id, lease_seconds=LEASE_SECONDS)
    world.lab.bytes_per_second = int(bytes_per_second) or None
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    world.worker.run(stop)
    os._exit(0)


if __name__ == "__main__":
    main()
