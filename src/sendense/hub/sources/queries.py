"""Sources in the catalog."""

from collections.abc import Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from sendense.core.errors import Exists, NotFound
from sendense.db.tables import SourceRow, VmRow


def find_source(session: Session, source_id: str) -> SourceRow | None:
    """Return a source or None."""
    return session.get(SourceRow, source_id)


def get_source(session: Session, source_id: str) -> SourceRow:
    """Return a source. Raises NotFound, kind `source-unknown`."""
    row = find_source(session, source_id)
    if row is None:
        raise NotFound(
            f"source {source_id} is not known",
            kind="source-unknown",
            hint="see `GET /api/v1/sources`",
            source_id=source_id,
        )
    return row


def list_sources(
    session: Session, *, limit: int | None = None, offset: int = 0
) -> tuple[Sequence[SourceRow], int]:
    """Return sources by name, and how many there are in all."""
    total = session.scalar(select(func.count()).select_from(SourceRow)) or 0
    rows = session.scalars(
        select(SourceRow).order_by(SourceRow.name, SourceRow.id).limit(limit).offset(offset)
    )
    return rows.all(), total


def check_name_free(session: Session, name: str, *, but: str | None = None) -> None:
    """Raise Exists, kind `source-name-taken`, where another source has the name."""
    row = session.scalar(select(SourceRow).where(SourceRow.name == name))
    if row is not None and row.id != but:
        raise Exists(
            f"a source is named {name} already", kind="source-name-taken", source_id=row.id
        )


def count_vms(session: Session, ids: Sequence[str]) -> dict[str, int]:
    """Return how many VMs each source has, without those that are gone."""
    rows = session.execute(
        select(VmRow.source_id, func.count())
        .where(VmRow.source_id.in_(ids), VmRow.gone_at.is_(None))
        .group_by(VmRow.source_id)
    )
    return {row[0]: row[1] for row in rows}


def list_vm_ids(session: Session, source_id: str) -> list[str]:
    """Return the ids of all VMs of a source."""
    return list(session.scalars(select(VmRow.id).where(VmRow.source_id == source_id)))


def delete_source(session: Session, source_id: str) -> None:
    """Forget a source with its VMs and their disks."""
    session.execute(delete(VmRow).where(VmRow.source_id == source_id))
    session.execute(delete(SourceRow).where(SourceRow.id == source_id))
