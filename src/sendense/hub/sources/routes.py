"""HTTP of sources."""

from typing import Annotated

from fastapi import APIRouter, Query, Response, status

from sendense.hub import problem, started
from sendense.hub.access import Caller
from sendense.hub.context import Hub, HubOf
from sendense.hub.idempotency import Keyed, KeyOf
from sendense.hub.model import Page
from sendense.hub.sources import queries, service
from sendense.hub.sources.schemas import (
    ChangeSource,
    CreateSource,
    Discover,
    DiscoverAccepted,
    Source,
    SourceList,
    SourceTested,
    TestSource,
)

router = APIRouter(prefix="/sources", tags=["sources"])


@router.post(
    "", responses=problem.WRITE, status_code=status.HTTP_201_CREATED, summary="Register a source"
)
def create_source(body: CreateSource, response: Response, hub: HubOf, caller: Caller) -> Source:
    """Register a source; its platform need not answer yet."""
    del caller
    given = body.credentials.reveal() if body.credentials is not None else None
    hub.check_source(body.type, body.config, given)
    with hub.catalog.write() as session:
        answer = service.create(session, hub, body)
    response.headers["Location"] = f"/api/v1/sources/{answer.id}"
    return answer


@router.get("", responses=problem.READ, summary="List sources")
def list_sources(wanted: Annotated[Page, Query()], hub: HubOf, caller: Caller) -> SourceList:
    """List sources by name."""
    del caller
    with hub.catalog.read() as session:
        return service.list_sources(session, hub, limit=wanted.limit, offset=wanted.offset)


@router.post("/test", responses=problem.WRITE, summary="Try a source before registering it")
def test_source(body: TestSource, hub: HubOf, caller: Caller) -> SourceTested:
    """Contact the platform; nothing is kept."""
    del caller
    given = body.credentials.reveal() if body.credentials is not None else None
    return service.try_out(hub, body.type, body.config, given)


@router.get("/{source_id}", responses=problem.READ, summary="Show a source")
def get_source(source_id: str, hub: HubOf, caller: Caller) -> Source:
    """Show one source."""
    del caller
    with hub.catalog.read() as session:
        return service.show(session, hub, [queries.get_source(session, source_id)])[0]


@router.patch("/{source_id}", responses=problem.WRITE, summary="Change a source")
def change_source(source_id: str, body: ChangeSource, hub: HubOf, caller: Caller) -> Source:
    """Set a source's name, configuration or credentials."""
    del caller
    if body.config is not None or body.credentials is not None:
        with hub.catalog.read() as session:
            row = queries.get_source(session, source_id)
        given = body.credentials.reveal() if body.credentials is not None else None
        hub.check_source(row.type, row.config if body.config is None else body.config, given)
    with hub.catalog.write() as session:
        return service.change(session, hub, source_id, body)


@router.delete(
    "/{source_id}",
    responses=problem.WRITE,
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Forget a source",
)
def delete_source(source_id: str, hub: HubOf, caller: Caller) -> Response:
    """Forget a source and its VMs; a conflict while these have backups."""
    del caller
    with hub.catalog.write() as session:
        service.delete(session, source_id)
    return Response(status_code=status.HTTP_204_NO_CONTENT)


@router.post("/{source_id}/test", responses=problem.WRITE, summary="Try a registered source")
def test_registered_source(source_id: str, hub: HubOf, caller: Caller) -> SourceTested:
    """Contact the platform."""
    del caller
    return service.try_registered(hub, source_id)


@router.post(
    "/{source_id}/discover",
    status_code=status.HTTP_202_ACCEPTED,
    responses={**problem.WRITE, **started.ACCEPTED},
    summary="Discover VMs",
)
def discover_source(
    source_id: str,
    response: Response,
    hub: HubOf,
    keyed: KeyOf,
    caller: Caller,
    body: Discover | None = None,
) -> DiscoverAccepted:
    """Start reading the VMs and disks of a source into the catalog."""
    del caller, body
    answer = request_discovery(hub, source_id, keyed)
    started.point_to_job(response, answer.job_id)
    return answer


def request_discovery(hub: Hub, source_id: str, keyed: Keyed) -> DiscoverAccepted:
    """Start it, unless it was started by the same request before."""
    return started.start_once(
        hub,
        keyed,
        DiscoverAccepted,
        lambda session: service.start_discovery(session, hub, source_id),
    )
