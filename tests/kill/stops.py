"""Stops in a worker: it holds on one side of a step until it is let go, or killed there.

All goes through files in one folder, so that a test steers workers that it did not start:

    stop-<when>-<step>   asks for a stop `before` or `after` a step: the first worker there takes
                         it; a step of a child is written `<step>.<suffix of the child>`, and a
                         command to QEMU `qmp.<command>`
    held                 a worker holds; it goes on when the file is gone
    slow                 seconds that each read from a source takes longer
    journal              a line for each side of each step: time, process, when, step, workflow

"After" is the worst moment: the step is done, and the engine does not know yet.
"""

import contextlib
import dataclasses
import os
import threading
import time
from pathlib import Path
from typing import Any

from sendense.connectors.qemu.qmp import Qmp
from sendense.durable.flow import Flow
from sendense.nbd.client import Client

POLL_SECONDS = 0.02


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of the journal."""

    at: float
    pid: int
    when: str
    step: str
    workflow_id: str


def install(folder: Path) -> None:
    """Put stops around every step of this process, and make reads as slow as `slow` says."""
    run_step, receive, execute = Flow.run, Client.receive, Qmp.execute

    def run(self: Flow[Any], step: Any, *args: Any, **kwargs: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            _pass(folder, "before", step.name, self.workflow_id)
            result = step.function(*given, **named)
            _pass(folder, "after", step.name, self.workflow_id)
            return result

        return run_step(self, dataclasses.replace(step, function=call), *args, **kwargs)

    def read(self: Client) -> None:
        for _ in self._asked:
            with contextlib.suppress(FileNotFoundError):
                threading.Event().wait(float((folder / "slow").read_text()))
        receive(self)

    def ask(self: Qmp, command: str, **arguments: Any) -> Any:
        _hold(folder, f"before-qmp.{command}")
        answer = execute(self, command, **arguments)
        _hold(folder, f"after-qmp.{command}")
        return answer

    Qmp.execute = ask  # type: ignore[method-assign]
    Flow.run = run  # type: ignore[method-assign]
    Client.receive = read  # type: ignore[method-assign]


def _pass(folder: Path, when: str, step: str, workflow_id: str) -> None:
    line = f"{time.time()} {os.getpid()} {when} {step} {workflow_id}\n"
    journal = os.open(folder / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(journal, line.encode())
    finally:
        os.close(journal)
    _, _, child = workflow_id.partition("/")
    _hold(folder, f"{when}-{step}{child and '.'}{child}")


def _hold(folder: Path, place: str) -> None:
    held = folder / "held"
    with contextlib.suppress(FileNotFoundError):
        (folder / f"stop-{place}").rename(held)
        while held.exists():
            threading.Event().wait(POLL_SECONDS)


def read_journal(folder: Path) -> list[Entry]:
    """Return what all workers have done so far."""
    with contextlib.suppress(FileNotFoundError):
        lines = (folder / "journal").read_text().splitlines()
        return [_parse(line) for line in lines]
    return []


def _parse(line: str) -> Entry:
    at, pid, when, step, workflow_id = line.split()
    return Entry(float(at), int(pid), when, step, workflow_id)
