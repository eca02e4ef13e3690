"""Writes what a repository holds into the catalog: after a hub was lost, or from another one.

import_backups   read the manifests and write what the catalog does not have, in batches
finish           the job ends with what was found
"""

from typing import Any

from sqlalchemy.orm import Session

from sendense.db.tables import RepositoryRow
from sendense.durable.definition import Retry, step
from sendense.hub.backups import queries as backups
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs.queries import JobProgress
from sendense.hub.repositories import importing, neighbours
from sendense.repository.repository import Repository
from sendense.workflows.context import Context, begin, get_repository
from sendense.workflows.ending import one_step
from sendense.workflows.watch import watch

IMPORT_RETRY = Retry(attempts_max=3, interval_seconds=2.0)
BATCH = 100  # backups of one transaction: some hundred milliseconds in which nobody else writes
LOGGED_MAX = 100  # of damaged objects; a check of the repository names all


@step("import_backups", retry=IMPORT_RETRY)
def import_backups(context: Context, job_id: str) -> dict[str, Any]:
    """Write the backups into the catalog, oldest first. Begun again, it goes on."""
    with context.catalog.write() as session:
        job = begin(session, context, job_id)
        row = get_repository(session, str(job.subject["repository_id"]))
    percent = 0.0

    def report(session: Session) -> None:
        jobs.set_phase(session, job_id, "importing", now=context.now())
        jobs.set_progress(session, job_id, JobProgress(percent), now=context.now())

    with (
        watch(context, job_id, report=report) as control,
        context.open_repository(row) as repository,
    ):
        found, damaged = repository.backups.scan()
        added, known = 0, 0
        elsewhere: list[str] = []
        for start in range(0, len(found), BATCH):
            control.check()
            batch = found[start : start + BATCH]
            with context.catalog.write() as session:
                row = get_repository(session, row.id)
                done = importing.write(session, row, batch, ids=context.ids, now=context.now())
            added, known = added + done.added, known + done.known
            elsewhere += done.elsewhere
            percent = 90.0 * (start + len(batch)) / len(found)
        held = repository.backups.list_held()
        deleted = _follow_deletions(context, job_id, row, repository, is_whole=not damaged)
        with context.catalog.write() as session:
            row = get_repository(session, row.id)
            importing.follow_chains(session, row, found, now=context.now())
            importing.follow_holds(session, row, held)
            neighbours.note_foreign(session, row.id, found)
            for error in damaged[:LOGGED_MAX]:
                jobs.add_log(session, job_id, error.message, now=context.now(), level="warning")
            for backup_id in elsewhere[:LOGGED_MAX]:
                line = f"backup {backup_id} is known from another repository and left as it is"
                jobs.add_log(session, job_id, line, now=context.now(), level="warning")
    return {
        "backups_found": len(found),
        "backups_added": added,
        "backups_known": known,
        "backups_elsewhere": len(elsewhere),
        "backups_deleted": deleted,
        "objects_damaged": len(damaged),
    }


def _follow_deletions(
    context: Context, job_id: str, row: RepositoryRow, repository: Repository, *, is_whole: bool
) -> int:
    """Mark what was deleted there since the catalog knew of it; return how many.

    A catalog that came back from an export is older than its repositories. What is neither there
    nor known to be deleted is told and left: a list says nothing of why something is not in it.
    """
    manifests, _ = repository.backups.scan()  # again: a backup may have been completed since
    with context.catalog.read() as session:
        vanished = importing.list_vanished(session, row, manifests)
    deleted = repository.backups.list_deleted_of(vanished) if vanished and is_whole else frozenset()
    for start in range(0, len(vanished), BATCH):
        with context.catalog.write() as session:
            for backup_id in vanished[start : start + BATCH]:
                if backup_id in deleted:
                    backups.delete_backup(session, backup_id, now=context.now())
            lines = [_tell(one, is_deleted=one in deleted) for one in vanished]
            for line in lines[start : min(start + BATCH, LOGGED_MAX)]:
                jobs.add_log(session, job_id, line, now=context.now(), level="warning")
    return len(deleted)


def _tell(backup_id: str, *, is_deleted: bool) -> str:
    if is_deleted:
        return f"backup {backup_id} was deleted in the repository"
    return f"backup {backup_id} is not in the repository, and was not deleted: check it"


IMPORT_REPOSITORY = one_step("import_repository", import_backups)
