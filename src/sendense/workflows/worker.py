"""A worker: runs jobs until it is told to stop, or until nobody needs it any more."""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy.exc import SQLAlchemyError

from sendense.core.errors import SendenseError
from sendense.db.catalog import Catalog
from sendense.durable.client import EngineClient, WorkflowStatus
from sendense.durable.engine import Engine
from sendense.durable.lease import Lease
from sendense.workflows.context import Context
from sendense.workflows.housekeeping import Housekeeping

_log = logging.getLogger(__name__)

STOP_SECONDS = 5  # what a running step gets to end by itself; what lasts longer is resumed later
SWEEPS_PER_LEASE = 4
SWEEP_SECONDS_MAX = 5.0
# Between taking a workflow from its queue and running it there is a moment; not half a lease.
ORPHAN_SHARE = 0.5


@dataclass(slots=True)
class Worker:
    """Everything a worker process needs, not yet started.

    Attributes:
        lease: written before the engine starts.
        orphaned: whether the hub that started this worker is gone; it then finishes what it does,
            and ends.
    """

    catalog: Catalog
    client: EngineClient
    lease: Lease
    engine: Engine[Context]
    housekeeping: Housekeeping
    orphaned: Callable[[], bool]
    _missing: dict[str, float] = field(default_factory=dict, init=False)

    def run(self, stop: threading.Event) -> None:
        """Run jobs until `stop` is set or there is no need any more; then end cleanly.

        Jobs that still run after a short wait stay as they are; the next worker goes on with them.
        The process must end right after this returns: their threads may still be running.
        """
        self.lease.acquire()
        self.engine.launch()
        _log.info("worker %s runs", self.lease.worker_id)
        while not stop.wait(self._sweep_seconds()):
            self._keep_house()
            if self.orphaned() and self._is_idle():
                _log.info("worker %s has no hub and nothing to do", self.lease.worker_id)
                break
        self.engine.stop(wait_seconds=STOP_SECONDS if self._is_busy() else 0)
        self.client.close()
        self.lease.release()
        self.catalog.close()

    def _sweep_seconds(self) -> float:
        return min(self.lease.lease_seconds / SWEEPS_PER_LEASE, SWEEP_SECONDS_MAX)

    def _keep_house(self) -> None:
        try:
            self.housekeeping.run()
            self._take_back()
        except (SendenseError, SQLAlchemyError, OSError) as error:
            # A full disk under the lock files is an OSError: the worker must outlive that too.
            _log.warning("housekeeping failed and is tried again: %s", error)

    def _take_back(self) -> None:
        """Queue again what is this worker's in the engine's tables, but runs here no more.

        Where its database fails for a moment, the engine drops a workflow whose step or result it
        cannot write down. The row then names a worker that lives: no sweep would ever take it.
        """
        known = self.client.list_workflows(statuses=[WorkflowStatus.RUNNING])
        # What ends in between is missing this once, and known no more at the next look.
        running = self.engine.list_running()
        mine = {one.workflow_id for one in known if one.executor_id == self.lease.worker_id}
        now = time.monotonic()
        self._missing = {name: self._missing.get(name, now) for name in mine - running}
        for workflow_id, since in self._missing.items():
            if now - since > self.lease.lease_seconds * ORPHAN_SHARE:
                _log.warning("%s was dropped by the engine and is queued again", workflow_id)
                self.client.take_over(workflow_id, executor_id=self.lease.worker_id)

    def _is_busy(self) -> bool:
        """Whether this worker runs anything, or may."""
        try:
            active = self.client.list_active()
        except SendenseError:
            return True
        return any(one.executor_id == self.lease.worker_id for one in active)

    def _is_idle(self) -> bool:
        try:
            return not self.client.list_active()
        except SendenseError:
            return False


def parent_is_gone(parent_pid: int) -> Callable[[], bool]:
    """Return what tells whether the process that started this one has ended."""
    return lambda: os.getppid() != parent_pid
