"""What a running workflow may do: run a step, start a child."""

import json
import logging
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

from dbos import DBOS, PortableWorkflowError

from sendense.core.errors import NoSpace, SendenseError, Unavailable
from sendense.durable import failure, schema
from sendense.durable.definition import Retry, Step, Workflow

ContextT = TypeVar("ContextT")
P = ParamSpec("P")
R = TypeVar("R")

_log = logging.getLogger(__name__)


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
            result: R = DBOS.run_step({"name": step.name}, call)
        except PortableWorkflowError as error:
            raise failure.from_portable(error) from None
        return result

    def _show(self, step_name: str, error: Exception) -> SendenseError:
        """Return the error as users see it; a defect of ours goes to the log in full."""
        if isinstance(error, SendenseError):
            _log.info("step %s of %s: %s", step_name, self.workflow_id, error.message)
            return error
        _log.exception("step %s of %s is broken", step_name, self.workflow_id)
        return failure.from_portable(failure.to_portable(error))

    def start(
        self, child: Workflow[ContextT], suffix: str, *args: Any, priority: int, partition: str
    ) -> str:
        """Start a child of this workflow in the queue of transfers and return its id.

        The id is this workflow's plus the suffix: a replay finds the child it started before.
        `partition` names what bounds how many run at once, e.g. the source.
        """
        child_id = f"{self.workflow_id}/{suffix}"
        DBOS.enqueue_workflow_with_options(
            {
                "workflow_name": child.name,
                "queue_name": schema.TRANSFERS,
                "workflow_id": child_id,
                "app_version": schema.VERSION,
                "priority": priority,
                "queue_partition_key": partition,
            },
            *args,
        )
        return child_id

    def _attempt(self, retry: Retry, call: Callable[[], Any]) -> Any:
        attempt = 1
        while True:
            try:
                self._owner.check_lease()
                # Through JSON and back, so that the first run sees what a replay would see.
                return json.loads(json.dumps(call()))
            except Unavailable as error:
                if isinstance(error, NoSpace) or attempt >= retry.attempts_max:
                    raise
                _log.info("attempt %d of %s failed: %s", attempt, self.workflow_id, error.message)
            self._owner.pause(
                self.job_id, retry.wait_seconds(attempt), cancellable=retry.cancellable
            )
            attempt += 1
