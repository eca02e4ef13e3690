"""Which workers there are, and what they run."""

from datetime import UTC, datetime

from sqlalchemy.orm import Session

from sendense.durable import lease_terms, placement
from sendense.hub.context import Hub
from sendense.hub.jobs import queries as jobs
from sendense.hub.workers.schemas import Worker, WorkerList, WorkerStatus


def list_workers(session: Session, hub: Hub) -> WorkerList:
    """Return all workers that have not released their lease. Raises Unavailable for the engine."""
    running = hub.list_running()
    found = hub.list_workers(session)
    stale_seconds = hub.lease_seconds * lease_terms.STALE_SHARE
    workers = [
        Worker(
            id=one.worker_id,
            host=one.host,
            pid=one.pid,
            labels=dict(one.about.labels),
            version=one.about.version,
            started_at=datetime.fromtimestamp(one.started_at, tz=UTC),
            beat_age_seconds=round(one.age_seconds, 1),
            status=WorkerStatus.LIVE
            if alive and one.age_seconds <= stale_seconds
            else WorkerStatus.STALE,
            jobs=sorted(running.get(one.worker_id, ())),
        )
        for one, alive in found
    ]
    live = [one.about.labels for one, alive in found if alive]
    unplaced = [
        job.id
        for job in jobs.list_active(session)
        if placement.explain(job.required_labels or {}, live) is not None
    ]
    return WorkerList(workers=workers, total=len(workers), unplaced_jobs=unplaced)
