"""HTTP of repositories."""

from typing import Annotated

from fastapi import APIRouter, Query, Response, status

from sendense.core.errors import SendenseError
from sendense.hub import problem, started
from sendense.hub.access import Caller
from sendense.hub.context import Hub, HubOf
from sendense.hub.idempotency import Keyed, KeyOf
from sendense.hub.model import Page
from sendense.hub.repositories import queries, recipients, registration, service
from sendense.hub.repositories.schemas import (
    AddPassphrase,
    ChangeRepository,
    CheckAccepted,
    CheckRepository,
    CollectGarbage,
    CreatedRepository,
    CreateRepository,
    GcAccepted,
    HubExportAccepted,
    ImportAccepted,
    Recipient,
    RecipientList,
    Repository,
    RepositoryList,
    Storage,
    TestRepository,
    TestResult,
    UnlockRepository,
    VerifyAccepted,
    VerifyRepository,
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
) -> CreatedRepository:
    """Register a repository, and make it where its folder is missing or empty.

    A new one is encrypted; its `recovery_key` is in this answer and in no other.
    """
    del caller
    with hub.catalog.read() as session:  # before anything is made on disk for a name in use
        queries.check_name_free(session, body.name)
    opened = registration.open_or_make(hub, body)
    try:
        with hub.catalog.write() as session:
            answer = registration.create(session, hub, body, opened)
    except Exception:
        registration.unmake(hub, body, opened)
        raise
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
    return registration.try_out(hub, body.type, body.config)


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


@router.post(
    "/{repository_id}/unlock",
    responses=problem.WRITE,
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Give a repository's key again",
)
def unlock_repository(
    repository_id: str, body: UnlockRepository, hub: HubOf, caller: Caller
) -> Response:
    """Give the hub the key of an encrypted repository again, where it has lost its own."""
    del caller
    with hub.catalog.read() as session:
        row = queries.get_repository(session, repository_id)
    root_key = recipients.unlock(hub, row, body)
    with hub.catalog.write() as session:
        recipients.keep_key(session, hub, repository_id, root_key)
    return Response(status_code=status.HTTP_204_NO_CONTENT)


@router.get("/{repository_id}/keys", responses=problem.READ, summary="List who can open it")
def list_recipients(repository_id: str, hub: HubOf, caller: Caller) -> RecipientList:
    """List the passphrases that open a repository beside its recovery key."""
    del caller
    with hub.catalog.read() as session:
        row = queries.get_repository(session, repository_id)
    return recipients.list_recipients(hub, row)


@router.post(
    "/{repository_id}/keys",
    responses=problem.WRITE,
    status_code=status.HTTP_201_CREATED,
    summary="Add a passphrase",
)
def add_passphrase(
    repository_id: str, body: AddPassphrase, response: Response, hub: HubOf, caller: Caller
) -> Recipient:
    """Let a passphrase open a repository."""
    del caller
    with hub.catalog.read() as session:
        row = queries.get_repository(session, repository_id)
    answer = recipients.add_passphrase(hub, row, body)
    response.headers["Location"] = (
        f"/api/v1/repositories/{repository_id}/keys/{answer.recipient_id}"
    )
    return answer


@router.delete(
    "/{repository_id}/keys/{recipient_id}",
    responses=problem.WRITE,
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Remove a passphrase",
)
def remove_recipient(repository_id: str, recipient_id: str, hub: HubOf, caller: Caller) -> Response:
    """Let a passphrase open a repository no more; whoever kept the key itself still can."""
    del caller
    with hub.catalog.read() as session:
        row = queries.get_repository(session, repository_id)
    recipients.remove_recipient(hub, row, recipient_id)
    return Response(status_code=status.HTTP_204_NO_CONTENT)


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


@router.post(
    "/{repository_id}/gc",
    status_code=status.HTTP_202_ACCEPTED,
    responses={**problem.START, **started.ACCEPTED},
    summary="Free what no backup needs",
)
def collect_garbage(
    repository_id: str,
    response: Response,
    hub: HubOf,
    keyed: KeyOf,
    caller: Caller,
    body: CollectGarbage | None = None,
) -> GcAccepted:
    """Start freeing the space of deleted backups, or only ask how much that is (`preview`)."""
    del caller
    answer = request_gc(hub, repository_id, body or CollectGarbage(), keyed)
    started.point_to_job(response, answer.job_id)
    return answer


@router.post(
    "/{repository_id}/verify",
    status_code=status.HTTP_202_ACCEPTED,
    responses={**problem.WRITE, **started.ACCEPTED},
    summary="Verify stored data",
)
def verify_repository(
    repository_id: str,
    response: Response,
    hub: HubOf,
    keyed: KeyOf,
    caller: Caller,
    body: VerifyRepository | None = None,
) -> VerifyAccepted:
    """Start reading what is stored, longest unverified first, within a budget."""
    del caller
    answer = request_verify(hub, repository_id, body or VerifyRepository(), keyed)
    started.point_to_job(response, answer.job_id)
    return answer


@router.post(
    "/{repository_id}/import",
    status_code=status.HTTP_202_ACCEPTED,
    responses={**problem.WRITE, **started.ACCEPTED},
    summary="Import a repository's backups",
)
def import_repository(
    repository_id: str, response: Response, hub: HubOf, keyed: KeyOf, caller: Caller
) -> ImportAccepted:
    """Start writing into the catalog what the repository holds and the catalog does not."""
    del caller
    answer = request_import(hub, repository_id, keyed)
    started.point_to_job(response, answer.job_id)
    return answer


@router.post(
    "/{repository_id}/hub-export",
    status_code=status.HTTP_202_ACCEPTED,
    responses={**problem.WRITE, **started.ACCEPTED},
    summary="Export the hub into a repository",
)
def export_hub(
    repository_id: str, response: Response, hub: HubOf, keyed: KeyOf, caller: Caller
) -> HubExportAccepted:
    """Start putting the catalog, sealed with the hub's own key, into the repository."""
    del caller
    answer = request_hub_export(hub, repository_id, keyed)
    started.point_to_job(response, answer.job_id)
    return answer


def request_hub_export(hub: Hub, repository_id: str, keyed: Keyed) -> HubExportAccepted:
    """Start it, unless it was started by the same request before."""
    return started.start_once(
        hub,
        keyed,
        HubExportAccepted,
        lambda session: service.start_hub_export(session, hub, repository_id),
    )


def request_import(hub: Hub, repository_id: str, keyed: Keyed) -> ImportAccepted:
    """Start it, unless it was started by the same request before."""
    return started.start_once(
        hub,
        keyed,
        ImportAccepted,
        lambda session: service.start_import(session, hub, repository_id),
    )


def request_gc(hub: Hub, repository_id: str, body: CollectGarbage, keyed: Keyed) -> GcAccepted:
    """Start it, unless it was started by the same request before."""
    return started.start_once(
        hub,
        keyed,
        GcAccepted,
        lambda session: service.start_gc(session, hub, repository_id, body),
    )


def request_verify(
    hub: Hub, repository_id: str, body: VerifyRepository, keyed: Keyed
) -> VerifyAccepted:
    """Start it, unless it was started by the same request before."""
    return started.start_once(
        hub,
        keyed,
        VerifyAccepted,
        lambda session: service.start_verify(session, hub, repository_id, body),
    )


def request_check(
    hub: Hub, repository_id: str, body: CheckRepository, keyed: Keyed
) -> CheckAccepted:
    """Start it, unless it was started by the same request before."""
    return started.start_once(
        hub,
        keyed,
        CheckAccepted,
        lambda session: service.start_check(session, hub, repository_id, read_data=body.read_data),
    )
