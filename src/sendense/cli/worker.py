"""`sendense worker`: a process that runs jobs."""

import logging
import os
import signal
import sys
import threading
from typing import Annotated

import typer

from sendense import app
from sendense.cli import logs, options
from sendense.cli.command import Session, reporting
from sendense.cli.options import AllowDirs, DataDir
from sendense.cli.output import Output
from sendense.core.ids import SystemIds, new_id
from sendense.workflows.worker import parent_is_gone


def worker(
    data_dir: DataDir = None,
    allow_dir: AllowDirs = None,
    parent: Annotated[
        int | None,
        typer.Option(hidden=True, help="Process id of the hub that started this worker."),
    ] = None,
) -> None:
    """Run jobs until stopped. `sendense serve` starts one by itself.

    On SIGTERM it takes no more jobs; what still runs after a few seconds is left as it is, and
    the next worker goes on with it.
    """
    with reporting(Session(Output(as_json=False))):
        settings = options.read_settings(data_dir=data_dir, allowed_dirs=allow_dir)
        logs.configure(settings.log_level)
        os.umask(options.UMASK)
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        app.create_worker(
            settings,
            worker_id=new_id("worker", SystemIds()),
            orphaned=parent_is_gone(parent) if parent is not None else lambda: False,
        ).run(stop)
    # Steps that did not end in time still have threads; nothing of theirs may be waited for.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
