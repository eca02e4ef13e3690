"""Discovery: what VMs and disks a source has.

    discover   ask the source for everything, then write it in one transaction
    finish     end the job

A source that does not answer changes nothing.
"""

from dataclasses import asdict
from typing import Any

from sendense.core.errors import Cancelled, SendenseError
from sendense.db.tables import SourceRow
from sendense.durable.definition import Retry, Workflow, step
from sendense.durable.flow import Flow
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs.schemas import JobStatus
from sendense.hub.vms import queries as vms
from sendense.workflows.context import Context, begin, get_source
from sendense.workflows.ending import FINISH_RETRY, ending_of, from_data, to_data

# A person waits for the answer: a source that is away is told about soon.
DISCOVER_RETRY = Retry(attempts_max=2, interval_seconds=1.0)


@step("discover", retry=DISCOVER_RETRY)
def discover(context: Context, job_id: str) -> dict[str, Any]:
    """Write all VMs and disks of the source into the catalog."""
    with context.catalog.write() as session:
        job = begin(session, context, job_id)
        source_row = get_source(session, job.source_id)
    context.check(job_id)
    with context.open_source(source_row) as source:
        found = source.list_vms()
    context.check(job_id)
    with context.catalog.write() as session:
        report = vms.upsert_vms(
            session,
            get_source(session, source_row.id),
            found,
            ids=context.ids,
            now=context.now(),
        )
        for change in report.changes:
            jobs.add_log(session, job_id, change, now=context.now())
    return asdict(report)


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
    flow.run(finish, flow.job_id, report)


DISCOVER_VMS = Workflow[Context]("discover_vms", discover_vms, (discover, finish, fail))
