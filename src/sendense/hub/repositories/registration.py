"""Registering repositories: what lies at a place is opened, or made where there is nothing yet."""

import contextlib
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from sendense.core.errors import (
    Conflict,
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
from sendense.hub.repositories import nesting, queries, root_keys, service
from sendense.hub.repositories.schemas import (
    CreatedRepository,
    CreateRepository,
    LocalConfig,
    ObjectStoreConfig,
    TestResult,
)
from sendense.repository import descriptor, recipients, recovery
from sendense.repository import repository as repositories
from sendense.repository.keys import ROOT_LENGTH
from sendense.repository.storage import base, probe
from sendense.repository.storage.locks import LockMode
from sendense.repository.storage.probe import Abilities

ID_TOKEN_LENGTH = 4


@dataclass(frozen=True, slots=True)
class Opened:
    """What a newly registered place turned out to be.

    Attributes:
        root_key: None where it is not encrypted.
        abilities: what the trial of an object store found; None where there was none.
    """

    uuid: str
    chunk_size: int
    capacity: base.Capacity | None
    backups: int
    made: bool
    immutable_days: int
    lock_mode: LockMode | None
    root_key: bytes | None = field(repr=False)
    abilities: Abilities | None = None


def open_or_make(hub: Hub, wanted: CreateRepository) -> Opened:
    """Open the repository at a place, or make one where the folder is missing or empty.

    Raises Conflict, kind `repository-folder-not-empty`, where something else lies there, or where
    the place lies inside another repository, and kind `storage-unfit` for an object store that
    cannot hold one.
    """
    settings = _settings(wanted.config)
    if isinstance(wanted.config, ObjectStoreConfig):
        nesting.check_url_not_nested(wanted.config.url)
        with service.opened(hub, wanted.type, wanted.config.to_kept()) as storage:
            return _open_or_make(hub, storage, settings, wanted.config)
    path = hub.paths.resolve(wanted.config.path)
    nesting.check_not_nested(path)
    made_folders = _make_folder(path)
    try:
        with service.opened(hub, wanted.type, wanted.config.to_kept()) as storage:
            return _open_or_make(hub, storage, settings, wanted.config)
    except SendenseError:
        # Nothing was put there, so the folders we made are empty; others' stay untouched.
        for folder in made_folders:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _open_or_make(
    hub: Hub,
    storage: base.Storage,
    settings: descriptor.RepositorySettings,
    config: LocalConfig | ObjectStoreConfig,
) -> Opened:
    try:
        found = descriptor.get(storage)
    except NotFound:
        if config.recovery_key is not None:
            raise  # somebody means a repository that exists
        return _make(hub, storage, settings, config)
    with hub.catalog.read() as session:  # before a key is asked for that nobody needs to give
        _check_unregistered(session, found.id)
    root_key = root_keys.open_given(storage, config)
    opened = repositories.Repository.open(storage, root_key=root_key, clock=hub.clock, ids=hub.ids)
    return Opened(
        found.id,
        found.chunk_size,
        storage.capacity(),
        backups=len(opened.list_backups()),
        made=False,
        immutable_days=found.immutable_days,
        lock_mode=found.lock_mode,
        root_key=root_key,
    )


def _make(
    hub: Hub,
    storage: base.Storage,
    settings: descriptor.RepositorySettings,
    config: LocalConfig | ObjectStoreConfig,
) -> Opened:
    """Make a repository, and open it by what it was made with."""
    abilities = _try_store(hub, storage, config) if isinstance(config, ObjectStoreConfig) else None
    if config.encryption:
        settings = replace(settings, root_key=hub.ids.random_bytes(ROOT_LENGTH))
    made = repositories.Repository.create(storage, settings, clock=hub.clock, ids=hub.ids)
    opened = Opened(
        made.id,
        made.chunk_size,
        storage.capacity(),
        backups=0,
        made=True,
        immutable_days=settings.immutable_days,
        lock_mode=settings.lock_mode,
        root_key=settings.root_key,
        abilities=abilities,
    )
    if config.passphrase is not None and settings.root_key is not None:
        try:
            recipients.add_passphrase(
                storage,
                settings.root_key,
                config.passphrase.get_secret_value(),
                label="",
                clock=hub.clock,
                ids=hub.ids,
            )
        except SendenseError:
            _unmake(hub, storage, config)
            raise
    return opened


def unmake(hub: Hub, wanted: CreateRepository, opened: Opened) -> None:
    """Remove a repository that was made for a registration which failed.

    Nobody was told its key, so it is of no use. What was there before is left alone.
    """
    if opened.made:
        with service.opened(hub, wanted.type, wanted.config.to_kept()) as storage:
            _unmake(hub, storage, wanted.config)


def _unmake(hub: Hub, storage: base.Storage, config: LocalConfig | ObjectStoreConfig) -> None:
    """Remove all of a repository, its descriptor last: until then it is one."""
    names = [found.name for found in storage.list_objects() if found.name != descriptor.NAME]
    for name in [*names, descriptor.NAME]:
        with contextlib.suppress(NotFound):
            storage.delete(name)
    if isinstance(config, LocalConfig):
        path = hub.paths.resolve(config.path)
        for folder in sorted(path.rglob("*"), reverse=True):  # what is in a folder before it
            with contextlib.suppress(OSError):
                folder.rmdir()


def _try_store(hub: Hub, storage: base.Storage, config: ObjectStoreConfig) -> Abilities | None:
    """Find out whether an object store is fit; not where something lies, which is refused anyway.

    Raises Conflict, kind `storage-unfit`, unless that is accepted.
    """
    if storage.list_top():
        return None
    found = probe.probe(storage, hub.ids.token(service.PROBE_TOKEN_LENGTH))
    if not config.accept_unfit:
        probe.require_fit(found)
    return found


def _settings(config: LocalConfig | ObjectStoreConfig) -> descriptor.RepositorySettings:
    """Return the settings to make a repository with, but for its key. Raises Invalid."""
    if config.passphrase is not None:
        recipients.check_passphrase(config.passphrase.get_secret_value())
        if not config.encryption:
            raise Invalid(
                "a passphrase is given for a repository that is not to be encrypted",
                kind="passphrase-invalid",
                hint="leave out one of passphrase and encryption=false",
            )
    settings = descriptor.RepositorySettings(
        immutable_days=config.immutable_days, lock_mode=config.lock_mode
    )
    if config.chunk_size is None:
        return settings
    return replace(settings, chunk_size=config.chunk_size)


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


def create(
    session: Session, hub: Hub, wanted: CreateRepository, opened: Opened
) -> CreatedRepository:
    """Write the row of a repository that was opened before.

    Raises Exists where name or repository are registered already, and what
    `KeyPlace.read_or_make` does.
    """
    queries.check_name_free(session, wanted.name)
    _check_unregistered(session, opened.uuid)
    now = hub.clock.now()
    row = RepositoryRow(
        id=_new_id(session, wanted.type, int(now.timestamp()), hub.ids),
        uuid=opened.uuid,
        name=wanted.name,
        type=wanted.type,
        config=_describe(wanted.config, opened.abilities),
        required_labels=wanted.required_labels or None,
        enabled=True,
        chunk_size=opened.chunk_size,
        immutable_days=opened.immutable_days or None,
        lock_mode=opened.lock_mode,
        created_at=now,
        updated_at=now,
        trouble="",
    )
    root_keys.keep(session, hub, row, opened.root_key)
    service.measure(row, opened.capacity, hub)
    session.add(row)
    session.flush()
    warnings = []
    if opened.root_key is None:
        warnings.append("it is not encrypted: whoever can read its files can read all backups")
    if opened.backups:
        warnings.append(
            f"it was a repository already and holds {opened.backups} backups, which the catalog"
            f" does not list yet; `sendense repository import {wanted.name}` brings them in"
        )
    if opened.abilities is not None:
        warnings += opened.abilities.failures
    place = opened.capacity
    if place is not None and place.free_bytes <= repositories.Reserve().of(place):
        warnings.append(
            "no backup fits: less is free there than the reserve of 1 % and at least 1 GiB that"
            " backups leave alone"
        )
    shown = service.show(session, [row])[0].model_copy(update={"warnings": warnings})
    told = recovery.to_text(opened.root_key) if opened.made and opened.root_key else None
    return CreatedRepository(**shown.model_dump(exclude={"repository_id"}), recovery_key=told)


def _describe(
    config: LocalConfig | ObjectStoreConfig, abilities: Abilities | None
) -> dict[str, Any]:
    """Return what the catalog keeps of a place: where it is, and how its trial went."""
    if abilities is None:
        return config.to_kept()
    return {**config.to_kept(), "trial": {"fit": abilities.fit, **asdict(abilities)}}


def _check_unregistered(session: Session, uuid: str) -> None:
    known = queries.find_by_uuid(session, uuid)
    if known is not None:
        raise Exists(
            f"this repository is registered already as {known.name}",
            kind="repository-registered",
            repository_id=known.id,
        )


def _new_id(session: Session, kind: str, seconds: int, ids: IdSource) -> str:
    plain = f"repo-{kind}-{seconds}"
    if queries.find_repository(session, plain) is None:
        return plain
    return f"{plain}-{ids.token(ID_TOKEN_LENGTH)}"


def try_out(hub: Hub, kind: str, config: LocalConfig | ObjectStoreConfig) -> TestResult:
    """Say whether a place can be a repository, without making one."""
    _settings(config)
    if isinstance(config, ObjectStoreConfig):
        return _try_out_store(hub, kind, config)
    path = hub.paths.resolve(config.path)
    nesting.check_not_nested(path)
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
    with service.opened(hub, kind, {"path": str(path)}) as storage:
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


def _try_out_store(hub: Hub, kind: str, config: ObjectStoreConfig) -> TestResult:
    nesting.check_url_not_nested(config.url)
    with service.opened(hub, kind, config.to_kept()) as storage:
        try:
            exists, detail = True, f"repository {descriptor.get(storage).id}"
        except NotFound:
            trial = _try_store(hub, storage, config)
            if trial is None:
                raise Conflict(
                    f"{config.url} is not empty and no repository",
                    kind="repository-folder-not-empty",
                    hint="choose a prefix below which nothing lies",
                ) from None
            exists = False
            detail = (
                f"nothing lies there; {trial.rounds} times {trial.writers} writers at once made"
                f" {len(trial.failures)} failures in {trial.seconds:.1f} s"
            )
    return TestResult(
        usable=True, exists=exists, detail=detail, capacity_bytes=None, free_bytes=None
    )
