"""Discovery: what VMs and disks a source has.

    discover         ask the source for everything, then write it in one transaction
    remove_orphans   snapshots of ours that nobody works with any more
    finish           end the job

A source that does not answer changes nothing.
"""

import contextlib
import logging
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from sendense.connectors.base import SnapshotOutcome
from sendense.connectors.capability import Identified, LeftSnapshot, Noticing, Sweepable
from sendense.core.errors import Cancelled, SendenseError
from sendense.db.tables import SourceRow
from sendense.durable.definition import Retry, Workflow, step
from sendense.durable.flow import Flow
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs.schemas import JobStatus
from sendense.hub.sources import queries as sources
from sendense.hub.vms import queries as vms
from sendense.workflows.backup_plan import SNAPSHOT_PREFIX
from sendense.workflows.context import Context, begin, get_source
from sendense.workflows.ending import FINISH_RETRY, ending_of, from_data, to_data

_log = logging.getLogger(__name__)

# A person waits for the answer: a source that is away is told about soon.
DISCOVER_RETRY = Retry(attempts_max=2, interval_seconds=1.0)
# A snapshot grows with every write of the guest: a person should know of one that is a day old.
OLD = timedelta(hours=24)
# Of a job that the catalog does not know: another hub of this name, made from a copy of its
# database, may have begun it.
UNKNOWN_AGE_MIN = timedelta(hours=1)
NOTICES_MAX = 100  # what is wrong with more VMs than that is wrong with the source


@step("discover", retry=DISCOVER_RETRY)
def discover(context: Context, job_id: str) -> dict[str, Any]:
    """Write all VMs and disks of the source into the catalog."""
    with context.catalog.write() as session:
        job = begin(session, context, job_id)
        source_row = get_source(session, job.source_id)
    context.check(job_id)
    with context.open_source(source_row) as source:
        identity = source.identify() if isinstance(source, Identified) else None
        found = source.list_vms()
        notices = source.list_notices() if isinstance(source, Noticing) else ()
        with context.catalog.read() as session:
            known = vms.list_present_uuids(session, source_row.id)
        missing = known - {vm.uuid for vm in found}
        gone = source.confirm_gone(missing) if missing else frozenset()
    context.check(job_id)
    with context.catalog.write() as session:
        source_row = get_source(session, source_row.id)
        if identity is not None:
            sources.settle_identity(session, source_row, identity)
        report = vms.upsert_vms(
            session,
            source_row,
            found,
            gone=gone,
            ids=context.ids,
            now=context.now(),
        )
        for change in report.changes:
            jobs.add_log(session, job_id, change, now=context.now())
        for notice in notices[:NOTICES_MAX]:
            jobs.add_log(session, job_id, notice, now=context.now(), level="warning")
    return asdict(report)


@step("remove_orphans", retry=DISCOVER_RETRY)
def remove_orphans(context: Context, job_id: str) -> None:
    """Remove snapshots of this hub whose job is dead, and tell of those that are old.

    A job removes its own, and its clean-up tries again; left are those of jobs that the catalog
    does not know, as after its restore, or whose worker died between two lines.
    """
    with context.catalog.read() as session:
        job = jobs.get_job(session, job_id)
        source_row = get_source(session, job.source_id)
    with context.open_source(source_row) as source:
        if not isinstance(source, Sweepable):
            return
        for left in source.list_left():
            line = _judge(context, left)
            if line is None:
                continue
            context.check(job_id)
            if line.is_orphan:
                source.remove_snapshot(left.reference, SnapshotOutcome.DISCARDED, frozenset())
            _log.warning("source %s: %s", source_row.name, line.text)
            with context.catalog.write() as session:
                jobs.add_log(session, job_id, line.text, now=context.now(), level="warning")


@dataclass(frozen=True, slots=True)
class _Line:
    text: str
    is_orphan: bool


def _judge(context: Context, left: LeftSnapshot) -> _Line | None:
    """Return what to say of a snapshot of ours, and whether it goes; None for one in use."""
    owner_id = left.name.removeprefix(SNAPSHOT_PREFIX)
    age = context.now() - left.created_at
    with context.catalog.read() as session:
        owner = jobs.find_job(session, owner_id)
        is_active = owner is not None and JobStatus(owner.status).is_active
    what = f"the snapshot of job {owner_id} on VM {left.vm_uuid}"
    if is_active:
        hours = age.total_seconds() / 3600
        return _Line(f"{what} is {hours:.0f} hours old", is_orphan=False) if age > OLD else None
    if owner is None and age < UNKNOWN_AGE_MIN:
        return None
    return _Line(f"{what} was left behind; it was removed", is_orphan=True)


@step("finish", retry=FINISH_RETRY)
def finish(context: Context, job_id: str, report: dict[str, Any]) -> None:
    """End the job well."""
    with context.catalog.write() as session:
        jobs.finish(session, job_id, JobStatus.COMPLETED, now=context.now(), result=report)


@step("fail", retry=FINISH_RETRY)
def fail(context: Context, job_id: str, reason: dict[str, Any]) -> None:
    """End the job with the reason; the source remembers it."""
    error = from_data(reason)
    with context.catalog.write() as session:
        job = jobs.finish(session, job_id, ending_of(error), now=context.now(), error=error)
        source = session.get(SourceRow, job.source_id or "")
        if source is not None and not isinstance(error, Cancelled):
            source.trouble = error.message[: jobs.MESSAGE_LENGTH_MAX]


def discover_vms(flow: Flow[Context]) -> None:
    """Discover, then end the job, whatever happened."""
    try:
        report = flow.run(discover, flow.job_id)
    except SendenseError as error:
        flow.run(fail, flow.job_id, to_data(error))
        return
    # What was discovered counts, whatever is left behind; the next discovery tries again.
    with contextlib.suppress(SendenseError):
        flow.run(remove_orphans, flow.job_id)
    flow.run(finish, flow.job_id, report)


DISCOVER_VMS = Workflow[Context](
    "discover_vms", discover_vms, (discover, remove_orphans, finish, fail)
)
