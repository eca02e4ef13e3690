"""The engine inside a worker: registers workflows, takes them from the queues, runs them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer

from sendense.core.errors import SendenseError
from sendense.durable import failure, logs, placement, schema
from sendense.durable.client import EngineClient, QueueLimits, migrate
from sendense.durable.definition import Workflow
from sendense.durable.flow import Flow, Owner

ContextT = TypeVar("ContextT")

_log = logging.getLogger(__name__)

# The engine's own count of recoveries never decides: the sweep counts take-overs and gives up
# with a clean-up, where the engine would just stop.
_RECOVERY_ATTEMPTS_MAX = 1_000_000


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How one worker runs workflows.

    Attributes:
        url: the engine's database; SQLite on one machine, PostgreSQL beyond it.
        executor_id: unique for each start of a worker; two with one id would re-run each other's
            jobs.
        limits: how much runs at once, and how soon.
        labels: what this worker may be demanded to have.
        idle_seconds_max: how long a server keeps the locks of a worker that froze within a
            transaction; no longer than a lease, or its jobs could not be taken over in time.
    """

    url: str
    executor_id: str
    limits: QueueLimits = field(default_factory=QueueLimits)
    labels: placement.Labels = field(default_factory=dict)
    idle_seconds_max: float = 60.0


class Engine(Generic[ContextT]):
    """Runs workflows in this process. One at a time per process: DBOS keeps global state."""

    def __init__(
        self,
        settings: EngineSettings,
        workflows: Sequence[Workflow[ContextT]],
        context: ContextT,
        owner: Owner,
    ) -> None:
        self._settings = settings
        self._workflows = workflows
        self._context = context
        self._owner = owner
        self._dbos: DBOS | None = None

    def launch(self) -> None:
        """Start taking workflows. The lease must be held before: the sweep looks for it."""
        logs.quieten()
        migrate(self._settings.url)
        config: DBOSConfig = {
            "name": schema.APPLICATION,
            "system_database_url": self._settings.url,
            "application_version": schema.VERSION,
            "executor_id": self._settings.executor_id,
            "serializer": DBOSPortableJSONSerializer(),
            "log_level": "WARNING",
            "enable_otlp": False,
            "sys_db_idle_transaction_timeout_sec": self._settings.idle_seconds_max,
            # Waiting parents hold a thread each: a bound would be a deadlock.
            "max_executor_threads": None,
        }
        self._dbos = DBOS(config=config)
        for workflow in self._workflows:
            DBOS.workflow(name=workflow.name, max_recovery_attempts=_RECOVERY_ATTEMPTS_MAX)(
                self._entry(workflow)
            )
        DBOS.listen_queues(
            placement.list_queues((schema.JOBS, schema.TRANSFERS), self._settings.labels)
        )
        # Queues are written before the launch: those made after it are noticed a second later.
        client = EngineClient(self._settings.url)
        try:
            client.declare_queues({}, self._settings.limits)
        finally:
            client.close()
        DBOS.launch()

    def list_running(self) -> frozenset[str]:
        """Return the ids of the workflows that have a thread in this process, once launched."""
        assert self._dbos is not None, "launch comes first"
        return frozenset(self._dbos._active_workflows_set.activeList())  # noqa: SLF001 - see Worker

    def stop(self, *, wait_seconds: int) -> None:
        """Take no more workflows, and give the running ones some time to end.

        What still runs afterwards stays as it is in the database; after this process has ended
        another worker goes on with it.
        """
        DBOS.destroy(workflow_completion_timeout_sec=wait_seconds, destroy_registry=True)

    def _entry(self, workflow: Workflow[ContextT]) -> Callable[..., Any]:
        """Return the function that DBOS calls: it only adds the flow to the arguments."""

        def run(*args: Any) -> Any:
            workflow_id = DBOS.workflow_id
            assert workflow_id is not None, "DBOS calls this only inside a workflow"
            try:
                return workflow.function(Flow(self._context, workflow_id, self._owner), *args)
            except SendenseError as error:
                _log.info("%s %s failed: %s", workflow.name, workflow_id, error.message)
                raise failure.to_portable(error) from error
            except Exception:
                _log.exception("%s %s is broken", workflow.name, workflow_id)
                raise

        run.__qualname__ = run.__name__ = workflow.name
        return run
