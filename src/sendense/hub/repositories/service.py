"""Registering repositories, and asking whether one can take a backup now."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from sendense.core import ids as core_ids
from sendense.core.errors import (
    Conflict,
    Corrupt,
    Denied,
    Exists,
    Invalid,
    NotFound,
    SendenseError,
    Unavailable,
)
from sendense.core.ids import IdSource
from sendense.db.tables import RepositoryRow
from sendense.hub.context import Hub
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs import service as job_service
from sendense.hub.jobs.schemas import JobKind
from sendense.hub.paths import AllowedDirs
from sendense.hub.repositories import queries
from sendense.hub.repositories.schemas import (
    ChangeRepository,
    CheckAccepted,
    CreateRepository,
    LocalConfig,
    Repository,
    RepositoryList,
    RepositoryType,
    Storage,
    TestResult,
)
from sendense.repository import descriptor
from sendense.repository import repository as repositories
from sendense.repository.storage import base, local

PROBE_FOLDER = "probe"
PROBE_TOKEN_LENGTH = 16
_PROBE = b"probe"
ID_TOKEN_LENGTH = 4


@dataclass(frozen=True, slots=True)
class Opened:
    """What a newly registered place turned out to be."""

    uuid: str
    chunk_size: int
    capacity: base.Capacity | None
    backups: int
    made: bool


def local_opener(paths: AllowedDirs) -> Callable[[str, Mapping[str, Any]], base.Storage]:
    """Return what opens the storage of a repository by type and configuration.

    The path is resolved at each use: what a link points to may have changed since.
    """

    def open_storage(kind: str, config: Mapping[str, Any]) -> base.Storage:
        if kind != RepositoryType.LOCAL:
            raise Invalid(f"repository type {kind} is not known", kind="repository-type-unknown")
        return local.LocalStorage(paths.resolve(str(config["path"])))

    return open_storage


@contextlib.contextmanager
def _opened(hub: Hub, kind: str, config: Mapping[str, Any]) -> Iterator[base.Storage]:
    storage = hub.open_storage(kind, config)
    try:
        yield storage
    finally:
        storage.close()


def open_or_make(hub: Hub, wanted: CreateRepository) -> Opened:
    """Open the repository at a place, or make one where the folder is missing or empty.

    Raises Conflict, kind `repository-folder-not-empty`, where something else lies there, or where
    the place lies inside another repository.
    """
    path = hub.paths.resolve(wanted.config.path)
    settings = _settings(wanted.config)
    _check_not_nested(path)
    made_folders = _make_folder(path)
    config = wanted.config.model_dump(exclude_none=True)
    try:
        with _opened(hub, wanted.type, config) as storage:
            return _open_or_make(hub, storage, settings)
    except SendenseError:
        # Nothing was put there, so the folders we made are empty; others' stay untouched.
        for folder in made_folders:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _open_or_make(
    hub: Hub, storage: base.Storage, settings: descriptor.RepositorySettings
) -> Opened:
    try:
        found = descriptor.get(storage)
    except NotFound:
        made = repositories.Repository.create(storage, settings, clock=hub.clock, ids=hub.ids)
        return Opened(made.id, made.chunk_size, storage.capacity(), backups=0, made=True)
    opened = repositories.Repository.open(storage, clock=hub.clock, ids=hub.ids)
    return Opened(
        found.id,
        found.chunk_size,
        storage.capacity(),
        backups=len(opened.list_backups()),
        made=False,
    )


def find_around(path: Path) -> Path | None:
    """Return the folder of the repository, registered or not, that a path lies in, or None."""
    for folder in path.parents:
        with contextlib.suppress(OSError):  # what may not be looked into is no place to write to
            if (folder / descriptor.NAME).exists():
                return folder
    return None


def _check_not_nested(path: Path) -> None:
    """Refuse a repository in a repository: a check or clean-up of one would meet the other."""
    around = find_around(path)
    if around is not None:
        raise Conflict(
            f"{path} lies inside the repository at {around}",
            kind="repository-folder-not-empty",
            hint="choose a folder outside of repositories",
            path=str(path),
        )


def _settings(config: LocalConfig) -> descriptor.RepositorySettings:
    if config.chunk_size is None:
        return descriptor.RepositorySettings()
    return descriptor.RepositorySettings(chunk_size=config.chunk_size)


def _make_folder(path: Path) -> list[Path]:
    """Make a folder and its parents; return those that were made, deepest first."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise Conflict(
            f"{path} is not a folder", kind="repository-folder-not-empty", path=str(path)
        ) from None
    except PermissionError:
        raise Denied(
            f"may not make the folder {path}",
            kind="repository-denied",
            hint="give the user that runs the server access to it",
            path=str(path),
        ) from None
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise Unavailable(
            f"cannot make the folder {path}: {reason}", kind="storage-failed", path=str(path)
        ) from None
    return missing


def create(session: Session, hub: Hub, wanted: CreateRepository, opened: Opened) -> Repository:
    """Write the row of a repository that was opened before.

    Raises Exists where name or repository are registered already.
    """
    queries.check_name_free(session, wanted.name)
    known = queries.find_by_uuid(session, opened.uuid)
    if known is not None:
        raise Exists(
            f"this repository is registered already as {known.name}",
            kind="repository-registered",
            repository_id=known.id,
        )
    now = hub.clock.now()
    config = wanted.config.model_dump(exclude_none=True, exclude={"chunk_size"})
    row = RepositoryRow(
        id=_new_id(session, wanted.type, int(now.timestamp()), hub.ids),
        uuid=opened.uuid,
        name=wanted.name,
        type=wanted.type,
        config=config,
        enabled=True,
        chunk_size=opened.chunk_size,
        created_at=now,
        updated_at=now,
        trouble="",
    )
    measure(row, opened.capacity, hub)
    session.add(row)
    session.flush()
    warnings = []
    if opened.backups:
        warnings.append(
            f"it was a repository already and holds {opened.backups} backups, which the catalog"
            " does not list; `sendense repository list PATH` shows and restores them"
        )
    place = opened.capacity
    if place is not None and place.free_bytes <= repositories.Reserve().of(place):
        warnings.append(
            "no backup fits: less is free there than the reserve of 1 % and at least 1 GiB that"
            " backups leave alone"
        )
    return show(session, [row])[0].model_copy(update={"warnings": warnings})


def _new_id(session: Session, kind: str, seconds: int, ids: IdSource) -> str:
    plain = f"repo-{kind}-{seconds}"
    if queries.find_repository(session, plain) is None:
        return plain
    return f"{plain}-{ids.token(ID_TOKEN_LENGTH)}"


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
        opened = repositories.Repository(
            storage,
            descriptor.get(storage),
            clock=hub.clock,
            ids=hub.ids,
            reserve=repositories.Reserve(),
        )
        descriptor.require_writable(opened.descriptor)
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
        if found.id != row.uuid:
            raise Corrupt(
                f"in the place of repository {row.name} lies another one",
                kind="repository-mistaken",
                hint="mount the right file system, or register this repository by a new name",
                repository_id=row.id,
            )
        yield storage
    finally:
        storage.close()


def _missing(row: RepositoryRow) -> Unavailable:
    return Unavailable(
        f"repository {row.name} is not there",
        kind="repository-missing",
        hint="mount its file system again, or bring its folder back",
        repository_id=row.id,
        path=row.config.get("path"),
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
    with open_checked(hub, row) as storage:
        opened = repositories.Repository.open(storage, clock=hub.clock, ids=hub.ids)
        try:
            with contextlib.suppress(NotFound):
                opened.delete_backup(backup_id, who=who, why="deleted by request")
        except Denied as error:
            raise _read_only(row, error) from error


def try_out(hub: Hub, kind: str, config: LocalConfig) -> TestResult:
    """Say whether a place can be a repository, without making one."""
    path = hub.paths.resolve(config.path)
    _settings(config)
    _check_not_nested(path)
    if not path.exists():
        parent = next(folder for folder in path.parents if folder.exists())
        if not os.access(parent, os.W_OK | os.X_OK):
            raise Denied(f"may not make {path}", kind="repository-denied", path=str(path))
        return TestResult(
            usable=True,
            exists=False,
            detail="the folder would be made",
            capacity_bytes=None,
            free_bytes=None,
        )
    with _opened(hub, kind, {"path": str(path)}) as storage:
        capacity = storage.capacity()
        try:
            found = descriptor.get(storage)
        except NotFound:
            if storage.list_top():
                raise Conflict(
                    f"the folder {path} is not empty and no repository",
                    kind="repository-folder-not-empty",
                    hint="choose an empty folder, or one that does not exist yet",
                    path=str(path),
                ) from None
            exists, detail = False, "the folder is empty; a repository would be made"
        else:
            exists, detail = True, f"repository {found.id}"
        if not os.access(path, os.W_OK | os.X_OK):
            raise Conflict(f"the folder {path} is read-only", kind="repository-read-only")
    return TestResult(
        usable=True,
        exists=exists,
        detail=detail,
        capacity_bytes=capacity.total_bytes if capacity is not None else None,
        free_bytes=capacity.free_bytes if capacity is not None else None,
    )


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
            enabled=row.enabled,
            chunk_size=row.chunk_size,
            capacity_bytes=row.capacity_bytes,
            free_bytes=row.free_bytes,
            measured_at=row.measured_at,
            trouble=row.trouble or None,
            backup_count=counts.get(row.id, 0),
            created_at=row.created_at,
            updated_at=row.updated_at,
            warnings=[],
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
    job_id = core_ids.new_id("job", hub.ids)
    jobs.create_job(
        session,
        jobs.NewJob(
            id=job_id,
            kind=JobKind.CHECK,
            subject={"repository_id": row.id, "read_data": read_data},
            priority=job_service.PRIORITY_INTERACTIVE,
            created_at=hub.clock.now(),
            repository_id=row.id,
        ),
    )
    return CheckAccepted(job_id=job_id, repository_id=row.id)
