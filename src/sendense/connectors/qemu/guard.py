"""Marks inside QEMU that outlive us: "paused by us" and "frozen by us".

Between pausing a guest and letting it run again we may be killed. So before either is done, a mark
is put into QEMU's own object tree, and it is taken away after it was undone. A QMP socket serves
one client at a time: whoever connects and finds a mark knows that its maker is gone, and undoes
what the mark stands for. A mark goes with the QEMU process, as does what it stands for.

A `secret` object serves as the mark because it can be added to and removed from any running QEMU
and has no effect; it holds no secret.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sendense.connectors.qemu.agent import Agent, AgentRefused, AgentSilent
from sendense.connectors.qemu.qmp import Qmp
from sendense.core.clock import Clock

PAUSED = "sendense-paused"
FROZEN = "sendense-frozen"


def is_running(qmp: Qmp) -> bool:
    """Whether the guest's CPUs run."""
    return bool(qmp.execute("query-status")["running"])


def heal(qmp: Qmp, agent: Path | None) -> list[str]:
    """Undo what a killed predecessor left; call it first on every new connection.

    Returns warnings: what was mended, or could not be yet.
    """
    marks = _list_marks(qmp)
    warnings = []
    if PAUSED in marks:
        qmp.execute("cont")
        _unmark(qmp, PAUSED)
        warnings.append("the VM had been left paused by an interrupted backup and runs again")
    if FROZEN in marks:
        warnings.append(_thaw(qmp, agent))
    return warnings


@contextlib.contextmanager
def paused(qmp: Qmp, clock: Clock, pauses: list[float]) -> Iterator[None]:
    """Pause a running guest for the body and let it run again, whatever happens.

    QEMU completes and flushes all requests when it stops, and none begins before `cont`. A guest
    that is paused already stays so. Appends the seconds to `pauses`.
    """
    if not is_running(qmp):
        yield
        return
    _mark(qmp, PAUSED)
    started = clock.monotonic()
    try:
        qmp.execute("stop")
        yield
    finally:
        # Not only on Exception: a paused guest is worse than a step that somebody has taken over.
        qmp.execute("cont")
        pauses.append(clock.monotonic() - started)
        _unmark(qmp, PAUSED)


@contextlib.contextmanager
def frozen(qmp: Qmp, agent_path: Path, warnings: list[str]) -> Iterator[int]:
    """Freeze the guest's file systems for the body, and thaw them, whatever happens.

    Yields how many were frozen. Raises AgentSilent or AgentRefused where the guest could not be
    frozen, after an attempt to thaw what may have been.
    """
    agent = Agent(agent_path)
    _mark(qmp, FROZEN)
    try:
        yield agent.freeze()
    finally:
        agent.close()
        # Also where freezing failed half-way: the agent may have frozen some, or do so later.
        thawed = _thaw(qmp, agent_path)
        if thawed != _THAWED:
            warnings.append(thawed)


_THAWED = "the guest's file systems had been left frozen by an interrupted backup and were thawed"


def _thaw(qmp: Qmp, agent_path: Path | None) -> str:
    if agent_path is None:
        return "the guest may be frozen, and no guest agent is configured to thaw it"
    try:
        with Agent(agent_path) as agent:
            agent.thaw()
    except (AgentSilent, AgentRefused) as error:
        # The mark stays: the next connection tries again.
        return f"the guest may still be frozen: {error.message}"
    _unmark(qmp, FROZEN)
    return _THAWED


def _list_marks(qmp: Qmp) -> set[str]:
    return {entry["name"] for entry in qmp.execute("qom-list", path="/objects")}


def _mark(qmp: Qmp, name: str) -> None:
    if name not in _list_marks(qmp):  # left standing by a thaw that failed
        qmp.execute("object-add", qom_type="secret", id=name, data="mark")


def _unmark(qmp: Qmp, name: str) -> None:
    qmp.execute("object-del", id=name)
