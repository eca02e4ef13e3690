"""What an export of the hub holds, and how a new hub is made of one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from sendense.core import ids as core_ids
from sendense.core.clock import Clock
from sendense.core.errors import Corrupt, SendenseError
from sendense.core.ids import IdSource
from sendense.db import dump, schema
from sendense.db.catalog import Catalog
from sendense.db.tables import JobRow, RepositoryRow
from sendense.durable.schema import PRIORITY_HOUSEKEEPING
from sendense.hub.exports import keys
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs.schemas import ACTIVE, JobKind
from sendense.hub.keyfile import KeyPlaces
from sendense.hub.sealing import Vault
from sendense.repository import hub_exports
from sendense.repository.hub_exports import About, Export, Packed
from sendense.repository.keyed import KeyedStorage

CREDENTIALS_KEY, SETTINGS = "credentials_key", "settings"
NOT_SHOWN = (
    "nobody has seen the recovery key of this server yet, without which no export opens:"
    " run `sendense hub recovery-key` and write it down"
)


@dataclass(frozen=True, slots=True)
class Exporter:
    """What an export is made of.

    Attributes:
        settings: by name, as JSON values, without what belongs to this machine alone.
    """

    catalog: Catalog
    vault: Vault
    clock: Clock
    ids: IdSource
    version: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Gathered:
    """All that an export says; `warnings` tell what would be missed after a restore."""

    root_key: bytes
    about: About
    packed: Packed
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Restored:
    """What came back.

    Attributes:
        jobs_unfinished: at the time of the export; the server ends them when it starts.
        repositories: whose newer backups the server imports when it starts.
    """

    rows: int
    jobs_unfinished: int
    repositories: tuple[str, ...]
    settings: Mapping[str, Any]


def gather(exporter: Exporter) -> Gathered:
    """Read the whole catalog in one view. Raises what `keys.get_or_make` does."""
    name, root_key = keys.get_or_make(exporter.catalog, exporter.vault, exporter.ids)
    warnings = [] if keys.is_shown(exporter.catalog) else [NOT_SHOWN]
    more: dict[str, Any] = {SETTINGS: dict(exporter.settings), CREDENTIALS_KEY: None}
    try:
        more[CREDENTIALS_KEY] = exporter.vault.read_key().hex()
    except SendenseError as error:  # the key was there a moment ago
        warnings.append(f"the export is without the key of the credentials: {error.message}")
    with exporter.catalog.read() as session:
        packed = hub_exports.compress(dump.read_rows(session))
    about = About(
        hub=name,
        at=exporter.clock.now(),
        version=exporter.version,
        revision=schema.newest_revision(),
        more=more,
    )
    return Gathered(root_key, about, packed, tuple(warnings))


def restore(
    catalog: Catalog,
    places: KeyPlaces,
    place: KeyedStorage,
    export: Export,
    *,
    now: datetime,
    ids: IdSource,
) -> Restored:
    """Make an empty catalog, and the key of the credentials, what they were.

    Jobs that had not ended are ended by the server as after the loss of its job engine: a backup
    that was committed is recorded, any other has failed. Then each repository is imported.

    Raises Conflict (kinds `catalog-not-empty`, `credentials-key-differs`), Corrupt where the
    export is damaged, and what the catalog raises; the catalog has no row then.
    """
    dump.require_empty(catalog)
    key = export.head.more.get(CREDENTIALS_KEY)
    if key is not None:
        places.put_back(str(key))
    dump.restore(catalog, export.head.revision, _count(place, export))
    with catalog.write() as session:
        unfinished = _leave_to_housekeeping(session)
        imported = _plan_imports(session, now=now, ids=ids)
    settings = export.head.more.get(SETTINGS)
    return Restored(
        rows=sum(export.head.tables.values()),
        jobs_unfinished=unfinished,
        repositories=imported,
        settings=settings if isinstance(settings, dict) else {},
    )


def _count(place: KeyedStorage, export: Export) -> Iterator[dump.Row]:
    """Yield the rows; raise Corrupt at the end where they are not as many as the head says."""
    counts: dict[str, int] = {}
    for name, row in hub_exports.read(place, export):
        counts[name] = counts.get(name, 0) + 1
        yield name, row
    if counts != dict(export.head.tables):
        raise Corrupt(
            "the export has more or fewer rows than it says",
            kind="hub-export-damaged",
            object=export.folder,
        )


def _leave_to_housekeeping(session: Session) -> int:
    """Let jobs that were never begun look begun, so that they are ended and not run now."""
    session.execute(
        update(JobRow)
        .where(JobRow.status.in_(ACTIVE), JobRow.enqueued_at.is_(None))
        .values(enqueued_at=JobRow.created_at)
    )
    return len(session.scalars(select(JobRow.id).where(JobRow.status.in_(ACTIVE))).all())


def _plan_imports(session: Session, *, now: datetime, ids: IdSource) -> tuple[str, ...]:
    """Write a pending import of each enabled repository: for what came and went since."""
    names = []
    for row in session.scalars(
        select(RepositoryRow).where(RepositoryRow.enabled).order_by(RepositoryRow.name)
    ):
        jobs.create_job(
            session,
            jobs.NewJob(
                id=core_ids.new_id("job", ids),
                kind=JobKind.IMPORT,
                subject={"repository_id": row.id},
                priority=PRIORITY_HOUSEKEEPING,
                created_at=now,
                repository_id=row.id,
            ),
        )
        names.append(row.name)
    return tuple(names)
