"""Sources in the catalog."""

from collections.abc import Sequence

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from sendense.core.errors import Conflict, Exists, NotFound
from sendense.db.tables import HubRow, RepositoryRow, SourceRow, VmRow


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


def find_by_uuid(session: Session, uuid: str) -> SourceRow | None:
    """Return the source whose platform has this identity, or None."""
    return session.scalar(select(SourceRow).where(SourceRow.uuid == uuid))


def check_host_free(session: Session, row: SourceRow) -> None:
    """Raise Exists, kind `source-registered-twice`, where another source of its type has its host.

    One that is called otherwise is noticed at first contact; see `settle_identity`.
    """
    host = _plain_host(row)
    if host is None:
        return
    for other in session.scalars(select(SourceRow).where(SourceRow.type == row.type)):
        if other.id != row.id and _plain_host(other) == host:
            raise Exists(
                f"host {host} is source {other.name} already",
                kind="source-registered-twice",
                hint=f"use source {other.name}; `sendense source set-credentials` changes who"
                " logs in",
                source_id=other.id,
            )


def _plain_host(row: SourceRow) -> str | None:
    """Return a source's host as it is compared, or None for types without one."""
    host = row.config.get("host")
    return host.lower().removesuffix(":443") if isinstance(host, str) else None


def settle_identity(session: Session, row: SourceRow, uuid: str) -> None:
    """Note the identity that a platform told, at first contact; later ones must tell the same.

    Raises Exists, kind `source-registered-twice`, where another source is that platform, and
    Conflict, kind `source-is-another`, where this one was another before: its VMs would be taken
    for those of the other one.
    """
    if row.uuid == uuid:
        return
    other = find_by_uuid(session, uuid)
    if other is not None:
        raise Exists(
            f"source {row.name} is the same platform as source {other.name}",
            kind="source-registered-twice",
            hint=f"keep source {other.name}, which may have backups, and remove {row.name}",
            source_id=other.id,
            uuid=uuid,
        )
    if row.uuid != row.id:
        raise Conflict(
            f"another platform answers at the address of source {row.name}: its identity is"
            f" {uuid}, it was {row.uuid}",
            kind="source-is-another",
            hint="mend the source's host; a platform that was installed anew is another source",
            source_id=row.id,
            uuid=uuid,
        )
    row.uuid = uuid
    session.execute(update(VmRow).where(VmRow.source_id == row.id).values(source_uuid=uuid))


def count_vms(session: Session, ids: Sequence[str]) -> dict[str, int]:
    """Return how many VMs each source has, without those that are gone."""
    rows = session.execute(
        select(VmRow.source_id, func.count())
        .where(VmRow.source_id.in_(ids), VmRow.gone_at.is_(None))
        .group_by(VmRow.source_id)
    )
    return {row[0]: row[1] for row in rows}


def is_any_sealed(session: Session, *, but: str) -> bool:
    """Whether any other source has credentials, any other repository a key, or the hub its own."""
    sources = select(SourceRow.id).where(SourceRow.credentials.is_not(None), SourceRow.id != but)
    keys = select(RepositoryRow.id).where(
        RepositoryRow.sealed_key.is_not(None), RepositoryRow.id != but
    )
    own = select(HubRow.id).where(HubRow.sealed_key.is_not(None))
    return any(session.scalar(query.limit(1)) is not None for query in (sources, keys, own))


def list_vm_ids(session: Session, source_id: str) -> list[str]:
    """Return the ids of all VMs of a source."""
    return list(session.scalars(select(VmRow.id).where(VmRow.source_id == source_id)))


def delete_source(session: Session, source_id: str) -> None:
    """Forget a source with its VMs and their disks."""
    session.execute(delete(VmRow).where(VmRow.source_id == source_id))
    session.execute(delete(SourceRow).where(SourceRow.id == source_id))
