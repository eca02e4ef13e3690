"""Registering repositories, and asking whether one can take a backup now."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from sendense.core import ids as core_ids
from sendense.core.errors import (
    Conflict,
    Corrupt,
    Denied,
    Invalid,
    NotFound,
    Unavailable,
)
from sendense.db.tables import RepositoryRow
from sendense.hub.context import Hub
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs import service as job_service
from sendense.hub.jobs.schemas import JobKind
from sendense.hub.paths import AllowedDirs
from sendense.hub.repositories import neighbours, queries, root_keys
from sendense.hub.repositories.schemas import (
    ChangeRepository,
    CheckAccepted,
    CollectGarbage,
    GcAccepted,
    HubExportAccepted,
    ImportAccepted,
    Repository,
    RepositoryList,
    RepositoryType,
    Storage,
    TestResult,
    VerifyAccepted,
    VerifyRepository,
)
from sendense.repository import descriptor
from sendense.repository import repository as repositories
from sendense.repository.holds import Hold
from sendense.repository.storage import base, local, locations
from sendense.repository.storage.locks import LockMode
from sendense.repository.storage.object_store import ObjectStorage

_log = logging.getLogger(__name__)

PROBE_FOLDER = "probe"
PROBE_TOKEN_LENGTH = 16
_PROBE = b"probe"
_SCHEMES: Mapping[str, str] = {
    RepositoryType.S3: "s3",
    RepositoryType.AZURE: "az",
    RepositoryType.GCS: "gs",
}


def storage_opener(paths: AllowedDirs) -> Callable[[str, Mapping[str, Any]], base.Storage]:
    """Return what opens the storage of a repository by type and configuration.

    A path is resolved at each use: what a link points to may have changed since.
    """

    def open_storage(kind: str, config: Mapping[str, Any]) -> base.Storage:
        if kind == RepositoryType.LOCAL:
            return local.LocalStorage(paths.resolve(str(config["path"])))
        if kind not in _SCHEMES:
            raise Invalid(f"repository type {kind} is not known", kind="repository-type-unknown")
        place = locations.parse(str(config["url"]))
        if place.scheme != _SCHEMES[kind]:
            raise Invalid(
                f"a repository of type {kind} has no URL that begins with {place.scheme}://",
                kind="repository-location-invalid",
                hint=f"{_SCHEMES[kind]}://bucket/prefix is the form",
            )
        return locations.open_place(place)

    return open_storage


@contextlib.contextmanager
def opened(hub: Hub, kind: str, config: Mapping[str, Any]) -> Iterator[base.Storage]:
    """Open a storage, registered or not, while the block runs."""
    storage = hub.open_storage(kind, config)
    try:
        yield storage
    finally:
        storage.close()


def measure(row: RepositoryRow, capacity: base.Capacity | None, hub: Hub) -> None:
    """Remember how large a repository's place is."""
    row.capacity_bytes = capacity.total_bytes if capacity is not None else None
    row.free_bytes = capacity.free_bytes if capacity is not None else None
    row.used_bytes = capacity.total_bytes - capacity.free_bytes if capacity is not None else None
    row.measured_at = hub.clock.now()
    row.trouble = ""


def check_target(hub: Hub, row: RepositoryRow) -> base.Capacity | None:
    """Raise unless a backup can be written to a repository now; return its capacity.

    Raises Conflict (`repository-disabled`, `repository-read-only`), Unavailable
    (`repository-missing`), NoSpace (`repository-full`), Corrupt where another repository lies in
    its place. Asks the storage, so it belongs outside of transactions.
    """
    if not row.enabled:
        raise Conflict(
            f"repository {row.name} is disabled",
            kind="repository-disabled",
            hint='enable it by `PATCH /api/v1/repositories/{id}` with {"enabled": true}',
            repository_id=row.id,
        )
    with open_checked(hub, row) as storage:
        found = descriptor.get(storage)
        opened = repositories.Repository(
            storage,
            found,
            descriptor.unlock(found, root_keys.find(hub, row)),
            clock=hub.clock,
            ids=hub.ids,
            reserve=repositories.Reserve(),
        )
        descriptor.require_writable(found)
        opened.require_room(0)
        _check_writable(hub, row, storage)
        return storage.capacity()


@contextlib.contextmanager
def open_checked(hub: Hub, row: RepositoryRow) -> Iterator[base.Storage]:
    """Open a registered repository's storage and make sure that it is the one we know.

    Raises Unavailable, kind `repository-missing`, where its folder has vanished or is empty, as a
    share that is not mounted, and Corrupt, kind `repository-mistaken`, for another repository.
    """
    try:
        storage = hub.open_storage(row.type, row.config)
    except NotFound as error:
        raise _missing(row) from error
    try:
        try:
            found = descriptor.get(storage)
        except NotFound as error:
            raise _missing(row) from error
        if found.id != row.uuid or _hex(found.domain) != row.domain:
            raise Corrupt(
                f"in the place of repository {row.name} lies another one",
                kind="repository-mistaken",
                hint="mount the right file system, or register this repository by a new name",
                repository_id=row.id,
            )
        yield storage
    finally:
        storage.close()
        _log_requests(row, storage)


def _log_requests(row: RepositoryRow, storage: base.Storage) -> None:
    """Say how many requests an object store was asked, where each costs something."""
    if isinstance(storage, ObjectStorage):
        counted = ", ".join(f"{kind} {count}" for kind, count in sorted(storage.requests.items()))
        _log.info("requests to the store of repository %s: %s", row.name, counted)


@contextlib.contextmanager
def open_repository(hub: Hub, row: RepositoryRow) -> Iterator[repositories.Repository]:
    """Open a registered repository with its key.

    Raises what `open_checked` and `root_keys.find` do.
    """
    with open_checked(hub, row) as storage:
        yield repositories.Repository.open(
            storage, root_key=root_keys.find(hub, row), clock=hub.clock, ids=hub.ids
        )


def place_of(config: Mapping[str, Any]) -> str:
    """Return a repository's path or URL."""
    return str(config.get("path") or config["url"])


def _hex(domain: bytes | None) -> str | None:
    return domain.hex() if domain is not None else None


def _missing(row: RepositoryRow) -> Unavailable:
    return Unavailable(
        f"repository {row.name} is not there",
        kind="repository-missing",
        hint="mount its file system again, or bring its folder or bucket back",
        repository_id=row.id,
        path=place_of(row.config),
    )


def _read_only(row: RepositoryRow, error: Denied) -> Conflict:
    return Conflict(
        f"repository {row.name} is read-only: {error.message}",
        kind="repository-read-only",
        hint=error.hint or "let the server's user write to it",
        repository_id=row.id,
    )


def _check_writable(hub: Hub, row: RepositoryRow, storage: base.Storage) -> None:
    """Write, read and remove a small object: permissions alone do not tell of a mount's state."""
    name = f"{PROBE_FOLDER}/{hub.ids.token(PROBE_TOKEN_LENGTH)}"
    try:
        storage.put_if_absent(name, _PROBE)
    except Denied as error:
        raise _read_only(row, error) from error
    try:
        if storage.get(name) != _PROBE:
            raise Corrupt(
                f"repository {row.name} gives back other bytes than were written",
                kind="repository-lies",
                hint="look at the disk or share it lies on before anything else is written",
                repository_id=row.id,
            )
    finally:
        storage.delete(name)


def delete_backup(hub: Hub, row: RepositoryRow, backup_id: str, *, who: str) -> None:
    """Put a backup's tombstone into its repository; one that is there already is success."""
    with open_repository(hub, row) as opened:
        try:
            with contextlib.suppress(NotFound):
                opened.delete_backup(backup_id, who=who, why="deleted by request")
        except Denied as error:
            raise _read_only(row, error) from error


def hold_backup(
    hub: Hub, row: RepositoryRow, backup_id: str, *, held: bool, who: str, why: str
) -> Hold | None:
    """Hold a backup in its repository, or let it go; return the hold that counts from now on."""
    with open_repository(hub, row) as opened:
        try:
            if held:
                return opened.backups.hold(backup_id, who=who, why=why)
            opened.backups.release(backup_id, who=who, why=why)
        except Denied as error:
            raise _read_only(row, error) from error
    return None


def try_registered(hub: Hub, row: RepositoryRow) -> TestResult:
    """Say whether a backup could be written to a registered repository now."""
    capacity = check_target(hub, row)
    return TestResult(
        usable=True,
        exists=True,
        detail="a small object was written, read and removed",
        capacity_bytes=capacity.total_bytes if capacity is not None else None,
        free_bytes=capacity.free_bytes if capacity is not None else None,
    )


def measure_now(hub: Hub, row: RepositoryRow) -> base.Capacity | None:
    """Ask a repository's storage for its capacity."""
    with open_checked(hub, row) as storage:
        return storage.capacity()


def show(session: Session, rows: Sequence[RepositoryRow]) -> list[Repository]:
    """Return repositories as the API shows them."""
    counts = queries.count_backups(session, [row.id for row in rows])
    return [
        Repository(
            id=row.id,
            name=row.name,
            type=RepositoryType(row.type),
            uuid=row.uuid,
            config=row.config,
            required_labels=row.required_labels or {},
            enabled=row.enabled,
            chunk_size=row.chunk_size,
            encrypted=row.domain is not None,
            immutable_days=row.immutable_days or 0,
            lock_mode=LockMode(row.lock_mode) if row.lock_mode else None,
            capacity_bytes=row.capacity_bytes,
            free_bytes=row.free_bytes,
            measured_at=row.measured_at,
            trouble=row.trouble or None,
            backup_count=counts.get(row.id, 0),
            created_at=row.created_at,
            updated_at=row.updated_at,
            warnings=neighbours.list_warnings(row),
        )
        for row in rows
    ]


def list_repositories(session: Session, *, limit: int, offset: int) -> RepositoryList:
    """Return a page of repositories."""
    rows, total = queries.list_repositories(session, limit=limit, offset=offset)
    return RepositoryList(repositories=show(session, rows), total=total)


def tell_storage(session: Session, hub: Hub, repository_id: str) -> Storage:
    """Return the figures that were just measured."""
    row = queries.get_repository(session, repository_id)
    return Storage(
        repository_id=row.id,
        capacity_bytes=row.capacity_bytes,
        free_bytes=row.free_bytes,
        used_bytes=row.used_bytes,
        backup_count=queries.count_backups(session, [row.id]).get(row.id, 0),
        measured_at=row.measured_at or hub.clock.now(),
    )


def change(session: Session, hub: Hub, repository_id: str, wanted: ChangeRepository) -> Repository:
    """Set a repository's name, or whether backups may be written to it."""
    row = queries.get_repository(session, repository_id)
    if wanted.name is not None:
        queries.check_name_free(session, wanted.name, but=repository_id)
        row.name = wanted.name
    if wanted.enabled is not None:
        row.enabled = wanted.enabled
    if wanted.required_labels is not None:
        row.required_labels = wanted.required_labels or None
    row.updated_at = hub.clock.now()
    session.flush()
    return show(session, [row])[0]


def check_forgettable(session: Session, repository_id: str) -> None:
    """Raise Conflict while a repository has backups or jobs."""
    row = queries.get_repository(session, repository_id)
    active = jobs.list_active_of_repository(session, repository_id)
    if active:
        raise Conflict(
            f"job {active[0].id} works on repository {row.name}",
            kind="repository-busy",
            hint="wait for it, or cancel it",
            job_id=active[0].id,
        )
    count = queries.count_backups(session, [repository_id]).get(repository_id, 0)
    if count:
        raise Conflict(
            f"repository {row.name} holds {count} backups",
            kind="repository-has-backups",
            hint="delete its backups first",
            repository_id=repository_id,
            backups=count,
        )


def start_check(
    session: Session, hub: Hub, repository_id: str, *, read_data: bool
) -> CheckAccepted:
    """Write a pending check."""
    row = queries.get_repository(session, repository_id)
    job_id = _start(session, hub, row, JobKind.CHECK, read_data=read_data)
    return CheckAccepted(job_id=job_id, repository_id=row.id)


def start_import(session: Session, hub: Hub, repository_id: str) -> ImportAccepted:
    """Write a pending import."""
    row = queries.get_repository(session, repository_id)
    return ImportAccepted(job_id=_start(session, hub, row, JobKind.IMPORT), repository_id=row.id)


def start_hub_export(session: Session, hub: Hub, repository_id: str) -> HubExportAccepted:
    """Write a pending export of the hub into a repository."""
    row = queries.get_repository(session, repository_id)
    return HubExportAccepted(
        job_id=_start(session, hub, row, JobKind.HUB_EXPORT), repository_id=row.id
    )


def start_verify(
    session: Session, hub: Hub, repository_id: str, wanted: VerifyRepository
) -> VerifyAccepted:
    """Write a pending verification."""
    row = queries.get_repository(session, repository_id)
    job_id = _start(session, hub, row, JobKind.VERIFY, **wanted.model_dump())
    return VerifyAccepted(job_id=job_id, repository_id=row.id)


def start_gc(session: Session, hub: Hub, repository_id: str, wanted: CollectGarbage) -> GcAccepted:
    """Write a pending garbage collection.

    Raises Conflict, kind `gc-running`, where one that deletes is pending or running: two at once
    are safe, and the second only waits beside the first.
    """
    row = queries.get_repository(session, repository_id)
    for job in jobs.list_active_of_repository(session, row.id):
        if job.kind == JobKind.GC and not wanted.preview and not job.subject["preview"]:
            raise Conflict(
                f"garbage of repository {row.name} is being collected already",
                kind="gc-running",
                hint=f"`sendense job watch {job.id}` follows it",
                job_id=job.id,
            )
    job_id = _start(session, hub, row, JobKind.GC, **wanted.model_dump())
    return GcAccepted(job_id=job_id, repository_id=row.id)


def _start(session: Session, hub: Hub, row: RepositoryRow, kind: JobKind, **subject: Any) -> str:
    job_id = core_ids.new_id("job", hub.ids)
    jobs.create_job(
        session,
        jobs.NewJob(
            id=job_id,
            kind=kind,
            subject={"repository_id": row.id, **subject},
            priority=job_service.PRIORITY_INTERACTIVE,
            created_at=hub.clock.now(),
            repository_id=row.id,
        ),
    )
    return job_id
