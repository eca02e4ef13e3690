"""What a running workflow may do: run a step, start a child."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

import structlog
from dbos import DBOS, PortableWorkflowError

from sendense.core.errors import NoSpace, SendenseError, Unavailable
from sendense.db.failure import CatalogUnavailable
from sendense.durable import failure, placement, schema
from sendense.durable.client import EngineUnavailable
from sendense.durable.definition import Retry, Step, Workflow

ContextT = TypeVar("ContextT")
P = ParamSpec("P")
R = TypeVar("R")

_log = logging.getLogger(__name__)

# What says that the catalog's or the engine's database does not answer.
_OUTAGES = (EngineUnavailable, CatalogUnavailable)
# About ten minutes: longer than a database needs to restart or to fail over.
_OUTAGE = Retry(attempts_max=66, interval_seconds=0.5, interval_seconds_max=10.0)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a child may run, and beside how many others.

    Attributes:
        partition: names what bounds how many run at once, e.g. the source.
        required: labels that its worker must have; those that the job itself was started with.
    """

    partition: str
    required: placement.Labels


class Owner(Protocol):
    """Who runs the engine; it is asked and told around each step. Called from many threads."""

    def check_lease(self) -> None:
        """Do not return where this process lost its lease: others may run the step by now."""
        ...

    def pause(self, job_id: str, seconds: float, *, cancellable: bool) -> None:
        """Wait between attempts. Raises Cancelled for a cancelled job if that is wanted."""
        ...

    def step_started(self, workflow_id: str, step_name: str) -> None:
        """Show that a step runs; must not raise."""
        ...

    def step_ended(self, workflow_id: str, step_name: str, error: SendenseError | None) -> None:
        """Show that a step ended; must not raise."""
        ...


class Flow(Generic[ContextT]):
    """The handle that a workflow function gets as its first argument.

    Every failed step raises a SendenseError, the same one in the first run and in a replay. What
    the engine itself raises to end a workflow that it no longer owns is no SendenseError: a
    workflow compensates in `except SendenseError` and never more widely.
    """

    def __init__(self, context: ContextT, workflow_id: str, owner: Owner) -> None:
        self._context = context
        self._owner = owner
        self.workflow_id = workflow_id
        self.job_id = schema.job_id_of(workflow_id)

    def run(self, step: Step[ContextT, P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a step once and for all; in a replay return what it returned, or raise again."""

        def call() -> Any:
            self._owner.check_lease()
            self._owner.step_started(self.workflow_id, step.name)
            try:
                result = self._attempt(
                    step.retry, lambda: step.function(self._context, *args, **kwargs)
                )
            except Exception as error:
                shown = self._show(step.name, error)
                self._owner.step_ended(self.workflow_id, step.name, shown)
                raise failure.to_portable(shown) from error
            self._owner.step_ended(self.workflow_id, step.name, None)
            return result

        try:
            with structlog.contextvars.bound_contextvars(**self._names(step.name)):
                result: R = DBOS.run_step({"name": step.name}, call)
        except PortableWorkflowError as error:
            raise failure.from_portable(error) from None
        return result

    def _names(self, step_name: str) -> dict[str, str]:
        """Return what every log message of a step carries."""
        names = {"job_id": self.job_id, "step": step_name}
        return (
            names if self.workflow_id == self.job_id else {**names, "workflow_id": self.workflow_id}
        )

    def _show(self, step_name: str, error: Exception) -> SendenseError:
        """Return the error as users see it; a defect of ours goes to the log in full."""
        if isinstance(error, SendenseError):
            _log.info("step %s of %s: %s", step_name, self.workflow_id, error.message)
            return error
        _log.exception("step %s of %s is broken", step_name, self.workflow_id)
        return failure.from_portable(failure.to_portable(error))

    def start(
        self,
        child: Workflow[ContextT],
        suffix: str,
        *args: Any,
        priority: int,
        place: Place,
    ) -> str:
        """Start a child of this workflow in the queue of transfers and return its id.

        The id is this workflow's plus the suffix: a replay finds the child it started before.
        """
        child_id = f"{self.workflow_id}/{suffix}"
        DBOS.enqueue_workflow_with_options(
            {
                "workflow_name": child.name,
                "queue_name": placement.queue_of(schema.TRANSFERS, place.required),
                "workflow_id": child_id,
                "app_version": schema.VERSION,
                "priority": priority,
                "queue_partition_key": place.partition,
            },
            *args,
        )
        return child_id

    def _attempt(self, retry: Retry, call: Callable[[], Any]) -> Any:
        attempt = 1
        while True:
            try:
                # Through JSON and back, so that the first run sees what a replay would see.
                return json.loads(json.dumps(self._ask(call)))
            except Unavailable as error:
                if isinstance(error, NoSpace) or attempt >= retry.attempts_max:
                    raise
                _log.info("attempt %d of %s failed: %s", attempt, self.workflow_id, error.message)
            self._owner.pause(
                self.job_id, retry.wait_seconds(attempt), cancellable=retry.cancellable
            )
            attempt += 1

    def _ask(self, call: Callable[[], Any]) -> Any:
        """Call, and again while it is one of our own databases that does not answer.

        Whatever a step is about, a database that restarts is no reason to end its job: such calls
        do not count as attempts, and a job that could not be ended either would gain nothing.
        Where the catalog is away for long, the lease ends this process.
        """
        outage = 1
        while True:
            self._owner.check_lease()
            try:
                return call()
            except _OUTAGES as error:
                if outage >= _OUTAGE.attempts_max:
                    raise
                _log.warning("%s waits for the database: %s", self.workflow_id, error)
            self._owner.pause(self.job_id, _OUTAGE.wait_seconds(outage), cancellable=False)
            outage += 1
