"""What a backup works on, and how each of its disks is to be read."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from sendense.connectors.base import DiskSnapshot, Tracking
from sendense.core.errors import NotFound
from sendense.db.tables import BackupDiskRow, BackupRow, DiskRow, RepositoryRow, SourceRow, VmRow
from sendense.engine import plan
from sendense.engine.plan import Decision, Mode, Reason, Wish
from sendense.hub.backups import queries as backups
from sendense.hub.backups.queries import DiskPlan
from sendense.hub.backups.schemas import BackupType
from sendense.hub.jobs import queries as jobs
from sendense.repository.manifest import DiskRecord, VmRecord
from sendense.repository.repository import Repository
from sendense.workflows.context import get_repository, get_source

SNAPSHOT_PREFIX = "sendense-"
_LINEAGE_DIGITS = 24  # of at most 32 characters that platforms bear in a bitmap's name


@dataclass(frozen=True, slots=True)
class Subject:
    """The rows that a backup job is about, read once and detached."""

    job_id: str
    backup: BackupRow
    vm: VmRow
    source: SourceRow
    repository: RepositoryRow
    disks: tuple[BackupDiskRow, ...]
    tracking: dict[int, Tracking]

    @property
    def snapshot_name(self) -> str:
        """The name of the job's snapshot: found again by it after a crash."""
        return f"{SNAPSHOT_PREFIX}{self.job_id}"

    @property
    def vm_record(self) -> VmRecord:
        """The VM as its manifest tells it."""
        return VmRecord(
            source_type=self.source.type,
            source_name=self.source.name,
            source_uuid=self.vm.source_uuid,
            uuid=self.vm.vm_uuid,
            name=self.vm.name,
        )

    def lineage(self, key: int) -> str:
        """Return the name of the chain of a disk in this repository."""
        identity = "\n".join((self.vm.source_uuid, self.vm.vm_uuid, str(key), self.repository.uuid))
        return hashlib.sha256(identity.encode()).hexdigest()[:_LINEAGE_DIGITS]

    def get_disk(self, key: int) -> BackupDiskRow:
        """Return a disk of the backup by its key."""
        return next(disk for disk in self.disks if disk.key == key)


@dataclass(frozen=True, slots=True)
class DiskDecision:
    """How one disk is read, and on what it builds.

    Attributes:
        parent_backup_id: the backup whose map is built on or compared with, or None.
    """

    key: int
    decision: Decision
    parent_backup_id: str | None
    base_change_id: str | None


def load(session: Session, job_id: str) -> Subject:
    """Read what a backup job is about. Raises NotFound where some of it is gone."""
    job = jobs.get_job(session, job_id)
    backup = backups.get_backup(session, str(job.subject["backup_id"]))
    vm = session.get(VmRow, backup.vm_id or "")
    if vm is None:
        raise NotFound(
            f"VM {backup.vm_name} is not known any more",
            kind="vm-unknown",
            hint="it was removed after the backup was asked for",
        )
    disks = tuple(backups.list_disks(session, [backup.id])[backup.id])
    return Subject(
        job_id=job_id,
        backup=backup,
        vm=vm,
        source=get_source(session, vm.source_id),
        repository=get_repository(session, backup.repository_id),
        disks=disks,
        tracking={disk.key: _tracking(session, disk) for disk in disks},
    )


def _tracking(session: Session, disk: BackupDiskRow) -> Tracking:
    row = session.get(DiskRow, disk.vm_disk_id or 0)
    return Tracking(row.tracking) if row is not None else Tracking.UNSUPPORTED


def decide(
    subject: Subject,
    repository: Repository,
    snapshots: dict[int, DiskSnapshot] | None = None,
) -> list[DiskDecision]:
    """Decide how each disk is read, before its snapshot or with it.

    The parent comes from the repository's manifests, never from the catalog: what a deletion or
    another hub did there counts, and root and change id are of one backup.
    """
    return [
        _decide_disk(subject, repository, disk, (snapshots or {}).get(disk.key))
        for disk in subject.disks
    ]


def _decide_disk(
    subject: Subject,
    repository: Repository,
    disk: BackupDiskRow,
    snapshot: DiskSnapshot | None,
) -> DiskDecision:
    backup_id, record = find_parent(subject, repository, disk.key)
    decision = plan.decide_mode(
        Wish(subject.backup.requested_type),
        parent_of(record),
        tracking=subject.tracking[disk.key],
        chunk_size=repository.chunk_size,
        snapshot=snapshot,
    )
    incremental = decision.mode is Mode.INCREMENTAL
    return DiskDecision(
        key=disk.key,
        decision=decision,
        parent_backup_id=backup_id,
        base_change_id=record.change_id if record is not None and incremental else None,
    )


def find_parent(
    subject: Subject, repository: Repository, key: int
) -> tuple[str | None, DiskRecord | None]:
    """Return the newest live backup of a disk in the repository, and the disk in it."""
    parent = repository.find_latest(
        source_uuid=subject.vm.source_uuid, vm_uuid=subject.vm.vm_uuid, disk_key=key
    )
    return (None, None) if parent is None else (parent.backup_id, parent.disk)


def list_places(session: Session, vm_id: str) -> list[tuple[RepositoryRow, frozenset[str]]]:
    """Return the repositories that hold or held backups of a VM.

    With each, all change ids that the catalog remembers of them: more than are of use.
    """
    rows = session.execute(
        select(BackupRow.repository_id, BackupDiskRow.change_id)
        .join(BackupDiskRow, BackupDiskRow.backup_id == BackupRow.id)
        .where(BackupRow.vm_id == vm_id)
        .distinct()
    )
    remembered: dict[str, set[str]] = {}
    for repository_id, change_id in rows:
        remembered.setdefault(repository_id, set()).update([change_id] if change_id else [])
    return [
        (get_repository(session, repository_id), frozenset(change_ids))
        for repository_id, change_ids in remembered.items()
    ]


def list_change_ids(subject: Subject, repository: Repository) -> frozenset[str]:
    """Return the change ids on which next incrementals of the VM in a repository build."""
    newest: dict[int, str | None] = {}
    for manifest in repository.list_backups():  # oldest first
        if (manifest.vm.source_uuid, manifest.vm.uuid) == (
            subject.vm.source_uuid,
            subject.vm.vm_uuid,
        ):
            newest.update({disk.key: disk.change_id for disk in manifest.disks})
    return frozenset(change_id for change_id in newest.values() if change_id is not None)


def parent_of(record: DiskRecord | None) -> plan.Parent | None:
    """Return what the decision needs to know of a parent."""
    if record is None:
        return None
    return plan.Parent(
        uuid=record.uuid,
        size_bytes=record.size_bytes,
        chunk_size=record.chunk_size,
        change_id=record.change_id,
    )


def shown_reason(decision: Decision) -> str | None:
    """Return why a disk is read in full, as users see it; None for an incremental."""
    return decision.reason or None


def to_plans(
    subject: Subject,
    decisions: Sequence[DiskDecision],
    snapshots: dict[int, DiskSnapshot] | None = None,
) -> list[DiskPlan]:
    """Return decisions as the catalog notes them."""
    plans = []
    for one in decisions:
        row = subject.get_disk(one.key)
        snapshot = (snapshots or {}).get(one.key)
        incremental = one.decision.mode is Mode.INCREMENTAL
        plans.append(
            DiskPlan(
                key=one.key,
                backup_type=BackupType(one.decision.mode),
                type_reason=shown_reason(one.decision),
                parent_backup_id=one.parent_backup_id if incremental else None,
                capacity_bytes=snapshot.size_bytes if snapshot else row.capacity_bytes,
                uuid=snapshot.uuid if snapshot else row.uuid,
            )
        )
    return plans


def to_data(one: DiskDecision) -> dict[str, Any]:
    """Return a decision as JSON."""
    return {
        "key": one.key,
        "mode": one.decision.mode,
        "code": one.decision.code,
        "reason": one.decision.reason,
        "parent_backup_id": one.parent_backup_id,
        "base_change_id": one.base_change_id,
    }


def from_data(data: dict[str, Any]) -> DiskDecision:
    """Return the decision that `to_data` described."""
    code = data["code"]
    return DiskDecision(
        key=data["key"],
        decision=Decision(
            Mode(data["mode"]), Reason(code) if code is not None else None, data["reason"]
        ),
        parent_backup_id=data["parent_backup_id"],
        base_change_id=data["base_change_id"],
    )
