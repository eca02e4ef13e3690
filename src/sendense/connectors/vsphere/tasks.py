"""Starts tasks of vCenter's and waits for their ends."""

from collections.abc import Callable, Mapping
from typing import Any

from pyVmomi import vim

from sendense.connectors.vsphere import failure, properties
from sendense.connectors.vsphere.session import Login, Session, moref_of
from sendense.core.clock import Clock
from sendense.core.errors import Unavailable

STATE, ERROR, RESULT = "info.state", "info.error", "info.result"
_POLL_SECONDS = (0.05, 2.0)  # the first pause, which doubles up to the last
# Another snapshot, a move or a backup by somebody else; longer is worth an error.
BUSY_SECONDS_MAX = 600.0
BUSY_PAUSE_SECONDS = 5.0


def run(
    session: Session,
    doing: str,
    start: Callable[[Login], Any],
    *,
    seconds_max: float,
    clock: Clock,
) -> Any:
    """Start a task and return its result; where another one is in the way, wait for its end.

    Raises what `wait` does, and Unavailable, kind `vsphere-busy`.

    Args:
        session: where.
        doing: what the task does, for messages.
        start: an action that returns the task.
        seconds_max: for the task itself.
        clock: to wait by.
    """
    deadline = clock.monotonic() + BUSY_SECONDS_MAX
    while True:
        try:
            moref = session.run(doing, lambda login: moref_of(start(login)))
            return wait(session, moref, doing=doing, seconds_max=seconds_max, clock=clock)
        except Unavailable as error:
            if error.kind != "vsphere-busy" or clock.monotonic() >= deadline:
                raise
        clock.sleep(BUSY_PAUSE_SECONDS)


def wait(session: Session, moref: str, *, doing: str, seconds_max: float, clock: Clock) -> Any:
    """Return a task's result.

    Raises what its fault means, and Unavailable, kind `vsphere-task-slow`, where it did not end in
    time: it goes on in vCenter; kind `vsphere-task-lost`, where vCenter forgot how it ended.
    """
    deadline = clock.monotonic() + seconds_max
    pause, slowest = _POLL_SECONDS
    while True:
        told = _look(session, moref, doing=doing)
        state = str(told.get(STATE))
        if state == "success":
            return told.get(RESULT)
        if state == "error":
            fault = told[ERROR]
            raise failure.translate(fault, doing=doing) from fault
        if clock.monotonic() >= deadline:
            raise Unavailable(
                f"cannot {doing}: vCenter's task is {state} after {seconds_max:.0f} seconds",
                kind="vsphere-task-slow",
                hint="look at the recent tasks of vCenter, and at the load of its hosts",
            )
        clock.sleep(pause)
        pause = min(2 * pause, slowest)


def _look(session: Session, moref: str, *, doing: str) -> Mapping[str, Any]:
    found = properties.read(session, vim.Task, [moref], [STATE, ERROR, RESULT], doing=doing)
    told = found.values.get(moref, {})
    if STATE not in told:
        # Not "the VM is gone", which would end the care for its snapshots.
        why = found.missing.get(moref, "vCenter tells nothing of it")
        raise Unavailable(
            f"cannot {doing}: nobody knows how its task ended: {why}",
            kind="vsphere-task-lost",
            hint="was vCenter started anew meanwhile? see the VM's recent tasks",
        )
    return told
