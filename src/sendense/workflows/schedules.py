"""Starts once in a while, for each repository, what nobody would ask for by hand."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sendense.core import ids as core_ids
from sendense.core.ids import IdSource
from sendense.db.tables import JobRow, RepositoryRow
from sendense.durable.schema import PRIORITY_HOUSEKEEPING
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs.schemas import JobKind
from sendense.hub.repositories.schemas import CollectGarbage


@dataclass(frozen=True, slots=True)
class Schedule:
    """What is done how often; `subject` is what the job's says beside the repository."""

    kind: JobKind
    every: timedelta
    subject: Mapping[str, Any] = field(default_factory=dict)


def plan(*, gc_every: timedelta, export_every: timedelta) -> tuple[Schedule, ...]:
    """Return what is done regularly; no time at all stands for never.

    Deleting alone frees nothing, and a catalog that exists only once is soon lost.
    """
    known = (
        Schedule(JobKind.GC, gc_every, CollectGarbage().model_dump()),
        Schedule(JobKind.HUB_EXPORT, export_every),
    )
    return tuple(one for one in known if one.every)


def create_due_jobs(
    session: Session, schedule: Schedule, *, now: datetime, ids: IdSource
) -> list[str]:
    """Write a pending job for each enabled repository that is due; return the jobs' ids.

    Due is one whose last job of the kind, a preview too, began as long ago; a new repository is so
    after the same time. Two workers at once may write two jobs, which is safe.
    """
    last = dict(
        session.execute(
            select(JobRow.repository_id, func.max(JobRow.created_at))
            .where(JobRow.kind == schedule.kind)
            .group_by(JobRow.repository_id)
        ).all()
    )
    made = []
    for row in session.scalars(select(RepositoryRow).where(RepositoryRow.enabled)):
        if now - max(last.get(row.id, row.created_at), row.created_at) < schedule.every:
            continue
        job_id = core_ids.new_id("job", ids)
        jobs.create_job(
            session,
            jobs.NewJob(
                id=job_id,
                kind=schedule.kind,
                subject={"repository_id": row.id, **schedule.subject},
                priority=PRIORITY_HOUSEKEEPING,
                created_at=now,
                repository_id=row.id,
            ),
        )
        made.append(job_id)
    return made
