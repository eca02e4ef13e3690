"""HTTP of restores."""

from typing import Annotated

from fastapi import APIRouter, Query, Response, status

from sendense.core.errors import Conflict
from sendense.hub import problem, started
from sendense.hub.access import Caller
from sendense.hub.context import Hub, HubOf
from sendense.hub.idempotency import Keyed, KeyOf
from sendense.hub.jobs import service as jobs
from sendense.hub.restores import queries, service
from sendense.hub.restores.schemas import (
    Restore,
    RestoreAccepted,
    RestoreFilter,
    RestoreList,
    StartRestore,
)

router = APIRouter(prefix="/restores", tags=["restores"])


@router.post(
    "",
    status_code=status.HTTP_202_ACCEPTED,
    responses={**problem.START, **started.ACCEPTED},
    summary="Start a restore",
)
def start_restore(
    body: StartRestore, response: Response, hub: HubOf, keyed: KeyOf, caller: Caller
) -> RestoreAccepted:
    """Write a disk of a backup to a file on the worker's machine."""
    del caller
    answer = request_restore(hub, body, keyed)
    started.point_to_job(response, answer.job_id)
    return answer


def request_restore(
    hub: Hub, body: StartRestore, keyed: Keyed, *, retry_of: str | None = None
) -> RestoreAccepted:
    """Check everything, write the rows in one transaction, then hand the job to the engine."""
    return started.start_once(
        hub,
        keyed,
        RestoreAccepted,
        lambda session: service.start(session, hub, body, retry_of=retry_of),
    )


@router.get("", responses=problem.READ, summary="List restores")
def list_restores(
    wanted: Annotated[RestoreFilter, Query()], hub: HubOf, caller: Caller
) -> RestoreList:
    """List restores, newest first."""
    del caller
    with hub.catalog.read() as session:
        return service.list_restores(session, wanted)


@router.get("/{restore_id}", responses=problem.READ, summary="Show a restore")
def get_restore(restore_id: str, hub: HubOf, caller: Caller) -> Restore:
    """Show one restore."""
    del caller
    with hub.catalog.read() as session:
        return service.show(session, [queries.get_restore(session, restore_id)])[0]


@router.post(
    "/{restore_id}/cancel",
    responses=problem.WRITE,
    status_code=status.HTTP_202_ACCEPTED,
    summary="Cancel a restore",
)
def cancel_restore(restore_id: str, hub: HubOf, caller: Caller) -> Restore:
    """Ask a restore to stop; nothing of its file is left."""
    del caller
    with hub.catalog.write() as session:
        row = queries.get_restore(session, restore_id)
        if row.job_id is None:
            raise Conflict(f"restore {restore_id} has no job", kind="job-ended")
        jobs.cancel(session, row.job_id, hub)
        return service.show(session, [row])[0]
