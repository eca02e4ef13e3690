"""HTTP of workers."""

from fastapi import APIRouter

from sendense.hub import problem
from sendense.hub.access import Caller
from sendense.hub.context import HubOf
from sendense.hub.workers import service
from sendense.hub.workers.schemas import WorkerList

router = APIRouter(prefix="/workers", tags=["workers"])


@router.get("", responses=problem.responses(503), summary="List workers")
def list_workers(hub: HubOf, caller: Caller) -> WorkerList:
    """List the workers that hold a lease, with the jobs that they run."""
    del caller
    with hub.catalog.read() as session:
        return service.list_workers(session, hub)
