"""Restores a disk of a backup to a file, or into a VM that is off.

    restore   read, verify, write under a hidden name, then give the file its name; or overwrite
    finish    the job ends

No half file is left: the engine removes its own, and one that a killed worker left has the job's
id in its name and goes with the next attempt, or with the end of the job. By the same name an
attempt finds that the one before had finished the file. A VM's disk is overwritten in place, so a
restore that fails leaves it half written, and says so.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from sendense.connectors.capability import Receiving
from sendense.core.errors import Denied, SendenseError
from sendense.db.tables import RestoreRow
from sendense.durable.definition import Retry, step
from sendense.engine import publish
from sendense.engine import restore as engine
from sendense.engine.control import Control
from sendense.engine.progress import Progress
from sendense.engine.restore import Reader
from sendense.hub.backups import queries as backups
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs.schemas import JobStatus
from sendense.hub.restores import queries as restores
from sendense.hub.restores.schemas import TargetType
from sendense.hub.vms import queries as vms
from sendense.workflows.context import Context, begin, get_repository, get_source
from sendense.workflows.ending import FINISH_RETRY, ending_of, from_data, one_step
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
        if row.target["type"] == TargetType.VM:
            return _overwrite(context, row, reader, control, progress)
        request = engine.RestoreRequest(
            path=_resolve(context, row.target["path"]),
            format=engine.Format(row.target["format"]),
            overwrite=row.overwrite,
            tag=job_id,
        )
        written = engine.restore_disk_to_file(reader, request, control=control, progress=progress)
    return {"path": str(written.path), "size_bytes": written.size_bytes}


def _overwrite(
    context: Context, row: RestoreRow, reader: Reader, control: Control, progress: Progress
) -> dict[str, Any]:
    """Write a disk of a VM, all of it and durable."""
    target = row.target
    with context.catalog.read() as session:
        vm = vms.get_vm(session, target["vm_id"])
        source_row = get_source(session, vm.source_id)
    what = f"{target['disk_id']} of VM {target['vm_name']}"
    begun = False
    try:
        with context.open_source(source_row) as source:
            assert isinstance(source, Receiving), f"{source_row.type} was refused before"
            with source.open_for_restore(
                target["vm_uuid"],
                target["key"],
                size_bytes=reader.size_bytes,
                disk_uuid=target["uuid"],
            ) as address:
                begun = True
                engine.restore_disk_to_export(reader, address, control=control, progress=progress)
    except SendenseError as error:
        if not begun or error.kind == "target-size-differs":
            raise
        error.hint = f"{what} is half written: do not start the VM before a restore completes"
        raise
    return {"vm_id": vm.id, "disk_id": target["disk_id"], "size_bytes": reader.size_bytes}


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


def _forget_hidden(context: Context, job_id: str) -> None:
    """Remove what attempts of the job left beside the target."""
    with context.catalog.read() as session:
        row = restores.get_restore(
            session, str(jobs.get_job(session, job_id).subject["restore_id"])
        )
        if row.target["type"] == TargetType.VM:
            return
        path = str(row.target["path"])
    with suppress(SendenseError):  # it leads elsewhere now, where nothing of ours is
        publish.forget(_resolve(context, path), tag=job_id)


@step("finish", retry=FINISH_RETRY)
def finish(context: Context, job_id: str, written: dict[str, Any]) -> None:
    """End restore and job well."""
    _forget_hidden(context, job_id)
    now = context.now()
    with context.catalog.write() as session:
        restore_id = str(jobs.get_job(session, job_id).subject["restore_id"])
        restores.finish_restore(session, restore_id, JobStatus.COMPLETED, now=now)
        jobs.finish(session, job_id, JobStatus.COMPLETED, now=now, result=written)


@step("fail", retry=FINISH_RETRY)
def fail(context: Context, job_id: str, reason: dict[str, Any]) -> None:
    """End restore and job with the reason."""
    _forget_hidden(context, job_id)
    error = from_data(reason)
    now = context.now()
    with context.catalog.write() as session:
        restore_id = str(jobs.get_job(session, job_id).subject["restore_id"])
        restores.finish_restore(session, restore_id, ending_of(error), now=now, error=error)
        jobs.finish(session, job_id, ending_of(error), now=now, error=error)


RESTORE_DISK = one_step("restore_disk", restore, finish, fail)
