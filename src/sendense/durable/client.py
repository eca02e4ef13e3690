"""The engine from outside: start, watch, cancel and forget workflows; never run one.

Used by the API process, by tools and by the sweep. Everything here goes through `DBOSClient`: a
second `DBOS` object in another process would re-run the jobs of the first.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from dbos import (
    DBOS,
    DBOSClient,
    DBOSPortableJSONSerializer,
    EnqueueOptions,
    PortableWorkflowError,
)
from dbos import WorkflowStatus as _Row
from dbos import error as dbos_error
from sqlalchemy.exc import DBAPIError

from sendense.core.errors import Invalid, SendenseError, Unavailable
from sendense.durable import failure, identity, logs, placement, schema

_DELETE_BATCH = 500  # rows per statement: a long delete would block every worker on SQLite
NO_LABELS: placement.Labels = MappingProxyType({})
_POOL_SIZE = 5  # connections; the API's threads ask briefly and rarely


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much runs at once from one pair of queues.

    Attributes:
        poll_seconds: how long a queued workflow waits for an idle worker at most.
        jobs_at_once_max: jobs that may run in one worker; they mostly wait for transfers.
        transfers_at_once_max: disks that one worker copies at a time.
        transfers_per_partition_max: disks copied at a time from one source, by all workers
            (vSphere bears about four per host).
    """

    poll_seconds: float = 0.25
    jobs_at_once_max: int = 16
    transfers_at_once_max: int = 4
    transfers_per_partition_max: int = 4


class EngineUnavailable(Unavailable):
    """The engine's database does not answer."""

    default_kind = "engine-unavailable"


class WorkflowStatus(StrEnum):
    """Where a workflow is."""

    QUEUED = "queued"
    RUNNING = "running"  # dequeued by an executor, which may be dead
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"  # by the engine, on request of the sweep


_STATUS = {
    "DELAYED": WorkflowStatus.QUEUED,
    "ENQUEUED": WorkflowStatus.QUEUED,
    "PENDING": WorkflowStatus.RUNNING,
    "SUCCESS": WorkflowStatus.SUCCEEDED,
    "ERROR": WorkflowStatus.FAILED,
    "CANCELLED": WorkflowStatus.CANCELLED,
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": WorkflowStatus.FAILED,
}
ENDED = frozenset({WorkflowStatus.SUCCEEDED, WorkflowStatus.FAILED, WorkflowStatus.CANCELLED})


@dataclass(frozen=True, slots=True)
class WorkflowState:
    """A workflow as the engine sees it.

    Attributes:
        executor_id: the worker that took it last; None while it never ran.
        error: why it failed, where it failed by an error of ours.
        output: what it returned, a JSON value.
    """

    workflow_id: str
    name: str
    status: WorkflowStatus
    queue: str | None
    executor_id: str | None
    error: SendenseError | None
    output: Any

    @property
    def ended(self) -> bool:
        """Whether it will never run again by itself."""
        return self.status in ENDED


def migrate(url: str) -> str:
    """Create or update the engine's tables; return the identity of the engine.

    Idempotent; several processes may call it at once. Raises Invalid, kind `engine-unsupported`,
    for a database that the engine cannot use.
    """
    logs.quieten()
    parsed = sa.make_url(url)
    backend = parsed.get_backend_name()
    if backend not in {"sqlite", "postgresql"}:
        raise Invalid(
            f"the job engine cannot use {backend}",
            kind="engine-unsupported",
            hint="set SENDENSE_ENGINE_URL to a PostgreSQL, or leave it out on one machine",
        )
    with _asking():
        if backend == "sqlite":
            _prepare_sqlite(parsed)
        DBOS.migrate(url)
        return identity.find(parsed)


def _prepare_sqlite(url: sa.URL) -> None:
    """Let readers (the API) wait for no writer (the workers); it lasts in the file."""
    engine = sa.create_engine(url, connect_args={"timeout": identity.BUSY_SECONDS_MAX})
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    finally:
        engine.dispose()


class EngineClient:
    """A connection to the engine's database. Thread-safe. Needs `migrate` to have run."""

    def __init__(self, url: str) -> None:
        logs.quieten()
        self._declared: set[str] = set()
        with _asking():
            self._client = DBOSClient(
                system_database_url=url,
                serializer=DBOSPortableJSONSerializer(),
                application_name=schema.APPLICATION,
                system_database_pool_size=_POOL_SIZE,
                retry_connection_errors=False,
            )

    def declare_queues(self, required: placement.Labels, limits: QueueLimits) -> None:
        """Make the queues of what demands these labels; workers see new ones within a second."""
        with _asking():
            self._client.register_queue(
                placement.queue_of(schema.JOBS, required),
                worker_concurrency=limits.jobs_at_once_max,
                polling_interval_sec=limits.poll_seconds,
            )
            self._client.register_queue(
                placement.queue_of(schema.TRANSFERS, required),
                worker_concurrency=limits.transfers_at_once_max,
                partition_concurrency=limits.transfers_per_partition_max,
                polling_interval_sec=limits.poll_seconds,
            )

    def start(
        self,
        workflow_name: str,
        workflow_id: str,
        *args: Any,
        priority: int,
        required: placement.Labels = NO_LABELS,
    ) -> None:
        """Put a workflow into the queue of jobs. Does nothing where the id is already there.

        A worker runs it that has all the `required` labels.
        """
        queue = placement.queue_of(schema.JOBS, required)
        if required and queue not in self._declared:
            self.declare_queues(required, QueueLimits())
            self._declared.add(queue)
        options: EnqueueOptions = {
            "workflow_name": workflow_name,
            "queue_name": queue,
            "workflow_id": workflow_id,
            "app_version": schema.VERSION,
            "priority": priority,
            "application_name": schema.APPLICATION,
        }
        with _asking():
            self._client.enqueue(options, *args)

    def find(self, workflow_id: str) -> WorkflowState | None:
        """Return one workflow, or None where the engine does not know it."""
        return next(iter(self.list_workflows(workflow_ids=[workflow_id], with_output=True)), None)

    def list_workflows(
        self,
        *,
        workflow_ids: Sequence[str] | None = None,
        prefix: str | None = None,
        statuses: Sequence[WorkflowStatus] | None = None,
        with_output: bool = False,
    ) -> list[WorkflowState]:
        """Return workflows, oldest first, by ids, by a common start of ids, or by status."""
        if workflow_ids is not None and not workflow_ids:
            return []
        with _asking():
            rows = self._client.list_workflows(
                workflow_ids=list(workflow_ids) if workflow_ids is not None else None,
                workflow_id_prefix=prefix,
                status=_raw(statuses) if statuses is not None else None,
                load_input=False,
                load_output=with_output,
            )
        return [_state(row) for row in rows]

    def cancel(self, workflow_id: str) -> None:
        """Forbid every further step of a workflow.

        A step that is running goes on unseen. So this is for workflows that have not started, or
        whose worker is known to be dead; a running job is asked by the flag in its own row.
        """
        with _asking(), contextlib.suppress(dbos_error.DBOSNonExistentWorkflowError):
            self._client.cancel_workflow(workflow_id)

    def take_over(self, workflow_id: str, *, executor_id: str) -> bool:
        """Put a workflow that a dead worker had back into its queue; it goes on from its last step.

        Does nothing, and returns False, where that worker does not have it any more. DBOS's public
        way, `resume_workflow`, does not ask: a sweep that was held up would take the workflow from
        the living worker that another sweep has given it to, and it would run twice.
        """
        with _asking():
            return self._client._sys_db.reenqueue_for_recovery(  # noqa: SLF001 - see above
                workflow_id, [executor_id], schema.JOBS
            )

    def delete_finished(self, *, before: datetime) -> int:
        """Forget workflows that ended before a time, with their steps. Returns how many."""
        deleted = 0
        while True:
            with _asking():
                rows = self._client.list_workflows(
                    status=_raw(sorted(ENDED)),
                    completed_before=before.astimezone(UTC).isoformat(),
                    limit=_DELETE_BATCH,
                    load_input=False,
                    load_output=False,
                )
                if not rows:
                    return deleted
                self._client.delete_workflows([row.workflow_id for row in rows])
            deleted += len(rows)

    def list_active(self) -> list[WorkflowState]:
        """Return all workflows that run or wait."""
        return self.list_workflows(statuses=[WorkflowStatus.QUEUED, WorkflowStatus.RUNNING])

    def list_running(self) -> dict[str, set[str]]:
        """Return the ids of the jobs that each executor has; some may be dead."""
        found: dict[str, set[str]] = {}
        for one in self.list_workflows(statuses=[WorkflowStatus.RUNNING]):
            found.setdefault(one.executor_id or "", set()).add(schema.job_id_of(one.workflow_id))
        return found

    def close(self) -> None:
        """Close all connections."""
        self._client.destroy()


def _raw(statuses: Sequence[WorkflowStatus]) -> list[str]:
    return [raw for raw, status in _STATUS.items() if status in statuses]


def _state(row: _Row) -> WorkflowState:
    error = row.error
    return WorkflowState(
        workflow_id=row.workflow_id,
        name=row.name,
        status=_STATUS[row.status],
        queue=row.queue_name,
        executor_id=row.executor_id,
        error=failure.from_portable(error) if isinstance(error, PortableWorkflowError) else None,
        output=row.output,
    )


@contextmanager
def _asking() -> Iterator[None]:
    """Let what the database's driver raises in the block out as an error of ours."""
    try:
        yield
    except DBAPIError as error:
        raise EngineUnavailable(
            f"the job engine's database does not answer: {error.orig}",
            hint="try again; if it lasts, look at the disk and the database server",
        ) from error
