"""VMs and disks in the catalog; discovery writes them, backups only read them."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, ScalarSelect, delete, func, or_, select
from sqlalchemy.orm import Session

from sendense.connectors.base import DiskDescription, VmDescription, disk_id
from sendense.core.errors import NotFound
from sendense.core.ids import IdSource, new_id
from sendense.db import search
from sendense.db.tables import BackupRow, DiskRow, JobRow, SourceRow, VmRow
from sendense.hub.jobs.schemas import JobStatus
from sendense.hub.model import split_tag
from sendense.hub.vms.schemas import VmFilter

LABEL_LENGTH_MAX = 255  # of the catalog's columns; a longer label is cut, an identity never is


@dataclass(frozen=True, slots=True)
class DiscoveryReport:
    """What a discovery found, in counts and in words.

    Attributes:
        changes: one sentence for each thing that a user may want to know.
    """

    vms: int
    vms_added: int
    vms_gone: int
    disks: int
    disks_added: int
    disks_gone: int
    disks_grown: int
    changes: tuple[str, ...]


def find_vm(session: Session, vm_id: str) -> VmRow | None:
    """Return a VM or None."""
    return session.get(VmRow, vm_id)


def get_vm(session: Session, vm_id: str) -> VmRow:
    """Return a VM. Raises NotFound, kind `vm-unknown`."""
    row = find_vm(session, vm_id)
    if row is None:
        raise NotFound(
            f"VM {vm_id} is not known",
            kind="vm-unknown",
            hint="discover its source, or look at `GET /api/v1/vms`",
            vm_id=vm_id,
        )
    return row


def list_vms_named(session: Session, name: str) -> Sequence[VmRow]:
    """Return the VMs of exactly this name, those first that their source still has."""
    rows = session.scalars(select(VmRow).where(VmRow.name == name).order_by(VmRow.id)).all()
    return sorted(rows, key=lambda row: row.gone_at is not None)


def list_vms(session: Session, wanted: VmFilter) -> tuple[Sequence[VmRow], int]:
    """Return a page of VMs by name, and how many there are in all."""
    conditions: list[ColumnElement[bool]] = []
    for column, value in (
        (VmRow.name, wanted.name),
        (VmRow.source_id, wanted.source_id),
        (VmRow.power_state, wanted.power_state),
    ):
        if value is not None:
            conditions.append(column == value)
    if wanted.q is not None:
        conditions.append(
            or_(
                search.contains(VmRow.name, wanted.q),
                search.contains(VmRow.path, wanted.q),
                search.contains(VmRow.guest_os, wanted.q),
                VmRow.id == wanted.q,
            )
        )
    for key, value in map(split_tag, wanted.tag):
        stored = search.value_of(VmRow.tags, key)
        conditions.append(stored.is_not(None) if value is None else stored == value)
    if wanted.protected is not None:
        last = _last_backup()
        conditions.append(last.is_not(None) if wanted.protected else last.is_(None))
    if wanted.present is not None:
        gone = VmRow.gone_at
        conditions.append(gone.is_(None) if wanted.present else gone.is_not(None))
    total = session.scalar(select(func.count()).select_from(VmRow).where(*conditions)) or 0
    rows = session.scalars(
        select(VmRow)
        .where(*conditions)
        .order_by(VmRow.name, VmRow.id)
        .limit(wanted.limit)
        .offset(wanted.offset)
    )
    return rows.all(), total


def list_disks(session: Session, vm_ids: Sequence[str]) -> dict[str, list[DiskRow]]:
    """Return the disks of VMs in the order of their index, by VM; those that are gone too."""
    found: dict[str, list[DiskRow]] = defaultdict(list)
    for row in session.scalars(
        select(DiskRow).where(DiskRow.vm_id.in_(vm_ids)).order_by(DiskRow.index, DiskRow.key)
    ):
        found[row.vm_id].append(row)
    return found


def list_last_backups(session: Session, vm_ids: Sequence[str]) -> dict[str, datetime]:
    """Return when the newest completed backup of each VM was made, by VM."""
    last = _last_backup()
    query = select(VmRow.id, last).where(VmRow.id.in_(vm_ids), last.is_not(None))
    return dict(session.execute(query).all())


def list_active_jobs(session: Session, vm_ids: Sequence[str]) -> dict[str, str]:
    """Return the id of the job that holds each VM's slot, by VM."""
    rows = session.execute(select(JobRow.vm_slot, JobRow.id).where(JobRow.vm_slot.in_(vm_ids)))
    return {vm_id: job_id for vm_id, job_id in rows if vm_id is not None}


def list_present_uuids(session: Session, source_id: str) -> set[str]:
    """Return the uuids of the VMs that a source had at its last discovery."""
    query = select(VmRow.vm_uuid).where(VmRow.source_id == source_id, VmRow.gone_at.is_(None))
    return set(session.scalars(query))


def delete_vm(session: Session, vm_id: str) -> None:
    """Forget a VM and its disks. Backups keep its name; see BackupRow."""
    session.execute(delete(VmRow).where(VmRow.id == vm_id))


def _last_backup() -> ScalarSelect[datetime]:
    """Say when the newest completed backup of a VM was made, null without any.

    One step in an index for each VM: a group of all backups would look at each of them.
    """
    return (
        select(BackupRow.created_at)
        .where(
            BackupRow.vm_id == VmRow.id,
            BackupRow.status == JobStatus.COMPLETED,
            BackupRow.deleted_at.is_(None),
        )
        .order_by(BackupRow.created_at.desc())
        .limit(1)
        .correlate(VmRow)
        .scalar_subquery()
    )


def upsert_vms(
    session: Session,
    source: SourceRow,
    found: Sequence[VmDescription],
    *,
    gone: Collection[str],
    ids: IdSource,
    now: datetime,
) -> DiscoveryReport:
    """Write what a discovery found; VMs and disks that are gone are marked, never removed.

    A VM is known again by its source's identity and its own, whatever its name. `gone` are the
    uuids of those that the platform certainly has no more: one that is neither there nor among the
    found stays as it was, for no list proves that something is not there.
    """
    known = {
        row.vm_uuid: row
        for row in session.scalars(select(VmRow).where(VmRow.source_id == source.id))
    }
    disks = list_disks(session, [row.id for row in known.values()])
    tally = _Tally()
    for description in found:
        vm = known.pop(description.uuid, None)
        if vm is None:
            vm = VmRow(
                id=new_id("vm", ids),
                source_id=source.id,
                source_uuid=source.uuid,
                vm_uuid=description.uuid,
                tags={},
                created_at=now,
            )
            session.add(vm)
            tally.vms_added += 1
        _describe(vm, description, now=now)
        session.flush()
        _upsert_disks(session, vm, disks.get(vm.id, []), description.disks, now=now, tally=tally)
    for vm in known.values():
        if vm.gone_at is not None:
            continue
        if vm.vm_uuid in gone:
            vm.gone_at = now
            tally.vms_gone += 1
            tally.changes.append(f"VM {vm.name} is no longer on its source")
        else:
            tally.changes.append(
                f"VM {vm.name} was not listed, but its source does not say that it is gone"
            )
    source.discovered_at = now
    source.trouble = ""
    return tally.report(vms=len(found), disks=sum(len(one.disks) for one in found))


class _Tally:
    """What changed, while it is being counted."""

    def __init__(self) -> None:
        self.vms_added = 0
        self.vms_gone = 0
        self.disks_added = 0
        self.disks_gone = 0
        self.disks_grown = 0
        self.changes: list[str] = []

    def report(self, *, vms: int, disks: int) -> DiscoveryReport:
        return DiscoveryReport(
            vms=vms,
            vms_added=self.vms_added,
            vms_gone=self.vms_gone,
            disks=disks,
            disks_added=self.disks_added,
            disks_gone=self.disks_gone,
            disks_grown=self.disks_grown,
            changes=tuple(self.changes),
        )


def _describe(vm: VmRow, description: VmDescription, *, now: datetime) -> None:
    vm.name = description.name[:LABEL_LENGTH_MAX]
    vm.path = description.path
    vm.power_state = description.power_state
    vm.guest_os = description.guest_os
    vm.cpu_count = description.cpu_count
    vm.memory_bytes = description.memory_bytes
    vm.networks = list(description.networks)
    vm.seen_at = now
    vm.gone_at = None


def _upsert_disks(
    session: Session,
    vm: VmRow,
    rows: Sequence[DiskRow],
    found: Sequence[DiskDescription],
    *,
    now: datetime,
    tally: _Tally,
) -> None:
    known = {row.key: row for row in rows}
    for description in found:
        row = known.pop(description.key, None)
        if row is None:
            row = DiskRow(
                vm_id=vm.id,
                disk_id=disk_id(description.key),
                key=description.key,
                excluded=False,
                created_at=now,
            )
            session.add(row)
            tally.disks_added += 1
        else:
            _tell_changes(vm, row, description, tally)
        row.index = description.index
        row.label = description.label[:LABEL_LENGTH_MAX]
        row.uuid = description.uuid
        row.capacity_bytes = description.capacity_bytes
        row.tracking = description.tracking
        row.datastore = description.datastore
        row.unsupported_reason = description.excluded_reason
        row.seen_at = now
        row.gone_at = None
    for row in known.values():
        if row.gone_at is None:
            row.gone_at = now
            tally.disks_gone += 1
            tally.changes.append(f"VM {vm.name} no longer has {row.disk_id}")
    session.flush()


def _tell_changes(vm: VmRow, row: DiskRow, description: DiskDescription, tally: _Tally) -> None:
    before, after = row.capacity_bytes, description.capacity_bytes
    if row.uuid != description.uuid:
        tally.changes.append(f"{row.disk_id} of VM {vm.name} was replaced by another disk")
    elif before is not None and after is not None and before != after:
        tally.disks_grown += after > before
        verb = "grew" if after > before else "shrank"
        tally.changes.append(f"{row.disk_id} of VM {vm.name} {verb} from {before} to {after} bytes")
