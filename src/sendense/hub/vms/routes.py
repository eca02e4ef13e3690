"""HTTP of VMs."""

from typing import Annotated

from fastapi import APIRouter, Query, Response, status

from sendense.hub import problem
from sendense.hub.access import Caller
from sendense.hub.backups import service as backups
from sendense.hub.backups.schemas import BackupFilter, BackupList
from sendense.hub.context import HubOf
from sendense.hub.model import Page, Text
from sendense.hub.repositories import queries as repositories
from sendense.hub.vms import queries, readiness, service
from sendense.hub.vms.schemas import ChangeVm, DiskList, Readiness, Vm, VmFilter, VmList

router = APIRouter(prefix="/vms", tags=["vms"])


@router.get("", responses=problem.READ, summary="List VMs")
def list_vms(wanted: Annotated[VmFilter, Query()], hub: HubOf, caller: Caller) -> VmList:
    """List VMs by name."""
    del caller
    with hub.catalog.read() as session:
        return service.list_vms(session, wanted)


@router.get("/{vm_id}", responses=problem.READ, summary="Show a VM")
def get_vm(vm_id: str, hub: HubOf, caller: Caller) -> Vm:
    """Show one VM."""
    del caller
    with hub.catalog.read() as session:
        return service.show_vms(session, [queries.get_vm(session, vm_id)])[0]


@router.patch("/{vm_id}", responses=problem.WRITE, summary="Change a VM")
def change_vm(vm_id: str, body: ChangeVm, hub: HubOf, caller: Caller) -> Vm:
    """Set a VM's tags, or which disks its backups leave out."""
    del caller
    with hub.catalog.write() as session:
        row = service.change_vm(session, vm_id, body)
        return service.show_vms(session, [row])[0]


@router.delete(
    "/{vm_id}",
    responses=problem.WRITE,
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Forget a VM",
)
def delete_vm(vm_id: str, hub: HubOf, caller: Caller) -> Response:
    """Take a VM out of the catalog; discovery finds it again while its source has it."""
    del caller
    with hub.catalog.write() as session:
        service.delete_vm(session, vm_id)
    return Response(status_code=status.HTTP_204_NO_CONTENT)


@router.get("/{vm_id}/disks", responses=problem.READ, summary="List a VM's disks")
def list_disks(vm_id: str, hub: HubOf, caller: Caller) -> DiskList:
    """List the disks as the last discovery saw them."""
    del caller
    with hub.catalog.read() as session:
        queries.get_vm(session, vm_id)
        disks = [service.show_disk(row) for row in queries.list_disks(session, [vm_id])[vm_id]]
    return DiskList(disks=disks, total=len(disks))


@router.get("/{vm_id}/backups", responses=problem.READ, summary="List a VM's backups")
def list_vm_backups(
    vm_id: str, wanted: Annotated[Page, Query()], hub: HubOf, caller: Caller
) -> BackupList:
    """List a VM's backups, newest first."""
    del caller
    with hub.catalog.read() as session:
        queries.get_vm(session, vm_id)
        return backups.list_backups(
            session, BackupFilter(vm_id=vm_id, limit=wanted.limit, offset=wanted.offset)
        )


@router.get("/{vm_id}/readiness", responses=problem.READ, summary="Can it be backed up?")
def get_readiness(
    vm_id: str,
    hub: HubOf,
    caller: Caller,
    repository_id: Annotated[Text | None, Query(description="Look at its backups too.")] = None,
    *,
    ask: Annotated[
        bool,
        Query(description="Ask the source too, where it can tell; else what discovery found."),
    ] = True,
) -> Readiness:
    """Say whether a VM can be backed up, incrementally and consistently, and if not, why."""
    del caller
    asked = readiness.ask(hub, vm_id) if ask else readiness.NOT_ASKED
    with hub.catalog.read() as session:
        if repository_id is not None:
            repositories.get_repository(session, repository_id)
        return readiness.tell(session, vm_id, repository_id, asked)
