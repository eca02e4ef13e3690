"""Backups in a repository that this hub's catalog does not list: whose are they?

Two hubs may use one repository, and neither loses the other's backups. But whoever looks at one of
them sees a part, and a hub that was restored from an old copy of its database does not know what it
has forgotten. So it is said.
"""

from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from sendense.db.tables import BackupRow, RepositoryRow
from sendense.hub.repositories import queries
from sendense.repository.manifest import Manifest

IDS_PER_QUESTION = 500  # of parameters in one statement: every database takes as many


def note_foreign(session: Session, repository_id: str, manifests: Iterable[Manifest]) -> int:
    """Count the backups that the catalog never heard of, and remember how many they are."""
    ids = [one.backup_id for one in manifests]
    known = 0
    for start in range(0, len(ids), IDS_PER_QUESTION):
        asked = ids[start : start + IDS_PER_QUESTION]
        known += len(session.scalars(select(BackupRow.id).where(BackupRow.id.in_(asked))).all())
    row = queries.get_repository(session, repository_id)
    row.foreign_backups = len(ids) - known
    return row.foreign_backups


def list_warnings(row: RepositoryRow) -> list[str]:
    """Return what a user should know of it."""
    if not row.foreign_backups:
        return []
    warning = (
        f"{row.foreign_backups} of its backups are not in this server's list: another server uses "
        "it too, or this one has lost them; an import brings them in"
    )
    return [warning]
