"""Frees what no backup in a repository needs any more, or says what could be freed.

collect   finish the generation that is open, do the next; or look what would go, and change nothing
finish    the job ends with what was done
"""

from dataclasses import asdict
from typing import Any

from sqlalchemy.orm import Session

from sendense.durable.definition import Retry, step
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs.queries import JobProgress
from sendense.hub.repositories import neighbours
from sendense.repository.gc import run
from sendense.repository.gc.protocol import GRACE_SECONDS, Options
from sendense.repository.gc.verdict import Limits
from sendense.workflows.context import Context, begin, get_repository
from sendense.workflows.ending import one_step
from sendense.workflows.watch import watch

COLLECT_RETRY = Retry(attempts_max=3, interval_seconds=2.0)
SESSIONS_SHOWN_MAX = 20
LIMITS = Limits()


@step("collect", retry=COLLECT_RETRY)
def collect(context: Context, job_id: str) -> dict[str, Any]:
    """Collect, or look what would go; return what came of it. Begun again, it goes on."""
    with context.catalog.write() as session:
        job = begin(session, context, job_id)
        row = get_repository(session, str(job.subject["repository_id"]))
        subject = job.subject
    phase, percent = "looking", 0.0

    def report(session: Session) -> None:
        jobs.set_phase(session, job_id, phase, now=context.now())
        jobs.set_progress(session, job_id, JobProgress(percent), now=context.now())

    options = Options(
        grace_seconds=0.0 if subject["now"] else GRACE_SECONDS,
        is_confirmed=subject["confirmed"],
        deletes_per_second=subject["deletes_per_second"],
        limits=LIMITS,
    )
    with (
        watch(context, job_id, report=report) as control,
        context.open_repository(row) as repository,
    ):
        if subject["preview"]:
            found = asdict(run.preview(repository, options))
            found["waits_for"] = found["waits_for"][:SESSIONS_SHOWN_MAX]
            return found

        def note(what: str, done: int, total: int) -> None:
            nonlocal phase, percent
            control.check()
            phase, percent = what, 100.0 * done / total if total else 0.0

        def wait(sessions: tuple[str, ...]) -> None:
            note("waiting for backups", 0, len(sessions))

        done = run.run(repository, options, progress=note, on_wait=wait)
        manifests, _ = repository.backups.scan()
    with context.catalog.write() as session:
        neighbours.note_foreign(session, row.id, manifests)
    return asdict(done)


COLLECT_GARBAGE = one_step("collect_garbage", collect)
