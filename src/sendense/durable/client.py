"""The engine from outside: start, watch, cancel and forget workflows; never run one.

Used by the API process, by tools and by the sweep. Everything here goes through `DBOSClient`: a
second `DBOS` object in another process would re-run the jobs of the first.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
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

from sendense.core.errors import SendenseError, Unavailable
from sendense.durable import failure, logs, schema

_DELETE_BATCH = 500  # rows per statement: a long delete would block every worker on SQLite
_POOL_SIZE = 5  # connections; the API's threads ask briefly and rarely


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


def migrate(url: str) -> None:
    """Create or update the engine's tables. Idempotent; several processes may call it at once."""
    logs.quieten()
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        # Lasts in the file: readers (the API) no longer wait for writers (the workers).
        connection = sqlite3.connect(parsed.database, timeout=30)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        finally:
            connection.close()
    DBOS.migrate(url)


class EngineClient:
    """A connection to the engine's database. Thread-safe. Needs `migrate` to have run."""

    def __init__(self, url: str) -> None:
        logs.quieten()
        try:
            self._client = DBOSClient(
                system_database_url=url,
                serializer=DBOSPortableJSONSerializer(),
                application_name=schema.APPLICATION,
                system_database_pool_size=_POOL_SIZE,
                retry_connection_errors=False,
            )
        except DBAPIError as error:
            raise _unreachable(error) from error

    def start(self, workflow_name: str, workflow_id: str, *args: Any, priority: int) -> None:
        """Put a workflow into the queue of jobs. Does nothing where the id is already there."""
        options: EnqueueOptions = {
            "workflow_name": workflow_name,
            "queue_name": schema.JOBS,
            "workflow_id": workflow_id,
            "app_version": schema.VERSION,
            "priority": priority,
            "application_name": schema.APPLICATION,
        }
        try:
            self._client.enqueue(options, *args)
        except DBAPIError as error:
            raise _unreachable(error) from error

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
        try:
            rows = self._client.list_workflows(
                workflow_ids=list(workflow_ids) if workflow_ids is not None else None,
                workflow_id_prefix=prefix,
                status=_raw(statuses) if statuses is not None else None,
                load_input=False,
                load_output=with_output,
            )
        except DBAPIError as error:
            raise _unreachable(error) from error
        return [_state(row) for row in rows]

    def cancel(self, workflow_id: str) -> None:
        """Forbid every further step of a workflow.

        A step that is running goes on unseen. So this is for workflows that have not started, or
        whose worker is known to be dead; a running job is asked by the flag in its own row.
        """
        try:
            self._client.cancel_workflow(workflow_id)
        except dbos_error.DBOSNonExistentWorkflowError:
            return
        except DBAPIError as error:
            raise _unreachable(error) from error

    def resume(self, workflow_id: str, queue: str) -> None:
        """Queue a workflow again that a dead worker had; it goes on behind its last step."""
        try:
            self._client.resume_workflow(workflow_id, queue_name=queue)
        except dbos_error.DBOSNonExistentWorkflowError:
            return
        except DBAPIError as error:
            raise _unreachable(error) from error

    def delete_finished(self, *, before: datetime) -> int:
        """Forget workflows that ended before a time, with their steps. Returns how many."""
        deleted = 0
        while True:
            try:
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
            except DBAPIError as error:
                raise _unreachable(error) from error
            deleted += len(rows)

    def list_active(self) -> list[WorkflowState]:
        """Return all workflows that run or wait."""
        return self.list_workflows(statuses=[WorkflowStatus.QUEUED, WorkflowStatus.RUNNING])

    def find_oldest_waiting(self) -> datetime | None:
        """Return since when the oldest queued workflow waits, or None where none waits."""
        try:
            rows = self._client.list_workflows(
                status=_raw([WorkflowStatus.QUEUED]), limit=1, load_input=False, load_output=False
            )
        except DBAPIError as error:
            raise _unreachable(error) from error
        if not rows or rows[0].created_at is None:
            return None
        return datetime.fromtimestamp(rows[0].created_at / 1000, tz=UTC)

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


def _unreachable(error: DBAPIError) -> Unavailable:
    return Unavailable(
        f"the job engine's database does not answer: {error.orig}",
        hint="try again; if it lasts, look at the disk and the database server",
        kind="engine-unavailable",
    )
