"""Runs a worker of a test's world in a process of its own, to be killed: `FOLDER SETTING`."""

import json
import os
import signal
import sys
import threading
from pathlib import Path

import sqlalchemy as sa

from sendense.db.tables import JobRow
from sendense.durable.reaper import Reaper
from tests.workflow import world as worlds
from tests.workflow.world import Setting, World


def main() -> None:
    folder, setting = Path(sys.argv[1]), Setting(**json.loads(sys.argv[2]))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    locks = folder / "data" / "locks" / setting.machine
    with Reaper(locks).running(lease_seconds=setting.lease_seconds):
        world = worlds.build(folder, setting)
        world.lab.bytes_per_second = setting.bytes_per_second or None
        world.spy.patient = True
        if setting.freeze_in:
            world.spy.calls[setting.freeze_in] = lambda: freeze(world)
        launch = world.worker.engine.launch

        def launch_and_tell() -> None:
            launch()
            worlds.note(folder / "events", setting.worker_id, "ready")

        world.worker.engine.launch = launch_and_tell  # type: ignore[method-assign] # not replaced
        world.worker.run(stop)
    os._exit(0)


def freeze(world: World) -> None:
    """Stand still with the catalog's write lock in hand."""
    with world.catalog.write() as session:
        session.execute(sa.update(JobRow).values(priority=JobRow.priority))
        worlds.note(world.settings.data_dir.parent / "events", "frozen")
        # To this thread: the main one could be slow to stop, and this one commit meanwhile.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


if __name__ == "__main__":
    main()
