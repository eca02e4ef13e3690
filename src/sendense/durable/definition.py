"""What a workflow and its steps are: a name that never changes, and a function.

A workflow is a function `(flow, *args)` whose every effect is a step. After a crash it runs again
from its first line, and steps that had finished give back what they returned then. So the code
between steps must be deterministic: no clock, no randomness, no reading of the world.

A step is a function `(context, *args)` that may be run again, in whole, after a crash in the
middle of it; it must be idempotent. What it takes and returns are JSON values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

ContextT = TypeVar("ContextT")
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a step asks again when the world does not answer (Unavailable, not NoSpace).

    Attributes:
        attempts_max: calls in all.
        interval_seconds: the wait before the second call; doubles each time.
        interval_seconds_max: the longest wait.
        cancellable: a cancelled job ends the waiting. False for clean-up, which a cancelled job
            needs most.
    """

    attempts_max: int
    interval_seconds: float = 1.0
    interval_seconds_max: float = 30.0
    cancellable: bool = True

    def wait_seconds(self, attempt: int) -> float:
        """Return the wait after the `attempt`-th failed call, counted from 1."""
        return min(self.interval_seconds * 2.0 ** (attempt - 1), self.interval_seconds_max)


ONCE = Retry(attempts_max=1)


@dataclass(frozen=True)  # no slots: `Workflow[X](…)` sets an attribute, which they break
class Step(Generic[ContextT, P, R]):
    """A function whose result is remembered under a name."""

    name: str
    function: Callable[Concatenate[ContextT, P], R]
    retry: Retry = ONCE


@dataclass(frozen=True)  # no slots: `Workflow[X](…)` sets an attribute, which they break
class Workflow(Generic[ContextT]):
    """A program of steps, started by name.

    Attributes:
        name: what clients start it by; part of the schema of workflows.
        function: called as `function(flow, *args)`; returns a JSON value.
        steps: all steps it may run, for tests that pin the names.
    """

    name: str
    function: Callable[..., Any]
    steps: tuple[Step[ContextT, Any, Any], ...]


def step(
    name: str, *, retry: Retry = ONCE
) -> Callable[[Callable[Concatenate[ContextT, P], R]], Step[ContextT, P, R]]:
    """Make a step of a function. The name never changes, whatever the function is called."""

    def decorate(function: Callable[Concatenate[ContextT, P], R]) -> Step[ContextT, P, R]:
        return Step(name, function, retry)

    return decorate
