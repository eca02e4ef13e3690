"""`sendense job`: everything the server does or did."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from sendense.cli import paging, text, waiting
from sendense.cli.command import Session, command, group
from sendense.cli.output import Column

app = group("job", "What the server is doing and did.")

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")]


class JobStatus(StrEnum):
    """States a job can be in."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobKind(StrEnum):
    """What a job does."""

    BACKUP = "backup"
    RESTORE = "restore"
    DISCOVERY = "discovery"
    CHECK = "check"
    IMPORT = "import"
    GC = "gc"
    VERIFY = "verify"
    HUB_EXPORT = "hub_export"


@command(app, "list", examples=["sendense job list", "sendense job list --status running"])
def list_jobs(
    session: Session,
    status: Annotated[JobStatus | None, typer.Option(help="Only in this state.")] = None,
    kind: Annotated[JobKind | None, typer.Option(help="Only of this kind.")] = None,
    limit: paging.LimitOption = None,
    offset: paging.OffsetOption = None,
) -> None:
    """List jobs."""
    answer = session.api.get("jobs", status=status, kind=kind, limit=limit, offset=offset)
    if session.answered(answer):
        return
    entries = answer.data["jobs"]
    if not entries:
        session.output.note("no jobs")
        return
    session.output.table(
        [
            Column("CREATED (UTC)"),
            Column("KIND"),
            Column("STATUS"),
            Column("DONE", right=True),
            Column("PHASE"),
            Column("JOB"),
        ],
        [
            (
                text.moment(entry.get("created_at")),
                entry.get("kind"),
                entry.get("status"),
                text.percent(entry.get("progress_percent")),
                entry.get("current_phase") or text.MISSING,
                entry.get("job_id"),
            )
            for entry in entries
        ],
    )
    session.output.shown(len(entries), answer.data)
    for entry in entries:
        if entry.get("waiting_reason"):
            session.output.warn(f"job {entry.get('job_id')} waits: {entry['waiting_reason']}")


@command(app, "show", examples=["sendense job show job-0123456789abcdef"])
def show(session: Session, job: JobArgument) -> None:
    """Show one job with its steps, attempts and error."""
    answer = session.api.get("jobs", job)
    if session.answered(answer):
        return
    _print_job(session, answer.data)


@command(app, "cancel", examples=["sendense job cancel job-0123456789abcdef"])
def cancel(session: Session, job: JobArgument) -> None:
    """Ask a job to stop; it cleans up after itself."""
    answer = session.api.post("jobs", job, "cancel")
    session.tell(answer, f"job {job} is being cancelled")


@command(app, "retry", examples=["sendense job retry job-0123456789abcdef"])
def retry(session: Session, job: JobArgument) -> None:
    """Run a failed or cancelled job again."""
    answer = session.api.start("jobs", job, "retry")
    if session.answered(answer):
        return
    new_id = answer.data.get("job_id", job)
    session.output.line(f"job {new_id} started")
    session.output.note(f"watch it: sendense job watch {new_id}")


@command(app, "watch", examples=["sendense job watch job-0123456789abcdef"])
def watch(session: Session, job: JobArgument) -> None:
    """Follow a job until it ends; its end decides the exit status. Ctrl-C leaves it running."""
    ended = waiting.wait_for_job(session, job)
    if session.output.as_json:
        session.output.json(ended.job.text)
    waiting.check_completed(ended)
    if not session.output.as_json:
        session.output.line(f"job {job} completed")


def _print_job(session: Session, job: dict[str, Any]) -> None:
    message, hint = waiting.read_error(job.get("error"))
    subject = job.get("subject")
    session.output.facts(
        [
            ("Job", job.get("job_id")),
            ("Kind", job.get("kind")),
            ("Subject", text.listing(subject) if subject else None),
            ("Status", job.get("status")),
            ("Error", message),
            ("Hint", hint),
            ("Progress", text.percent(job.get("progress_percent"))),
            ("Phase", job.get("current_phase")),
            ("Waits", job.get("waiting_reason")),
            ("Done", _done(job)),
            ("Result", text.listing(job["result"]) if job.get("result") else None),
            ("Attempts", job.get("attempts")),
            ("Retry of", job.get("retry_of")),
            ("Created", text.moment(job.get("created_at"))),
            ("Took", text.between(job.get("started_at"), job.get("completed_at"))),
        ]
    )
    steps = [step for step in job.get("steps") or [] if isinstance(step, dict)]
    if steps:
        session.output.line("")
        session.output.table(
            [Column("STEP"), Column("STATUS"), Column("TOOK", right=True), Column("ERROR")],
            [
                (
                    step.get("name"),
                    step.get("status") or text.MISSING,
                    text.between(step.get("started_at"), step.get("completed_at")),
                    waiting.read_error(step.get("error"))[0] or text.MISSING,
                )
                for step in steps
            ],
        )
    for line in job.get("log") or []:
        if isinstance(line, dict):
            said = f"{line.get('level')}: {line.get('message')}"
            session.output.line(f"{text.moment(line.get('at'))}  {said}")


def _done(job: dict[str, Any]) -> str | None:
    if not job.get("bytes_total"):
        return None
    return f"{text.size(job.get('bytes_done'))} of {text.size(job['bytes_total'])}"
