"""What `sendense worker` runs; apart from the command, since it brings the whole server."""

import logging
import os
import signal
import sys
import threading

from sendense import app
from sendense.cli import effective_settings, logs
from sendense.core.ids import SystemIds, new_id
from sendense.settings import Settings
from sendense.workflows.worker import parent_is_gone

_log = logging.getLogger(__name__)

EXIT_BROKEN = 70  # sysexits.h: EX_SOFTWARE


def run(settings: Settings, *, parent: int | None) -> None:
    """Run jobs until stopped; the process must end right after this returns."""
    worker_id = new_id("worker", SystemIds())
    logs.configure(settings, worker_id=worker_id)
    os.umask(effective_settings.UMASK)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with app.create_reaper(settings).running(lease_seconds=settings.lease_seconds):
        worker = app.create_worker(
            settings,
            worker_id=worker_id,
            orphaned=parent_is_gone(parent) if parent is not None else lambda: False,
        )
        try:
            worker.run(stop)
        except Exception:  # noqa: BLE001 - whatever it is, it is logged and ends the process
            # The engine's threads would keep a process alive that beats and runs nothing.
            _log.exception("the worker cannot go on")
            leave(EXIT_BROKEN)


def leave(status: int = 0) -> None:
    """End the process: steps that did not end in time have threads, which nobody waits for."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
