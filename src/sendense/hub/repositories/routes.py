"""HTTP of repositories."""

from typing import Annotated

from fastapi import APIRouter, Query, Response, status

from sendense.core.errors import SendenseError
from sendense.hub import idempotency, problem, started
from sendense.hub.access import Caller
from sendense.hub.context import Hub, HubOf
from sendense.hub.idempotency import Keyed, KeyOf
from sendense.hub.jobs import service as jobs
from sendense.hub.model import Page
from sendense.hub.repositories import queries, service
from sendense.hub.repositories.schemas import (
    ChangeRepository,
    CheckAccepted,
    CheckRepository,
    CreateRepository,
    Repository,
    RepositoryList,
    Storage,
    TestRepository,
    TestResult,
)

router = APIRouter(prefix="/repositories", tags=["repositories"])


@router.post(
    "",
    responses=problem.START,
    status_code=status.HTTP_201_CREATED,
    summary="Register a repository",
)
def create_repository(
    body: CreateRepository, response: Response, hub: HubOf, caller: Caller
) -> Repository:
    """Register a repository, and make it where its folder is missing or empty."""
    del caller
    with hub.catalog.read() as session:  # before anything is made on disk for a name in use
        queries.check_name_free(session, body.name)
    opened = service.open_or_make(hub, body)
    with hub.catalog.write() as session:
        answer = service.create(session, hub, body, opened)
    response.headers["Location"] = f"/api/v1/repositories/{answer.id}"
    return answer


@router.get("", responses=problem.READ, summary="List repositories")
def list_repositories(
    wanted: Annotated[Page, Query()], hub: HubOf, caller: Caller
) -> RepositoryList:
    """List repositories by name, with the figures last measured."""
    del caller
    with hub.catalog.read() as session:
        return service.list_repositories(session, limit=wanted.limit, offset=wanted.offset)


@router.post("/test", responses=problem.START, summary="Try a place before registering it")
def test_repository(body: TestRepository, hub: HubOf, caller: Caller) -> TestResult:
    """Say whether a place can be a repository; nothing is made."""
    del caller
    return service.try_out(hub, body.type, body.config)


@router.get("/{repository_id}", responses=problem.READ, summary="Show a repository")
def get_repository(repository_id: str, hub: HubOf, caller: Caller) -> Repository:
    """Show one repository, with the figures last measured."""
    del caller
    with hub.catalog.read() as session:
        return service.show(session, [queries.get_repository(session, repository_id)])[0]


@router.patch("/{repository_id}", responses=problem.WRITE, summary="Change a repository")
def change_repository(
    repository_id: str, body: ChangeRepository, hub: HubOf, caller: Caller
) -> Repository:
    """Set a repository's name, or whether backups may be written to it."""
    del caller
    with hub.catalog.write() as session:
        return service.change(session, hub, repository_id, body)


@router.delete(
    "/{repository_id}",
    responses=problem.WRITE,
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Forget a repository",
)
def delete_repository(repository_id: str, hub: HubOf, caller: Caller) -> Response:
    """Forget a repository; its files stay. A conflict while the catalog has backups in it."""
    del caller
    with hub.catalog.write() as session:
        service.check_forgettable(session, repository_id)
        queries.delete_repository(session, repository_id)
    return Response(status_code=status.HTTP_204_NO_CONTENT)


@router.post(
    "/{repository_id}/test", responses=problem.START, summary="Try a registered repository"
)
def test_registered_repository(repository_id: str, hub: HubOf, caller: Caller) -> TestResult:
    """Write, read and remove a small object."""
    del caller
    with hub.catalog.read() as session:
        row = queries.get_repository(session, repository_id)
    return service.try_registered(hub, row)


@router.get("/{repository_id}/storage", responses=problem.READ, summary="Measure a repository")
def get_storage(repository_id: str, hub: HubOf, caller: Caller) -> Storage:
    """Measure capacity now, and remember it."""
    del caller
    with hub.catalog.read() as session:
        row = queries.get_repository(session, repository_id)
    try:
        capacity = service.measure_now(hub, row)
    except SendenseError as error:
        with hub.catalog.write() as session:
            queries.get_repository(session, repository_id).trouble = error.message
        raise
    with hub.catalog.write() as session:
        service.measure(queries.get_repository(session, repository_id), capacity, hub)
        return service.tell_storage(session, hub, repository_id)


@router.post(
    "/{repository_id}/check",
    status_code=status.HTTP_202_ACCEPTED,
    responses={**problem.WRITE, **started.ACCEPTED},
    summary="Check a repository",
)
def check_repository(
    repository_id: str,
    response: Response,
    hub: HubOf,
    keyed: KeyOf,
    caller: Caller,
    body: CheckRepository | None = None,
) -> CheckAccepted:
    """Start checking whether the repository's structure is whole."""
    del caller
    answer = request_check(hub, repository_id, body or CheckRepository(), keyed)
    started.point_to_job(response, answer.job_id)
    return answer


def request_check(
    hub: Hub, repository_id: str, body: CheckRepository, keyed: Keyed
) -> CheckAccepted:
    """Write the job in one transaction, then hand it to the engine."""
    answer, fresh = idempotency.run_once(
        hub,
        keyed,
        CheckAccepted,
        lambda session: service.start_check(session, hub, repository_id, read_data=body.read_data),
    )
    if fresh:
        jobs.enqueue(hub, answer.job_id)
    return answer
