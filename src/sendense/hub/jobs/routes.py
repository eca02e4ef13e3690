"""HTTP of jobs."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, status
from fastapi.responses import StreamingResponse

from sendense.hub import problem
from sendense.hub.access import Caller
from sendense.hub.context import HubOf
from sendense.hub.jobs import events, queries, service
from sendense.hub.jobs.schemas import Job, JobDetail, JobFilter, JobList
from sendense.hub.model import Text

router = APIRouter(prefix="/jobs", tags=["jobs"])


@router.get("", responses=problem.READ, summary="List jobs")
def list_jobs(wanted: Annotated[JobFilter, Query()], hub: HubOf, caller: Caller) -> JobList:
    """List jobs, newest first."""
    del caller
    with hub.catalog.read() as session:
        return service.list_jobs(session, hub, wanted)


# Before the parameterised routes.
@router.get(
    "/events",
    summary="Follow jobs",
    response_class=StreamingResponse,
    responses={
        **problem.READ,
        200: {
            "description": "Server-sent events named `job`, each with a job as its data; first "
            "the active ones, then each change. `Last-Event-ID` goes on where one stopped.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
    },
)
def follow_jobs(
    request: Request,
    hub: HubOf,
    caller: Caller,
    job_id: Annotated[Text | None, Query(description="Only this job.")] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """Send each job's state and progress as it changes."""
    del caller
    if job_id is not None:
        with hub.catalog.read() as session:
            queries.get_job(session, job_id)
    feed = events.Feed(hub, job_id=job_id, last_event_id=last_event_id)
    listeners: events.Listeners = request.app.state.listeners
    listeners.add(feed)
    return StreamingResponse(
        events.stream(feed, request, listeners),
        media_type="text/event-stream",
        headers={"X-Accel-Buffering": "no"},
    )


@router.get("/{job_id}", responses=problem.READ, summary="Show a job")
def get_job(job_id: str, hub: HubOf, caller: Caller) -> JobDetail:
    """Show one job with its steps, log and attempts."""
    del caller
    with hub.catalog.read() as session:
        return service.show_detail(session, hub, queries.get_job(session, job_id))


@router.post(
    "/{job_id}/cancel",
    responses=problem.WRITE,
    status_code=status.HTTP_202_ACCEPTED,
    summary="Cancel a job",
)
def cancel_job(job_id: str, hub: HubOf, caller: Caller) -> Job:
    """Ask a job to stop; it cleans up after itself, then its status is `cancelled`."""
    del caller
    with hub.catalog.write() as session:
        return service.show(service.cancel(session, job_id, hub))
