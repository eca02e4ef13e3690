"""Can a VM be backed up, incrementally, consistently, and if not, why?

From what discovery kept, and from its source where that can tell more: a source that does not
answer leaves the answer to discovery, and is named in it.
"""

from contextlib import closing
from dataclasses import dataclass

from sqlalchemy.orm import Session

from sendense.connectors.base import Tracking
from sendense.connectors.capability import Assessing, Assessment
from sendense.core.errors import SendenseError
from sendense.db.tables import DiskRow, SourceRow
from sendense.hub.backups import queries as backups
from sendense.hub.context import Hub
from sendense.hub.sources import service as sources
from sendense.hub.vms import queries
from sendense.hub.vms.schemas import DiskReadiness, Readiness
from sendense.hub.vms.service import excluded_reason

NO_TRACKING = "the source has no change tracking: everything is read, only what is new is stored"


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of asking a source.

    Attributes:
        assessment: None where it was not asked, cannot tell, or did not answer.
        trouble: why it did not answer, or None.
        warnings: what of the source is not meant for production.
    """

    assessment: Assessment | None = None
    trouble: str | None = None
    warnings: tuple[str, ...] = ()


NOT_ASKED = Asked()


def ask(hub: Hub, vm_id: str) -> Asked:
    """Ask a VM's source about it. Raises NotFound, kind `vm-unknown`."""
    with hub.catalog.read() as session:
        vm = queries.get_vm(session, vm_id)
        row = session.get_one(SourceRow, vm.source_id)
    if vm.gone_at is not None:
        return NOT_ASKED
    warnings = hub.list_warnings(row.type, row.config)
    try:
        with closing(sources.open_registered(hub, row)) as source:
            if not isinstance(source, Assessing):
                return Asked(warnings=warnings)
            return Asked(source.assess(vm.vm_uuid), warnings=warnings)
    except SendenseError as error:
        # The answer is about the VM, not about the source: what is known is told all the same.
        return Asked(trouble=error.message, warnings=warnings)


def tell(session: Session, vm_id: str, repository_id: str | None, asked: Asked) -> Readiness:
    """Say whether a VM's next backup can be incremental, disk by disk, and if not, why."""
    vm = queries.get_vm(session, vm_id)
    present = [disk for disk in queries.list_disks(session, [vm_id])[vm_id] if disk.gone_at is None]
    disks = [_tell_disk(session, disk, repository_id) for disk in present]
    said = asked.assessment or Assessment()
    reasons = list(said.obstacles)
    if vm.gone_at is not None:
        reasons.append("its source no longer has it")
    if not any(disk.backup_possible for disk in disks):
        reasons.append("no disk can be backed up")
    possible = not reasons
    reasons.extend(said.incremental_obstacles)
    reasons.extend(f"{disk.disk_id}: {disk.reason}" for disk in disks if disk.reason is not None)
    if said.consistent_reason is not None:
        reasons.append(said.consistent_reason)
    if asked.trouble is not None:
        reasons.append(f"its source was not asked: {asked.trouble}")
    return Readiness(
        vm_id=vm_id,
        repository_id=repository_id,
        backup_possible=possible,
        incremental_possible=possible
        and not said.incremental_obstacles
        and all(disk.incremental_possible for disk in disks if disk.backup_possible),
        consistent_possible=None if asked.assessment is None else said.consistent,
        reasons=reasons,
        missing_privileges=list(said.missing_privileges),
        notes=[*said.notes, *asked.warnings],
        asked=asked.assessment is not None,
        disks=disks,
    )


def _tell_disk(session: Session, disk: DiskRow, repository_id: str | None) -> DiskReadiness:
    reason = excluded_reason(disk)
    if reason is None and disk.capacity_bytes is None:
        reason = "its source does not tell its capacity"
    possible = reason is None
    if possible and disk.tracking == Tracking.UNSUPPORTED:
        reason = NO_TRACKING
    if possible and reason is None and repository_id is not None:
        parent = backups.find_parent(
            session, vm_id=disk.vm_id, key=disk.key, repository_id=repository_id
        )
        if parent is None:
            reason = "no backup of it in this repository yet"
        elif parent.change_id is None:
            reason = "nothing was tracked when its last backup was made"
    return DiskReadiness(
        disk_id=disk.disk_id,
        index=disk.index,
        backup_possible=possible,
        incremental_possible=possible and reason is None,
        reason=reason,
    )
