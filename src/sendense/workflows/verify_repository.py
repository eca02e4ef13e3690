"""Verifies what a repository stores, longest unverified first, within a budget.

verify   read packs and put bad ones into quarantine
finish   the job ends with the report; damage makes it a failed job
"""

from typing import Any

from sqlalchemy.orm import Session

from sendense.core.errors import Corrupt
from sendense.durable.definition import Retry, step
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs.queries import JobProgress
from sendense.hub.jobs.schemas import JobStatus
from sendense.repository.verify import run
from sendense.repository.verify.run import Budget, Level
from sendense.workflows.context import Context, begin, get_repository
from sendense.workflows.ending import FINISH_RETRY, one_step
from sendense.workflows.watch import watch

VERIFY_RETRY = Retry(attempts_max=3, interval_seconds=2.0)
PROBLEMS_SHOWN_MAX = 50  # of a job's result; the command line on the path itself shows all


@step("verify", retry=VERIFY_RETRY)
def verify(context: Context, job_id: str) -> dict[str, Any]:
    """Verify and return the report. Begun again, it goes on with what is still due."""
    with context.catalog.write() as session:
        job = begin(session, context, job_id)
        row = get_repository(session, str(job.subject["repository_id"]))
        subject = job.subject
    phase, percent = "verifying", 0.0

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
            phase, percent = f"verifying {what}"[:32], 100.0 * done / total if total else 0.0

        found = run.verify(
            repository,
            Level(subject["level"]),
            Budget(subject["bytes_max"], subject["seconds_max"]),
            progress=note,
        )
    return found.to_json(problems_max=PROBLEMS_SHOWN_MAX)


@step("finish", retry=FINISH_RETRY)
def finish(context: Context, job_id: str, report: dict[str, Any]) -> None:
    """End the job: well where nothing bad is known, else as failed, with the report."""
    error = None
    if not report["clean"]:
        error = Corrupt(
            f"the repository is damaged: {report['quarantined_count']} packs are bad",
            kind="repository-damaged",
            hint="the job's result says what is hurt; back up again: what the VMs still have is "
            "stored anew",
        )
    status = JobStatus.COMPLETED if error is None else JobStatus.FAILED
    with context.catalog.write() as session:
        jobs.finish(session, job_id, status, now=context.now(), error=error, result=report)


VERIFY_REPOSITORY = one_step("verify_repository", verify, finish)
