"""Checks a repository: is everything there that its backups need?

check    walk objects, index and disk maps; read all data where that is asked for
finish   the job ends with the report; damage makes it a failed job
"""

from dataclasses import asdict
from typing import Any

from sqlalchemy.orm import Session

from sendense.core.errors import Corrupt
from sendense.durable.definition import Retry, step
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs.queries import JobProgress
from sendense.hub.jobs.schemas import JobStatus
from sendense.hub.repositories import neighbours
from sendense.repository import check as checker
from sendense.workflows.context import Context, begin, get_repository
from sendense.workflows.ending import FINISH_RETRY, one_step
from sendense.workflows.watch import watch

CHECK_RETRY = Retry(attempts_max=3, interval_seconds=2.0)
PROBLEMS_SHOWN_MAX = 50  # of a job's result; the command line's check shows all


@step("check", retry=CHECK_RETRY)
def check(context: Context, job_id: str) -> dict[str, Any]:
    """Check the repository and return the report."""
    with context.catalog.write() as session:
        job = begin(session, context, job_id)
        row = get_repository(session, str(job.subject["repository_id"]))
    phase, percent = "checking", 0.0

    def report(session: Session) -> None:
        jobs.set_phase(session, job_id, phase, now=context.now())
        jobs.set_progress(session, job_id, JobProgress(percent), now=context.now())

    with (
        watch(context, job_id, report=report) as control,
        context.open_repository(row) as repository,
    ):

        def note(what: str, done: int, total: int) -> None:
            nonlocal phase, percent
            control.check()
            phase = what[:32]
            percent = 100.0 * done / total if total else 0.0

        found = checker.check(
            repository, progress=note, read_data=bool(job.subject.get("read_data"))
        )
        manifests, _ = repository.backups.scan()
    with context.catalog.write() as session:
        neighbours.note_foreign(session, row.id, manifests)
    shown = asdict(found)
    shown["problems"] = shown["problems"][:PROBLEMS_SHOWN_MAX]
    return {**shown, "clean": found.clean}


@step("finish", retry=FINISH_RETRY)
def finish(context: Context, job_id: str, report: dict[str, Any]) -> None:
    """End the job: well where the repository is whole, else as failed, with the report."""
    error = None
    if not report["clean"]:
        first = report["problems"][0]["message"] if report["problems"] else "see the report"
        error = Corrupt(
            f"{report['error_count']} things are wrong in the repository: {first}",
            kind="repository-damaged",
            hint="the job's result lists them; restore what can be read, and back up again",
        )
    status = JobStatus.COMPLETED if error is None else JobStatus.FAILED
    with context.catalog.write() as session:
        jobs.finish(session, job_id, status, now=context.now(), error=error, result=report)


CHECK_REPOSITORY = one_step("check_repository", check, finish)
