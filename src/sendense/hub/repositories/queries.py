"""Repositories in the catalog; never what lies in them."""

from collections.abc import Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from sendense.core.errors import Exists, NotFound
from sendense.db.tables import BackupDiskRow, BackupRow, RepositoryRow, RestoreRow
from sendense.hub.jobs.schemas import ACTIVE, JobStatus


def find_repository(session: Session, repository_id: str) -> RepositoryRow | None:
    """Return a repository or None."""
    return session.get(RepositoryRow, repository_id)


def get_repository(session: Session, repository_id: str) -> RepositoryRow:
    """Return a repository. Raises NotFound, kind `repository-unknown`."""
    row = find_repository(session, repository_id)
    if row is None:
        raise NotFound(
            f"repository {repository_id} is not known",
            kind="repository-unknown",
            hint="see `GET /api/v1/repositories`",
            repository_id=repository_id,
        )
    return row


def list_repositories(
    session: Session, *, limit: int | None = None, offset: int = 0
) -> tuple[Sequence[RepositoryRow], int]:
    """Return repositories by name, and how many there are in all."""
    total = session.scalar(select(func.count()).select_from(RepositoryRow)) or 0
    rows = session.scalars(
        select(RepositoryRow)
        .order_by(RepositoryRow.name, RepositoryRow.id)
        .limit(limit)
        .offset(offset)
    )
    return rows.all(), total


def check_name_free(session: Session, name: str, *, but: str | None = None) -> None:
    """Raise Exists, kind `repository-name-taken`, where another repository has the name."""
    row = session.scalar(select(RepositoryRow).where(RepositoryRow.name == name))
    if row is not None and row.id != but:
        raise Exists(
            f"a repository is named {name} already",
            kind="repository-name-taken",
            repository_id=row.id,
        )


def find_by_uuid(session: Session, uuid: str) -> RepositoryRow | None:
    """Return the repository that carries an id inside, or None."""
    return session.scalar(select(RepositoryRow).where(RepositoryRow.uuid == uuid))


def count_backups(session: Session, ids: Sequence[str]) -> dict[str, int]:
    """Return how many backups are or will be in each repository; deleted ones do not count."""
    rows = session.execute(
        select(BackupRow.repository_id, func.count())
        .where(
            BackupRow.repository_id.in_(ids),
            BackupRow.deleted_at.is_(None),
            BackupRow.status.in_({*ACTIVE, JobStatus.COMPLETED}),
        )
        .group_by(BackupRow.repository_id)
    )
    return {row[0]: row[1] for row in rows}


def delete_repository(session: Session, repository_id: str) -> None:
    """Forget a repository, with the history of its deleted and failed backups.

    What lies in the repository stays.
    """
    backups = select(BackupRow.id).where(BackupRow.repository_id == repository_id)
    for table, column in (
        (RestoreRow, RestoreRow.backup_id),
        (BackupDiskRow, BackupDiskRow.backup_id),
    ):
        session.execute(delete(table).where(column.in_(backups)))
    session.execute(delete(BackupRow).where(BackupRow.repository_id == repository_id))
    session.execute(delete(RepositoryRow).where(RepositoryRow.id == repository_id))
