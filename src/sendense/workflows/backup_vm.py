"""Backs up a VM.

    plan             full or incremental per disk, with the reason; refuse early what cannot work
    take_snapshot    all disks at one moment; found again after a crash instead of taken twice
    decide           the plan again, now that the snapshot tells what the platform still knows
    transfer_disk    a child for each disk; resumes from checkpoints
    wait_transfers   until all disks are in the repository
    commit           one atomic step makes the backup exist
    record           the catalog follows: backup, disks, chain
    remove_snapshot  with retries; one that cannot be removed is an alarm, not a failed backup
    finish           the job ends, the VM's slot is free

The order is the contract: data is durable before the commit, the commit is made before the catalog
says "completed", the change ids count only with it, and the snapshot goes whatever happened.
"""

from typing import Any

from sendense.connectors.base import (
    Consistency,
    ConsistencyWish,
    DiskRequest,
    SnapshotOutcome,
    SnapshotRequest,
)
from sendense.core.errors import Cancelled, Conflict, SendenseError
from sendense.durable import schema, sweep
from sendense.durable.client import WorkflowState, WorkflowStatus
from sendense.durable.definition import Retry, Workflow, step
from sendense.durable.flow import Flow, Place
from sendense.engine.plan import Reason
from sendense.hub.backups import queries as backups
from sendense.hub.backups.queries import BackupResult, DiskResult
from sendense.hub.backups.schemas import BackupType
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs.schemas import JobStatus
from sendense.repository.manifest import DiskRecord, Manifest, ManifestDraft, Mode, SkippedDisk
from sendense.repository.session import State
from sendense.workflows import backup_plan, backup_undo, snapshots
from sendense.workflows.backup_plan import Subject
from sendense.workflows.context import Context, begin
from sendense.workflows.ending import FINISH_RETRY, from_data, to_data
from sendense.workflows.transfer_disk import TRANSFER_DISK

# Before anything was done a person waits for the answer.
EARLY_RETRY = Retry(attempts_max=3, interval_seconds=1.0)
# Everything is read and stored: worth five minutes of patience.
COMMIT_RETRY = Retry(attempts_max=10, interval_seconds=1.0, interval_seconds_max=60.0)
DECIDE_ATTEMPTS_MAX = 3  # a parent deleted between choosing and registering it; never thrice
WAIT_SECONDS = 0.25


@step("plan", retry=EARLY_RETRY)
def plan(context: Context, job_id: str) -> list[dict[str, Any]]:
    """Begin the job; decide for which disks to ask the platform for changes."""
    with context.catalog.write() as session:
        begin(session, context, job_id)
        subject = backup_plan.load(session, job_id)
        backups.begin_backup(session, subject.backup.id, now=context.now())
    context.check(job_id)
    with context.open_repository(subject.repository) as repository:
        repository.require_room(0)
        decisions = backup_plan.decide(subject, repository)
    with context.catalog.write() as session:
        backups.set_plan(session, subject.backup.id, backup_plan.to_plans(subject, decisions))
    return [backup_plan.to_data(one) for one in decisions]


@step("take_snapshot", retry=EARLY_RETRY)
def take_snapshot(context: Context, job_id: str, planned: list[dict[str, Any]]) -> dict[str, Any]:
    """Hold all disks at one moment, and remember at once how to find the snapshot again."""
    context.check(job_id)
    with context.catalog.read() as session:
        subject = backup_plan.load(session, job_id)
    decisions = [backup_plan.from_data(one) for one in planned]
    request = SnapshotRequest(
        vm_uuid=subject.vm.vm_uuid,
        name=subject.snapshot_name,
        disks=tuple(
            DiskRequest(one.key, subject.lineage(one.key), one.base_change_id) for one in decisions
        ),
        consistency=ConsistencyWish(subject.backup.consistency_wish),
    )
    with context.open_source(subject.source) as source:
        context.lease.check()
        snapshot = source.take_snapshot(request)
    with context.catalog.write() as session:
        jobs.set_snapshot(session, job_id, snapshot.reference, now=context.now())
        required = jobs.get_job(session, job_id).required_labels or {}
    return {
        **snapshots.to_data(snapshot),
        "partition": subject.source.id,
        "required_labels": required,
    }


@step("decide", retry=EARLY_RETRY)
def decide(context: Context, job_id: str, snapshot_data: dict[str, Any]) -> list[dict[str, Any]]:
    """Decide for good how each disk is read, and register the session with its parents."""
    context.check(job_id)
    with context.catalog.read() as session:
        subject = backup_plan.load(session, job_id)
    disks = {disk.key: disk for disk in snapshots.from_data(snapshot_data).disks}
    with context.open_repository(subject.repository) as repository:
        for attempt in range(1, DECIDE_ATTEMPTS_MAX + 1):
            decisions = backup_plan.decide(subject, repository, disks)
            parents = sorted({one.parent_backup_id for one in decisions if one.parent_backup_id})
            try:
                repository.begin_session(job_id, parents=parents)
                break
            except Conflict as error:
                if error.kind != "parent-deleted" or attempt == DECIDE_ATTEMPTS_MAX:
                    raise
    with context.catalog.write() as session:
        backups.set_plan(
            session, subject.backup.id, backup_plan.to_plans(subject, decisions, disks)
        )
        for one in decisions:
            if one.decision.is_fallback:
                name = subject.get_disk(one.key).disk_id
                jobs.add_log(
                    session,
                    job_id,
                    f"{name} is read in full: {one.decision.reason}",
                    now=context.now(),
                    level="info" if one.decision.code is Reason.NO_TRACKING else "warning",
                )
    return [backup_plan.to_data(one) for one in decisions]


@step("wait_transfers")
def wait_transfers(context: Context, job_id: str, children: list[str]) -> list[dict[str, Any]]:
    """Return what all transfers returned, or raise why the first one failed.

    The children look at the cancel flag themselves; here those are ended that have not begun.
    """
    while True:
        context.lease.check()
        states = context.engine.list_workflows(workflow_ids=children, with_output=True)
        if len(states) == len(children) and all(state.ended for state in states):
            break
        if _must_stop(context, job_id, states):
            for state in states:
                if state.status is WorkflowStatus.QUEUED:
                    context.engine.cancel(state.workflow_id)
        context.clock.sleep(WAIT_SECONDS)
    context.check(job_id)
    _raise_first(states)
    return [dict(state.output) for state in states]


def _raise_first(states: list[WorkflowState]) -> None:
    """Raise why the first transfer failed by itself; those that were stopped only followed."""
    errors = [error for state in states if (error := _error_of(state)) is not None]
    causes = [error for error in errors if not isinstance(error, Cancelled)]
    for error in (*causes, *errors):
        raise error


def _error_of(state: WorkflowState) -> SendenseError | None:
    if state.status is not WorkflowStatus.SUCCEEDED:
        return state.error or Cancelled(f"transfer {state.workflow_id} was cancelled")
    return from_data(state.output["error"]) if "error" in state.output else None


def _must_stop(context: Context, job_id: str, states: list[WorkflowState]) -> bool:
    if any(state.ended and _error_of(state) is not None for state in states):
        return True
    with context.catalog.read() as session:
        return jobs.is_cancel_requested(session, job_id)


@step("commit", retry=COMMIT_RETRY)
def commit(
    context: Context, job_id: str, snapshot_data: dict[str, Any], moved: list[dict[str, Any]]
) -> None:
    """Make the backup exist in the repository. The last moment to cancel is before."""
    context.check(job_id)
    with context.catalog.read() as session:
        subject = backup_plan.load(session, job_id)
    snapshot = snapshots.from_data(snapshot_data)
    told = [warning for one in moved for warning in one["warnings"]]
    worse = [Consistency(one["consistency"]) for one in moved if one["consistency"]]
    backup = subject.backup
    draft = ManifestDraft(
        backup_id=backup.id,
        vm=subject.vm_record,
        disk_keys=tuple(disk.key for disk in subject.disks),
        moment=snapshot.moment,
        consistency=worse[0] if worse else snapshot.consistency,
        requested_type=backup.requested_type,
        created_at=backup.created_at,
        started_at=backup.started_at or backup.created_at,
        job_id=job_id,
        tags=backup.tags,
        warnings=(*snapshot.warnings, *told),
        skipped=tuple(_skipped(entry) for entry in backup.skipped),
    )
    with context.open_repository(subject.repository) as repository:
        context.lease.check()
        repository.commit(job_id, draft)


def _skipped(entry: dict[str, Any]) -> SkippedDisk:
    key = int(str(entry["disk_id"]).removeprefix("disk-"))
    return SkippedDisk(key, int(entry["index"]), str(entry["disk_id"]), str(entry["reason"]))


@step("record", retry=FINISH_RETRY)
def record(context: Context, job_id: str) -> None:
    """Let the catalog follow the commit: backup, disks and chain in one transaction."""
    with context.catalog.read() as session:
        subject = backup_plan.load(session, job_id)
    with context.open_repository(subject.repository) as repository:
        outcome = repository.find_outcome(job_id)
    assert outcome is not None, "recorded only behind the commit"
    assert outcome.manifest is not None, "recorded only behind the commit"
    manifest = outcome.manifest
    with context.catalog.write() as session:
        backups.complete_backup(session, _result(subject, manifest), now=manifest.completed_at)
        for warning in manifest.warnings:
            jobs.add_log(session, job_id, warning, now=context.now(), level="warning")
        sweep.forget_take_overs(session, job_id)


def _result(subject: Subject, manifest: Manifest) -> BackupResult:
    return BackupResult(
        backup_id=subject.backup.id,
        consistency=manifest.consistency,
        moment=manifest.disks[0].moment,
        warnings=manifest.warnings,
        skipped=tuple(subject.backup.skipped),
        disks=tuple(_disk_result(disk) for disk in manifest.disks),
        immutable_until=manifest.immutable_until,
    )


def _disk_result(disk: DiskRecord) -> DiskResult:
    return DiskResult(
        key=disk.key,
        capacity_bytes=disk.size_bytes,
        uuid=disk.uuid,
        change_id=disk.change_id,
        root=disk.root.hex(),
        backup_type=BackupType(disk.mode),
        type_reason=disk.mode_reason or None,
        parent_backup_id=disk.parent_backup_id if disk.mode is Mode.INCREMENTAL else None,
        bytes_read=disk.bytes_read,
        bytes_new=disk.bytes_new,
        bytes_deduplicated=disk.bytes_deduplicated,
    )


@step("finish", retry=FINISH_RETRY)
def finish(context: Context, job_id: str) -> None:
    """End the job well and free the VM's slot."""
    with context.catalog.write() as session:
        subject_id = jobs.get_job(session, job_id).subject["backup_id"]
        jobs.finish(
            session,
            job_id,
            JobStatus.COMPLETED,
            now=context.now(),
            result={"backup_id": subject_id},
        )


def backup_vm(flow: Flow[Context]) -> None:
    """Back up, or leave nothing behind but the reason.

    Compensation stands in `except SendenseError` and nowhere else: a worker that was frozen and
    replaced is ended by the engine with something else, and must touch nothing any more.
    """
    job_id = flow.job_id
    committing = False
    try:
        planned = flow.run(plan, job_id)
    except SendenseError as error:
        flow.run(backup_undo.fail, job_id, to_data(error))
        return
    try:
        snapshot = flow.run(take_snapshot, job_id, planned)
        decided = flow.run(decide, job_id, snapshot)
        children = [_start_transfer(flow, snapshot, one) for one in decided]
        moved = flow.run(wait_transfers, job_id, children)
        committing = True
        flow.run(commit, job_id, snapshot, moved)
    except SendenseError as error:
        if undo(flow, job_id, error, committing=committing):
            return
    complete(flow, job_id)


def _start_transfer(flow: Flow[Context], snapshot: dict[str, Any], decided: dict[str, Any]) -> str:
    return flow.start(
        TRANSFER_DISK,
        f"disk-{decided['key']}",
        snapshot,
        decided,
        priority=schema.PRIORITY_INTERACTIVE,
        # Jobs that were begun before labels existed demand none.
        place=Place(snapshot["partition"], snapshot.get("required_labels", {})),
    )


def undo(flow: Flow[Context], job_id: str, error: SendenseError, *, committing: bool) -> bool:
    """Leave nothing behind and end the job; False where the backup was committed after all."""
    reason = to_data(error)
    flow.run(backup_undo.stop_transfers, job_id)
    try:
        if flow.run(backup_undo.abort_session, job_id, error.message) == State.COMMITTED:
            return False
    except SendenseError:
        # Where no commit was ever tried, there is none: the snapshot need not wait for a
        # repository that is away. Else only the outcome can tell; the clean-up goes on asking.
        if committing:
            raise
    remove_snapshot_or_note(flow, job_id, SnapshotOutcome.DISCARDED)
    flow.run(backup_undo.fail, job_id, reason)
    return True


def complete(flow: Flow[Context], job_id: str) -> None:
    """Do what follows from a commit."""
    flow.run(record, job_id)
    remove_snapshot_or_note(flow, job_id, SnapshotOutcome.COMMITTED)
    flow.run(finish, job_id)


def remove_snapshot_or_note(flow: Flow[Context], job_id: str, outcome: SnapshotOutcome) -> None:
    """Remove the job's snapshot; where that fails for good, raise the alarm and go on."""
    try:
        flow.run(backup_undo.remove_snapshot, job_id, outcome)
    except SendenseError as error:
        flow.run(backup_undo.note_leftover, job_id, to_data(error))


BACKUP_VM = Workflow[Context](
    "backup_vm",
    backup_vm,
    (
        plan,
        take_snapshot,
        decide,
        wait_transfers,
        commit,
        record,
        backup_undo.remove_snapshot,
        finish,
        backup_undo.stop_transfers,
        backup_undo.abort_session,
        backup_undo.note_leftover,
        backup_undo.fail,
    ),
)
