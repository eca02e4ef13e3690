"""Running a failed or cancelled job again: the same request, a new job."""

from typing import Any

from fastapi import APIRouter, Response, status

from sendense.core.errors import Conflict
from sendense.hub import problem, started
from sendense.hub.access import Caller
from sendense.hub.backups import queries as backup_queries
from sendense.hub.backups import routes as backups
from sendense.hub.backups import service as backup_service
from sendense.hub.context import Hub, HubOf
from sendense.hub.idempotency import Keyed, KeyOf
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs import service as job_service
from sendense.hub.jobs.schemas import JobKind
from sendense.hub.model import Accepted
from sendense.hub.repositories import routes as repositories
from sendense.hub.repositories.schemas import CheckRepository, CollectGarbage, VerifyRepository
from sendense.hub.restores import queries as restore_queries
from sendense.hub.restores import routes as restores
from sendense.hub.restores import service as restore_service
from sendense.hub.sources import routes as sources

router = APIRouter(prefix="/jobs", tags=["jobs"])


@router.post(
    "/{job_id}/retry",
    status_code=status.HTTP_202_ACCEPTED,
    responses={**problem.START, **started.ACCEPTED},
    summary="Retry a job",
)
def retry_job(
    job_id: str, response: Response, hub: HubOf, keyed: KeyOf, caller: Caller
) -> Accepted:
    """Start the work of a failed or cancelled job again, as a new job."""
    del caller
    answer = _start_again(hub, job_id, keyed)
    started.point_to_job(response, answer.job_id)
    return Accepted(job_id=answer.job_id, status=answer.status)


def _start_again(hub: Hub, job_id: str, keyed: Keyed) -> Accepted:
    with hub.catalog.read() as session:
        job = jobs.get_job(session, job_id)
        job_service.check_retry(job)
        subject = job.subject
        match JobKind(job.kind):
            case JobKind.BACKUP:
                backup = backup_queries.get_backup(session, subject["backup_id"])
                if backup.vm_id is None:
                    raise Conflict(f"VM {backup.vm_name} was removed", kind="vm-gone")
                wanted = backup_service.to_request(session, backup)
            case JobKind.RESTORE:
                restore = restore_service.to_request(
                    restore_queries.get_restore(session, subject["restore_id"])
                )
    match JobKind(job.kind):
        case JobKind.BACKUP:
            return backups.request_backup(hub, wanted, keyed, retry_of=job_id)
        case JobKind.RESTORE:
            return restores.request_restore(hub, restore, keyed, retry_of=job_id)
        case JobKind.DISCOVERY:
            return sources.request_discovery(hub, subject["source_id"], keyed)
        case JobKind.IMPORT:
            return repositories.request_import(hub, subject["repository_id"], keyed)
        case JobKind.HUB_EXPORT:
            return repositories.request_hub_export(hub, subject["repository_id"], keyed)
        case kind:
            return _start_again_on_repository(hub, kind, subject, keyed)


def _start_again_on_repository(
    hub: Hub, kind: JobKind, subject: dict[str, Any], keyed: Keyed
) -> Accepted:
    """Ask for a repository's job in the words in which it was asked for."""
    repository_id = subject["repository_id"]
    asked = {name: value for name, value in subject.items() if name != "repository_id"}
    if kind is JobKind.GC:
        collect = CollectGarbage.model_validate(asked)
        return repositories.request_gc(hub, repository_id, collect, keyed)
    if kind is JobKind.VERIFY:
        verify = VerifyRepository.model_validate(asked)
        return repositories.request_verify(hub, repository_id, verify, keyed)
    check = CheckRepository.model_validate(asked)
    return repositories.request_check(hub, repository_id, check, keyed)
