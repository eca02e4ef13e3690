"""Exports what the hub knows into a repository, sealed with the hub's own key.

export   gather the catalog's rows in one view, put them, remove old exports
finish   the job ends with what was put
"""

from typing import Any

from sqlalchemy.orm import Session

from sendense.durable.definition import Retry, step
from sendense.hub.exports import service
from sendense.hub.jobs import queries as jobs
from sendense.repository import hub_exports
from sendense.workflows.context import Context, begin, get_repository
from sendense.workflows.ending import one_step
from sendense.workflows.watch import watch

EXPORT_RETRY = Retry(attempts_max=3, interval_seconds=2.0)


@step("export", retry=EXPORT_RETRY)
def export(context: Context, job_id: str) -> dict[str, Any]:
    """Export; begun again after a crash, it makes a new export and leaves the half one."""
    with context.catalog.write() as session:
        job = begin(session, context, job_id)
        row = get_repository(session, str(job.subject["repository_id"]))
    phase = "gathering"

    def report(session: Session) -> None:
        jobs.set_phase(session, job_id, phase, now=context.now())

    with (
        watch(context, job_id, report=report) as control,
        context.open_repository(row) as repository,
    ):
        gathered = service.gather(context.exporter)
        control.check()
        phase = "storing"
        place = hub_exports.open_place(repository.storage, gathered.root_key)
        made = hub_exports.put(place, gathered.about, gathered.packed, context.ids)
    with context.catalog.write() as session:
        for warning in gathered.warnings:
            jobs.add_log(session, job_id, warning, now=context.now(), level="warning")
    return {
        "export": made.folder,
        "rows": sum(made.head.tables.values()),
        "bytes": sum(map(len, gathered.packed.parts)),
        "warnings": list(gathered.warnings),
    }


EXPORT_HUB = one_step("export_hub", export)
