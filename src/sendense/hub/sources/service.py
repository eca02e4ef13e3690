"""Registering sources, trying them, and starting their discovery."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from sendense.core.errors import Conflict
from sendense.core.ids import new_id
from sendense.db.tables import SourceRow
from sendense.hub.backups import queries as backups
from sendense.hub.context import Hub
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs import service as job_service
from sendense.hub.jobs.schemas import JobKind
from sendense.hub.sources import queries
from sendense.hub.sources.schemas import (
    ChangeSource,
    CreateSource,
    DiscoverAccepted,
    Source,
    SourceList,
    SourceTested,
)


def show(session: Session, rows: Sequence[SourceRow]) -> list[Source]:
    """Return sources as the API shows them."""
    counts = queries.count_vms(session, [row.id for row in rows])
    return [
        Source(
            id=row.id,
            name=row.name,
            type=row.type,
            config=row.config,
            vm_count=counts.get(row.id, 0),
            discovered_at=row.discovered_at,
            trouble=row.trouble or None,
            created_at=row.created_at,
            updated_at=row.updated_at,
        )
        for row in rows
    ]


def list_sources(session: Session, *, limit: int, offset: int) -> SourceList:
    """Return a page of sources."""
    rows, total = queries.list_sources(session, limit=limit, offset=offset)
    return SourceList(sources=show(session, rows), total=total)


def create(session: Session, hub: Hub, wanted: CreateSource) -> Source:
    """Register a source whose configuration `hub.check_source` accepted."""
    queries.check_name_free(session, wanted.name)
    now = hub.clock.now()
    source_id = new_id("source", hub.ids)
    row = SourceRow(
        id=source_id,
        # Neither image files nor a bare QEMU have an identity of their own.
        uuid=source_id,
        name=wanted.name,
        type=wanted.type,
        config=wanted.config,
        created_at=now,
        updated_at=now,
        trouble="",
    )
    session.add(row)
    session.flush()
    return show(session, [row])[0]


def change(session: Session, hub: Hub, source_id: str, wanted: ChangeSource) -> Source:
    """Set a source's name or configuration."""
    row = queries.get_source(session, source_id)
    if wanted.name is not None:
        queries.check_name_free(session, wanted.name, but=source_id)
        row.name = wanted.name
    if wanted.config is not None:
        row.config = wanted.config
    row.updated_at = hub.clock.now()
    session.flush()
    return show(session, [row])[0]


def delete(session: Session, source_id: str) -> None:
    """Forget a source and its VMs. Raises Conflict while jobs run or its VMs have backups."""
    row = queries.get_source(session, source_id)
    active = jobs.list_active(session, source_id=source_id)
    if active:
        raise Conflict(
            f"job {active[0].id} works on source {row.name}",
            kind="source-busy",
            hint="wait for it, or cancel it",
            job_id=active[0].id,
        )
    vm_ids = queries.list_vm_ids(session, source_id)
    count = backups.count_live(session, vm_ids=vm_ids)
    if count:
        raise Conflict(
            f"VMs of source {row.name} have {count} backups",
            kind="source-has-backups",
            hint="delete the backups first, or keep the source",
            backups=count,
        )
    queries.delete_source(session, source_id)


def try_out(hub: Hub, kind: str, config: Mapping[str, Any]) -> SourceTested:
    """Contact a platform. Raises Invalid, Denied or Unavailable with a hint."""
    hub.check_source(kind, config)
    source = hub.open_source(kind, config)
    try:
        return SourceTested(reachable=True, detail=source.probe())
    finally:
        source.close()


def start_discovery(session: Session, hub: Hub, source_id: str) -> DiscoverAccepted:
    """Write a pending discovery; one that is under way already is answered instead."""
    row = queries.get_source(session, source_id)
    for job in jobs.list_active(session, source_id=source_id):
        if job.kind == JobKind.DISCOVERY and job.cancel_requested_at is None:
            return DiscoverAccepted(job_id=job.id, status=job.status, source_id=row.id)
    job_id = new_id("job", hub.ids)
    jobs.create_job(
        session,
        jobs.NewJob(
            id=job_id,
            kind=JobKind.DISCOVERY,
            subject={"source_id": source_id},
            priority=job_service.PRIORITY_INTERACTIVE,
            created_at=hub.clock.now(),
            source_id=source_id,
        ),
    )
    return DiscoverAccepted(job_id=job_id, source_id=source_id)
