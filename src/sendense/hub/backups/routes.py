"""HTTP of backups. The five requests of the contract with existing clients."""

from typing import Annotated

from fastapi import APIRouter, Query, Response, status

from sendense.hub import idempotency, problem, started
from sendense.hub.access import Caller
from sendense.hub.backups import service
from sendense.hub.backups.schemas import (
    Backup,
    BackupAccepted,
    BackupDeleted,
    BackupFilter,
    BackupList,
    Chain,
    ChainFilter,
    ChainList,
    HoldBackup,
    StartBackup,
)
from sendense.hub.context import Hub, HubOf
from sendense.hub.idempotency import Keyed, KeyOf
from sendense.hub.repositories import queries as repository_queries
from sendense.hub.repositories import service as repositories
from sendense.hub.restores import service as restores

router = APIRouter(prefix="/backups", tags=["backups"])


@router.post(
    "",
    status_code=status.HTTP_202_ACCEPTED,
    responses={**problem.START, **started.ACCEPTED},
    summary="Start a backup",
)
def start_backup(
    body: StartBackup, response: Response, hub: HubOf, keyed: KeyOf, caller: Caller
) -> BackupAccepted:
    """Back up a VM, or one of its disks, to a repository."""
    del caller
    answer = request_backup(hub, body, keyed)
    started.point_to_job(response, answer.job_id)
    return answer


def request_backup(
    hub: Hub, body: StartBackup, keyed: Keyed, *, retry_of: str | None = None
) -> BackupAccepted:
    """Check everything, write the rows in one transaction, then hand the job to the engine."""
    with hub.catalog.read() as session:
        known = idempotency.find_answer(session, keyed, BackupAccepted)
        if known is not None:
            return known
        # In the order in which a person reads the request: the VM first.
        service.check_request(session, body)
        repository = repository_queries.get_repository(session, body.repository_id)
    repositories.check_target(hub, repository)
    return started.start_once(
        hub,
        keyed,
        BackupAccepted,
        lambda session: service.start(session, hub, body, retry_of=retry_of),
    )


@router.get("", responses=problem.READ, summary="List backups")
def list_backups(
    wanted: Annotated[BackupFilter, Query()], hub: HubOf, caller: Caller
) -> BackupList:
    """List backups, newest first."""
    del caller
    with hub.catalog.read() as session:
        return service.list_backups(session, wanted)


# Before the parameterised routes. A VM's name may hold slashes.
@router.get("/{vm_name:path}/chain", responses=problem.READ, summary="Show a VM's chains")
def get_chain(
    vm_name: str, wanted: Annotated[ChainFilter, Query()], hub: HubOf, caller: Caller
) -> Chain | ChainList:
    """Show the one chain that the filters leave, else the list of all.

    `vm_name` may also be a VM's id.
    """
    del caller
    with hub.catalog.read() as session:
        return service.get_chain(
            session, vm_name, disk=wanted.disk, repository_id=wanted.repository_id
        )


@router.get("/{backup_id}", responses=problem.READ, summary="Show a backup")
def get_backup(backup_id: str, hub: HubOf, caller: Caller) -> Backup:
    """Show everything about one backup."""
    del caller
    with hub.catalog.read() as session:
        return service.get_backup(session, backup_id)


@router.delete("/{backup_id}", responses=problem.WRITE, summary="Delete a backup")
def delete_backup(backup_id: str, hub: HubOf, caller: Caller) -> BackupDeleted:
    """Delete a backup; the others of its chain stay restorable.

    The repository is told first: were the catalog first, a crash in between would bring the
    backup back to whoever reads the repository alone.
    """
    with hub.catalog.read() as session:
        row = service.check_deletable(session, backup_id)
        restores.check_unused(session, backup_id)
        repository = repository_queries.get_repository(session, row.repository_id)
    if service.is_stored(row):
        repositories.delete_backup(hub, repository, backup_id, who=caller.name)
    now = hub.clock.now()
    with hub.catalog.write() as session:
        service.delete(session, backup_id, now=now)
    return BackupDeleted(backup_id=backup_id, deleted_at=now)


@router.post("/{backup_id}/hold", responses=problem.WRITE, summary="Hold a backup")
def hold_backup(backup_id: str, body: HoldBackup, hub: HubOf, caller: Caller) -> Backup:
    """Let nobody delete a backup until it is released. Held already, it is held for this reason."""
    return _change_hold(hub, backup_id, held=True, who=caller.name, why=body.why)


@router.delete("/{backup_id}/hold", responses=problem.WRITE, summary="Release a backup")
def release_backup(backup_id: str, hub: HubOf, caller: Caller) -> Backup:
    """Let a held backup go; do nothing where nobody holds it."""
    return _change_hold(hub, backup_id, held=False, who=caller.name, why="")


def _change_hold(hub: Hub, backup_id: str, *, held: bool, who: str, why: str) -> Backup:
    """Tell the repository, which decides, and then the catalog."""
    with hub.catalog.read() as session:
        row = service.check_holdable(session, backup_id)
        repository = repository_queries.get_repository(session, row.repository_id)
    hold = repositories.hold_backup(hub, repository, backup_id, held=held, who=who, why=why)
    with hub.catalog.write() as session:
        return service.note_hold(session, backup_id, hold)
