"""What is checked before a restore starts, and how restores are shown."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from sendense.connectors import registry
from sendense.core.errors import Conflict, Denied, Exists, Invalid, NotFound
from sendense.core.ids import new_id
from sendense.db.tables import BackupDiskRow, BackupRow, JobRow, RestoreRow, SourceRow
from sendense.durable import placement
from sendense.hub.backups import queries as backups
from sendense.hub.backups import service as backup_service
from sendense.hub.context import Hub
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs import service as job_service
from sendense.hub.jobs.schemas import JobKind, JobStatus
from sendense.hub.model import failure_of
from sendense.hub.repositories import nesting
from sendense.hub.repositories import queries as repositories
from sendense.hub.restores import queries
from sendense.hub.restores.schemas import (
    FileShown,
    FileTarget,
    Restore,
    RestoreAccepted,
    RestoreFilter,
    RestoreList,
    StartRestore,
    TargetType,
    VmShown,
    VmTarget,
)
from sendense.hub.vms import queries as vms
from sendense.hub.vms import service as vm_service


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a restore writes to, as its row and its job keep it."""

    target: dict[str, Any]
    vm_id: str | None = None
    source_id: str | None = None
    required_labels: dict[str, str] = field(default_factory=dict)


def _find_place(session: Session, hub: Hub, wanted: StartRestore, disk: BackupDiskRow) -> _Place:
    """Return where a restore writes to. Raises what `check_target` and `_find_disk` do."""
    target = wanted.target
    if isinstance(target, VmTarget):
        return _find_disk(session, target, disk, overwrite=wanted.overwrite)
    path = check_target(session, hub, target, overwrite=wanted.overwrite)
    return _Place(
        {"type": target.type, "path": str(path), "format": target.format, "host": target.host},
        required_labels={placement.HOST: target.host} if target.host else {},
    )


def _find_disk(
    session: Session, target: VmTarget, backed_up: BackupDiskRow, *, overwrite: bool
) -> _Place:
    """Return the disk of a VM that is to be overwritten, as far as the catalog knows it.

    Raises NotFound, Invalid (`target-unsupported`), Conflict (`vm-gone`, `target-size-differs`,
    `backup-running`) and Exists (`target-exists`). The source looks again, at the VM itself.
    """
    vm = vms.get_vm(session, target.vm_id)
    backup_service.require_present(vm)
    source = session.get_one(SourceRow, vm.source_id)
    if source.type not in registry.RECEIVING:
        raise Invalid(
            f"a source of type {source.type} takes no disks back",
            kind="target-unsupported",
            hint="restore to a file",
        )
    choice = backed_up.disk_id if target.disk_id is None else target.disk_id
    disk = vm_service.find_disk(vm, vms.list_disks(session, [vm.id])[vm.id], choice)
    if disk.capacity_bytes != backed_up.capacity_bytes:
        raise Conflict(
            f"{disk.disk_id} of VM {vm.name} is {disk.capacity_bytes} bytes long, the backup's"
            f" {backed_up.capacity_bytes}",
            kind="target-size-differs",
            hint="give the VM a disk of the very same size, and discover its source",
        )
    if not overwrite:
        raise Exists(
            f"all that {disk.disk_id} of VM {vm.name} holds would be overwritten",
            kind="target-exists",
            hint="allow it (`overwrite`), or restore to a file",
        )
    backup_service.check_slot(session, vm)
    return _Place(
        {
            "type": TargetType.VM,
            "vm_id": vm.id,
            "vm_name": vm.name,
            "vm_uuid": vm.vm_uuid,
            "disk_id": disk.disk_id,
            "key": disk.key,
            "uuid": disk.uuid,
        },
        vm_id=vm.id,
        source_id=source.id,
    )


def check_target(session: Session, hub: Hub, wanted: FileTarget, *, overwrite: bool) -> Path:
    """Return the file that a restore writes, or raise, with nothing changed.

    Raises Denied (`path-not-allowed`, `target-in-repository`), Invalid (`target-folder-missing`),
    Exists (`target-exists`), Conflict (`target-not-a-file`, `target-busy`).
    """
    path = hub.paths.resolve(wanted.path)
    _check_apart(session, hub, path)
    _check_apart_from_unknown(path)
    if not path.parent.is_dir():
        raise Invalid(
            f"the folder {path.parent} does not exist",
            kind="target-folder-missing",
            hint="make it first",
            path=str(path),
        )
    if path.exists():
        if not path.is_file():
            raise Conflict(f"{path} is no plain file", kind="target-not-a-file", path=str(path))
        if not overwrite:
            raise Exists(
                f"{path} exists",
                kind="target-exists",
                hint="choose another path, or allow it to be replaced (`overwrite`)",
                path=str(path),
            )
    for row in queries.list_active(session):
        if row.target.get("path") == str(path):
            raise Conflict(
                f"restore {row.id} is writing to {path}",
                kind="target-busy",
                restore_id=row.id,
                job_id=row.job_id,
            )
    return path


def _check_apart(session: Session, hub: Hub, path: Path) -> None:
    """Refuse targets inside a repository: a restore must not be able to destroy backups."""
    for row in repositories.list_repositories(session)[0]:
        place = row.config.get("path")
        if place is not None and path.is_relative_to(hub.paths.resolve(place)):
            raise Denied(
                f"{path} lies in repository {row.name}",
                kind="target-in-repository",
                hint="choose a path outside of repositories",
                path=str(path),
                repository_id=row.id,
            )


def _check_apart_from_unknown(path: Path) -> None:
    """Refuse targets inside a repository that the catalog does not know, for the same reason."""
    around = nesting.find_around(path)
    if around is not None:
        raise Denied(
            f"{path} lies in the repository at {around}",
            kind="target-in-repository",
            hint="choose a path outside of repositories",
            path=str(path),
        )


def start(
    session: Session, hub: Hub, wanted: StartRestore, *, retry_of: str | None = None
) -> RestoreAccepted:
    """Check a request and write job and restore, both pending."""
    backup = backups.get_backup(session, wanted.backup_id)
    if backup.status != JobStatus.COMPLETED:
        raise Conflict(
            f"backup {backup.id} is {backup.status}",
            kind="backup-not-completed",
            hint="only a completed backup can be restored",
            backup_id=backup.id,
            status=backup.status,
        )
    disk = _choose(session, backup, wanted.disk_id)
    place = _find_place(session, hub, wanted, disk)
    now = hub.clock.now()
    restore_id = new_id("restore", hub.ids)
    job_id = new_id("job", hub.ids)
    jobs.create_job(
        session,
        jobs.NewJob(
            id=job_id,
            kind=JobKind.RESTORE,
            subject={"restore_id": restore_id},
            priority=job_service.PRIORITY_RESTORE,
            created_at=now,
            vm_slot=place.vm_id,
            source_id=place.source_id,
            repository_id=backup.repository_id,
            retry_of=retry_of,
            required_labels=place.required_labels,
        ),
    )
    queries.create_restore(
        session,
        queries.NewRestore(
            id=restore_id,
            job_id=job_id,
            backup_id=backup.id,
            disk_id=disk.disk_id,
            key=disk.key,
            target=place.target,
            overwrite=wanted.overwrite,
            total_bytes=disk.capacity_bytes,
            created_at=now,
        ),
    )
    return RestoreAccepted(restore_id=restore_id, job_id=job_id)


def _choose(session: Session, backup: BackupRow, choice: int | str | None) -> BackupDiskRow:
    disks = backups.list_disks(session, [backup.id])[backup.id]
    names = [disk.disk_id for disk in disks]
    if choice is None:
        if len(disks) != 1:
            raise Invalid(
                f"backup {backup.id} holds {len(disks)} disks",
                kind="disk-needed",
                hint="name one by disk_id",
                disks=names,
            )
        return disks[0]
    for disk in disks:
        if choice in {disk.index, disk.disk_id}:
            return disk
    raise NotFound(
        f"backup {backup.id} holds no disk {choice}",
        kind="disk-unknown",
        hint=f"it holds {', '.join(names)}",
        disks=names,
    )


def check_unused(session: Session, backup_id: str) -> None:
    """Raise Conflict, kind `backup-in-use`, while a restore reads a backup."""
    for row in queries.list_active(session, backup_id=backup_id):
        raise Conflict(
            f"restore {row.id} is reading backup {backup_id}",
            kind="backup-in-use",
            hint=f"wait for job {row.job_id}, or cancel it",
            backup_id=backup_id,
            restore_id=row.id,
            job_id=row.job_id,
        )


def show(session: Session, rows: Sequence[RestoreRow]) -> list[Restore]:
    """Return restores as the API shows them."""
    job_rows = queries.list_jobs_of(session, rows)
    return [_show(row, job_rows.get(row.job_id or "")) for row in rows]


def _show(row: RestoreRow, job: JobRow | None) -> Restore:
    status = JobStatus(row.status)
    active = job if status.is_active else None
    percent = job.progress_percent if job is not None else 0.0
    return Restore(
        restore_id=row.id,
        job_id=row.job_id,
        backup_id=row.backup_id,
        disk_id=row.disk_id,
        target=_show_target(row),
        overwrite=row.overwrite,
        status=status,
        progress_percent=jobs.PERCENT_DONE if status is JobStatus.COMPLETED else round(percent, 1),
        current_phase=active.current_phase if active is not None else status,
        bytes_written=row.bytes_written,
        total_bytes=row.total_bytes,
        transfer_speed_bps=active.progress.get("transfer_speed_bps") if active else None,
        seconds_left=active.progress.get("seconds_left") if active else None,
        created_at=row.created_at,
        started_at=row.started_at,
        completed_at=row.completed_at,
        error=failure_of(row.error),
    )


def _show_target(row: RestoreRow) -> FileShown | VmShown:
    shown = VmShown if row.target["type"] == TargetType.VM else FileShown
    return shown.model_validate({name: row.target.get(name) for name in shown.model_fields})


def list_restores(session: Session, wanted: RestoreFilter) -> RestoreList:
    """Return a page of restores."""
    rows, total = queries.list_restores(session, wanted)
    return RestoreList(restores=show(session, rows), total=total)


def to_request(row: RestoreRow) -> StartRestore:
    """Return the request that a restore answered, to ask for it again."""
    fields = (VmTarget if row.target["type"] == TargetType.VM else FileTarget).model_fields
    return StartRestore.model_validate(
        {
            "backup_id": row.backup_id,
            "disk_id": row.disk_id,
            "target": {name: row.target[name] for name in fields if name in row.target},
            "overwrite": row.overwrite,
        }
    )
