"""One disk of a backup, from its snapshot into the repository: a child of `backup_vm`.

    transfer   read, deduplicate, store; goes on from the last checkpoint after a crash

No database transaction is open while bytes move.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

from sqlalchemy.orm import Session

from sendense.connectors import impact
from sendense.connectors.base import Consistency, DiskView
from sendense.connectors.capability import Measuring
from sendense.core.clock import Clock
from sendense.core.errors import Cancelled, Conflict, SendenseError, Unavailable
from sendense.durable import sweep
from sendense.durable.definition import Retry, Workflow, step
from sendense.durable.flow import Flow
from sendense.engine import backup, plan
from sendense.engine.backup import Task, Transfer
from sendense.engine.control import Control
from sendense.engine.plan import Decision
from sendense.engine.progress import Progress
from sendense.engine.throttle import Throttle
from sendense.hub.backups import queries as backups
from sendense.hub.backups.queries import DiskProgress
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs.schemas import JobStatus
from sendense.repository.manifest import DiskIdentity, Mode
from sendense.repository.writer import DiskWriter
from sendense.workflows import backup_plan, snapshots
from sendense.workflows.backup_plan import Subject
from sendense.workflows.context import Context
from sendense.workflows.ending import FINISH_RETRY, to_data
from sendense.workflows.watch import watch

# A source or storage that is away for a minute or two costs a pause, not the backup.
TRANSFER_RETRY = Retry(attempts_max=6, interval_seconds=2.0, interval_seconds_max=60.0)


@runtime_checkable
class Witness(Protocol):
    """A source that holds no moment, but can tell afterwards whether one was read."""

    def was_written(self, reference: dict[str, Any], key: int) -> bool:
        """Whether a disk changed since its snapshot."""
        ...


@step("transfer", retry=TRANSFER_RETRY)
def transfer(
    context: Context, job_id: str, snapshot_data: dict[str, Any], decision_data: dict[str, Any]
) -> dict[str, Any]:
    """Write one disk into the job's session, whole and durable; return warnings about it."""
    with context.catalog.read() as session:
        subject = backup_plan.load(session, job_id)
    snapshot = snapshots.from_data(snapshot_data)
    decided = backup_plan.from_data(decision_data)
    key = decided.key
    with context.open_repository(subject.repository) as repository:
        done = repository.find_finished_disk(job_id, key, moment=snapshot.moment)
        if done is not None:
            return {"key": key, "warnings": [], "consistency": None}
        disk = next(one for one in snapshot.disks if one.key == key)
        identity = DiskIdentity(
            key=key,
            index=subject.get_disk(key).index,
            label=subject.get_disk(key).label,
            uuid=disk.uuid,
            size_bytes=disk.size_bytes,
            lineage=subject.lineage(key),
        )
        progress = Progress(context.clock)
        told: deque[str] = deque()

        def open_writer(parent_backup_id: str | None, mode: Mode) -> DiskWriter:
            writer = repository.open_disk_writer(
                job_id,
                identity,
                moment=snapshot.moment,
                mode=mode,
                parent_backup_id=parent_backup_id,
            )
            _note_resumption(context, job_id, key, writer.resume_index)
            return writer

        with (
            watch(
                context,
                job_id,
                report=lambda session: _report(session, context, subject, key, progress, told),
                look=lambda session: _find_failed(session, subject, key),
            ) as control,
            context.open_source(subject.source) as source,
            source.open_disk(snapshot.reference, key) as view,
        ):
            throttle = _open_throttle(subject, key, view, control, clock=context.clock, told=told)

            def attempt(parent_backup_id: str | None, decision: Decision) -> Transfer:
                opener = partial(open_writer, parent_backup_id)
                return backup.back_up_disk(
                    Task(
                        view,
                        opener,
                        decision,
                        snapshot.moment,
                        disk.change_id,
                        throttle.hold_back,
                    ),
                    settings=replace(context.transfer, level=repository.compression_level),
                    control=control,
                    progress=progress,
                )

            moved = _move(attempt, decided)
            written = isinstance(source, Witness) and source.was_written(snapshot.reference, key)
    what = _tell(subject.get_disk(key).disk_id, moved, throttle, written=written)
    return {"key": key, **what}


def _open_throttle(
    subject: Subject, key: int, view: DiskView, control: Control, *, clock: Clock, told: deque[str]
) -> Throttle:
    """Return what keeps a transfer to the limit of its source, and says so in `told`."""
    name = subject.get_disk(key).disk_id

    def measure() -> float | None:
        if not isinstance(view, Measuring):
            raise Unavailable("the source does not tell")
        return control.run_apart(view.measure_write_latency, name=f"measure-{name}")

    return Throttle(
        impact.get_limit(subject.source.config),
        clock=clock,
        wait=control.wait,
        measure=measure,
        tell=lambda what: told.append(f"{name} is {what}"),
    )


def _move(
    attempt: Callable[[str | None, Decision], Transfer], decided: backup_plan.DiskDecision
) -> Transfer:
    """Transfer as decided, or in full where the parent was deleted since the backup began."""
    try:
        return attempt(decided.parent_backup_id, decided.decision)
    except Conflict as error:
        if error.kind != "parent-deleted":
            raise
        return attempt(None, plan.parent_deleted())


def _tell(disk_id: str, moved: Transfer, throttle: Throttle, *, written: bool) -> dict[str, Any]:
    """Return what the user must know about a transfer: warnings, and a consistency spoilt."""
    warnings = []
    if moved.suspect_reason is not None:
        warnings.append(f"{disk_id}: {moved.suspect_reason}; all of the disk was read")
    if written:
        warnings.append(
            f"{disk_id} was written while it was read: what was stored is no state of one moment"
        )
    warnings += [f"{disk_id}: {note}" for note in throttle.list_notes()]
    return {"warnings": warnings, "consistency": Consistency.NONE if written else None}


def _report(
    session: Session,
    context: Context,
    subject: Subject,
    key: int,
    progress: Progress,
    told: deque[str],
) -> None:
    counted = progress.snapshot()
    backups.set_disk_progress(
        session,
        subject.backup.id,
        key,
        DiskProgress(
            bytes_total=counted.bytes_total,
            bytes_read=counted.bytes_read,
            bytes_new=counted.bytes_new,
            bytes_deduplicated=counted.bytes_deduplicated,
            rate=counted.rate,
        ),
        now=context.now(),
    )
    while told:
        jobs.add_log(session, subject.job_id, told.popleft(), now=context.now())


def _find_failed(session: Session, subject: Subject, key: int) -> str | None:
    """Return why this transfer need not go on: another disk of the backup has failed."""
    for disk in backups.list_disks(session, [subject.backup.id])[subject.backup.id]:
        if disk.key != key and disk.status == JobStatus.FAILED:
            return f"{disk.disk_id} of the same backup failed"
    return None


def _note_resumption(context: Context, job_id: str, key: int, resume_index: int) -> None:
    """Start counting take-overs anew where checkpoints were made since the last one."""
    with context.catalog.write() as session:
        job = jobs.get_job(session, job_id)
        resumed = dict(job.progress.get("resumed", {}))
        if resume_index > int(resumed.get(str(key), 0)):
            resumed[str(key)] = resume_index
            job.progress = {**job.progress, "resumed": resumed}
            sweep.forget_take_overs(session, job_id)


@step("mark_disk_failed", retry=FINISH_RETRY)
def mark_disk_failed(context: Context, job_id: str, key: int) -> None:
    """Let the other disks of the backup know that they may stop."""
    with context.catalog.write() as session:
        backup_id = str(jobs.get_job(session, job_id).subject["backup_id"])
        for disk in backups.list_disks(session, [backup_id])[backup_id]:
            if disk.key == key:
                disk.status = JobStatus.FAILED


def transfer_disk(
    flow: Flow[Context], snapshot_data: dict[str, Any], decision_data: dict[str, Any]
) -> dict[str, Any]:
    """Transfer a disk; where that fails, tell its siblings and return the error as data.

    Returned, not raised: it is the parent that decides what a failure means.
    """
    try:
        return flow.run(transfer, flow.job_id, snapshot_data, decision_data)
    except Cancelled as error:
        return {"error": to_data(error)}
    except SendenseError as error:
        flow.run(mark_disk_failed, flow.job_id, decision_data["key"])
        return {"error": to_data(error)}


TRANSFER_DISK = Workflow[Context]("transfer_disk", transfer_disk, (transfer, mark_disk_failed))
