"""What every step gets: the worker's connections, and the job's rows."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy.orm import Session

from sendense.connectors.base import Source
from sendense.core.clock import Clock
from sendense.core.errors import Cancelled, NotFound
from sendense.core.ids import IdSource
from sendense.db.catalog import Catalog
from sendense.db.tables import JobRow, RepositoryRow, SourceRow
from sendense.durable.client import EngineClient
from sendense.durable.lease import Lease
from sendense.engine.backup import EngineSettings
from sendense.hub.exports.service import Exporter
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs.schemas import JobStatus
from sendense.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class Context:
    """The worker's side of the world; one for all jobs, safe to use from many threads.

    Attributes:
        engine: for looking at the children of a workflow.
        open_source, open_repository: open what a row describes; closing leaves all in place.
        resolve_path: AllowedDirs.resolve: asked again whenever a path is used.
        transfer: how a transfer uses the machine.
        exporter: what an export of the hub is made of.
    """

    catalog: Catalog
    engine: EngineClient
    lease: Lease
    clock: Clock
    ids: IdSource
    open_source: Callable[[SourceRow], AbstractContextManager[Source]]
    open_repository: Callable[[RepositoryRow], AbstractContextManager[Repository]]
    resolve_path: Callable[[str], Path]
    transfer: EngineSettings
    exporter: Exporter

    def now(self) -> datetime:
        """Return the wall clock's time in UTC."""
        return self.clock.now()

    def check(self, job_id: str) -> None:
        """Raise Cancelled where somebody cancelled the job; end the process without a lease."""
        self.lease.check()
        with self.catalog.read() as session:
            if jobs.is_cancel_requested(session, job_id):
                raise Cancelled("the job was cancelled")


def begin(session: Session, context: Context, job_id: str) -> JobRow:
    """Note that a worker runs the job. Raises Cancelled for one that has ended already."""
    job = jobs.begin(session, job_id, now=context.now())
    if job.status != JobStatus.RUNNING:
        raise Cancelled(f"job {job_id} has ended already")
    return job


def get_source(session: Session, source_id: str | None) -> SourceRow:
    """Return a source. Raises NotFound, kind `source-unknown`."""
    row = session.get(SourceRow, source_id) if source_id is not None else None
    if row is None:
        raise NotFound(
            f"source {source_id} is not known any more",
            kind="source-unknown",
            hint="it was removed after the job was asked for; register it again",
        )
    return row


def get_repository(session: Session, repository_id: str | None) -> RepositoryRow:
    """Return a repository. Raises NotFound, kind `repository-unknown`."""
    row = session.get(RepositoryRow, repository_id) if repository_id is not None else None
    if row is None:
        raise NotFound(
            f"repository {repository_id} is not known any more",
            kind="repository-unknown",
            hint="it was removed after the job was asked for; register it again",
        )
    return row
