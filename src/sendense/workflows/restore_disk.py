"""Restores a disk of a backup to a file.

    restore   read, verify, write under a hidden name, then give the file its name
    finish    the job ends

No half file is left: the engine removes its own, and one that a killed worker left has the job's
id in its name and goes with the next attempt.
"""

from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from sendense.core.errors import Denied, SendenseError
from sendense.durable.definition import Retry, Workflow, step
from sendense.durable.flow import Flow
from sendense.engine import restore as engine
from sendense.engine.progress import Progress
from sendense.hub.backups import queries as backups
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs.schemas import JobStatus
from sendense.hub.restores import queries as restores
from sendense.workflows.context import Context, begin, get_repository
from sendense.workflows.ending import FINISH_RETRY, ending_of, from_data, to_data
from sendense.workflows.watch import watch

RESTORE_RETRY = Retry(attempts_max=3, interval_seconds=2.0)


@step("restore", retry=RESTORE_RETRY)
def restore(context: Context, job_id: str) -> dict[str, Any]:
    """Write the file, whole and durable, and return what was written."""
    with context.catalog.write() as session:
        job = begin(session, context, job_id)
        restore_id = str(job.subject["restore_id"])
        row = restores.begin_restore(session, restore_id, now=context.now())
        backup = backups.get_backup(session, row.backup_id)
        repository_row = get_repository(session, backup.repository_id)
    progress = Progress(context.clock)

    def report(session: Session) -> None:
        counted = progress.snapshot()
        jobs.set_phase(session, job_id, counted.phase, now=context.now())
        restores.set_progress(
            session,
            restore_id,
            bytes_total=counted.bytes_total,
            bytes_written=counted.bytes_read,
            rate=counted.rate,
            now=context.now(),
        )

    with (
        watch(context, job_id, report=report) as control,
        context.open_repository(repository_row) as repository,
        repository.open_disk_reader(row.backup_id, row.key) as reader,
    ):
        request = engine.RestoreRequest(
            path=_resolve(context, row.target["path"]),
            format=engine.Format(row.target["format"]),
            overwrite=row.overwrite,
            tag=job_id,
        )
        written = engine.restore_disk_to_file(reader, request, control=control, progress=progress)
    return {"path": str(written.path), "size_bytes": written.size_bytes}


def _resolve(context: Context, path: str) -> Path:
    """Return the target, looked at again: links may have changed since the request."""
    resolved = context.resolve_path(path)
    if str(resolved) != path:
        raise Denied(
            f"{path} leads elsewhere than when the restore was asked for",
            kind="path-not-allowed",
            hint="ask for the restore again",
            path=path,
        )
    return resolved


@step("finish", retry=FINISH_RETRY)
def finish(context: Context, job_id: str, written: dict[str, Any]) -> None:
    """End restore and job well."""
    now = context.now()
    with context.catalog.write() as session:
        restore_id = str(jobs.get_job(session, job_id).subject["restore_id"])
        restores.finish_restore(session, restore_id, JobStatus.COMPLETED, now=now)
        jobs.finish(session, job_id, JobStatus.COMPLETED, now=now, result=written)


@step("fail", retry=FINISH_RETRY)
def fail(context: Context, job_id: str, reason: dict[str, Any]) -> None:
    """End restore and job with the reason."""
    error = from_data(reason)
    now = context.now()
    with context.catalog.write() as session:
        restore_id = str(jobs.get_job(session, job_id).subject["restore_id"])
        restores.finish_restore(session, restore_id, ending_of(error), now=now, error=error)
        jobs.finish(session, job_id, ending_of(error), now=now, error=error)


def restore_disk(flow: Flow[Context]) -> None:
    """Restore, then end the job, whatever happened."""
    try:
        written = flow.run(restore, flow.job_id)
    except SendenseError as error:
        flow.run(fail, flow.job_id, to_data(error))
        return
    flow.run(finish, flow.job_id, written)


RESTORE_DISK = Workflow[Context]("restore_disk", restore_disk, (restore, finish, fail))
