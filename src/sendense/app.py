"""The composition root: the only place that builds concrete objects from settings."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from sqlalchemy.orm import Session

from sendense.api import server
from sendense.connectors import registry
from sendense.connectors.base import Source
from sendense.connectors.certificate import SeenCertificate
from sendense.core.clock import SystemClock
from sendense.core.ids import IdSource, SystemIds
from sendense.db import schema
from sendense.db.catalog import Catalog
from sendense.db.tables import SourceRow
from sendense.durable import client, identity, lease, presence
from sendense.durable import engine as durable_engine
from sendense.durable.client import EngineClient
from sendense.durable.fenced import FencedCatalog
from sendense.durable.reaper import Reaper
from sendense.durable.sweep import Sweep
from sendense.engine.backup import EngineSettings as TransferSettings
from sendense.hub.context import Hub
from sendense.hub.exports.service import Exporter
from sendense.hub.keyfile import KeyPlaces
from sendense.hub.paths import USER_FOLDERS, AllowedDirs
from sendense.hub.repositories import service as repositories
from sendense.hub.sealing import Vault
from sendense.hub.sources import service as sources
from sendense.settings import Settings
from sendense.workflows import schedules
from sendense.workflows.context import Context
from sendense.workflows.housekeeping import Housekeeping
from sendense.workflows.owner import WorkerOwner
from sendense.workflows.registry import WORKFLOWS
from sendense.workflows.worker import Worker

_log = logging.getLogger(__name__)


def open_catalog(settings: Settings, *, migrate: bool) -> Catalog:
    """Open the catalog; the caller closes it.

    With `migrate` the database is brought up to date, as the hub does at its start; without, one
    that is not up to date is refused, as workers do.
    """
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    catalog = Catalog(settings.catalog_url)
    try:
        if migrate:
            schema.migrate(catalog)
        else:
            schema.check(catalog)
    except BaseException:
        catalog.close()
        raise
    return catalog


def create_paths(settings: Settings) -> AllowedDirs:
    """Return the places that requests may name; the data directory's user folders exist then."""
    for name in USER_FOLDERS:
        (settings.data_dir / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in settings.allowed_dirs:
        if not os.path.isdir(folder):  # noqa: PTH112 - Path's own raises where it may not look
            _log.warning("the allowed directory %s is not there, or may not be entered", folder)
    return AllowedDirs(settings.data_dir, settings.allowed_dirs)


def create_key_places(settings: Settings, ids: IdSource) -> KeyPlaces:
    """Return where the key that seals credentials is looked for."""
    systemd = os.environ.get("CREDENTIALS_DIRECTORY")
    return KeyPlaces(
        settings.data_dir,
        ids,
        given=settings.credentials_key.get_secret_value(),
        file=settings.credentials_key_file,
        systemd=Path(systemd) if systemd else None,
    )


def create_hub(settings: Settings, catalog: Catalog, engine: EngineClient) -> Hub:
    """Return what the API works with."""
    paths = create_paths(settings)

    ids = SystemIds()

    def open_source(
        kind: str, config: Mapping[str, Any], credentials: Mapping[str, str] | None = None
    ) -> Source:
        return registry.open_source(
            kind,
            config,
            resolve=paths.resolve,
            scratch=settings.scratch_dir,
            credentials=credentials,
            owner=identity.find_hub(catalog, ids),
        )

    def check_source(
        kind: str, config: Mapping[str, Any], credentials: Mapping[str, str] | None = None
    ) -> None:
        registry.validate_config(kind, config, resolve=paths.resolve, credentials=credentials)

    def see_certificate(kind: str, config: Mapping[str, Any]) -> SeenCertificate | None:
        return registry.see_certificate(kind, config, resolve=paths.resolve)

    def list_workers(session: Session) -> list[tuple[lease.WorkerState, bool]]:
        return lease.list_with_life(
            session, lease_seconds=settings.lease_seconds, lock_folder=settings.lock_dir
        )

    return Hub(
        catalog=catalog,
        paths=paths,
        starter=engine,
        clock=SystemClock(),
        ids=ids,
        version=metadata.version("sendense"),
        open_storage=repositories.storage_opener(paths),
        open_source=open_source,
        check_source=check_source,
        see_certificate=see_certificate,
        list_warnings=registry.list_warnings,
        vault=Vault(create_key_places(settings, ids), ids),
        list_workers=list_workers,
        list_running=engine.list_running,
        lease_seconds=settings.lease_seconds,
    )


def create_api(settings: Settings) -> FastAPI:
    """Return the API with catalog and engine tables brought up to date.

    It lives as long as the process: its connections close with that.
    """
    catalog = open_catalog(settings, migrate=True)
    identity.declare(catalog, client.migrate(settings.jobs_url))
    hub = create_hub(settings, catalog, EngineClient(settings.jobs_url))
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return server.create_app(hub, hosts=(*server.LOOPBACK_HOSTS, host.lower()))


def create_reaper(settings: Settings) -> Reaper:
    """Return what ends frozen workers of this data directory."""
    return Reaper(settings.lock_dir)


def count_workers_here(settings: Settings) -> int:
    """Return how many workers of this data directory exist on this machine."""
    return presence.count_here(settings.lock_dir)


def create_worker(
    settings: Settings, *, worker_id: str, orphaned: Callable[[], bool] = lambda: False
) -> Worker:
    """Return a worker, not yet started; the catalog must be up to date.

    It shares nothing with the API but databases, repositories and sources. Raises Conflict, kind
    `engine-not-shared`, where its job engine is not the hub's.
    """
    catalog = open_catalog(settings, migrate=False)
    engine_id = client.migrate(settings.jobs_url)
    identity.check(catalog, engine_id)
    engine = EngineClient(settings.jobs_url)
    clock = SystemClock()
    held = lease.Lease(
        catalog,
        worker_id=worker_id,
        lease_seconds=settings.lease_seconds,
        lock_folder=settings.lock_dir,
        about=lease.About(settings.worker_labels_with_host, metadata.version("sendense")),
    )
    fenced = FencedCatalog(catalog, held)
    context = create_context(settings, fenced, engine, held)
    return Worker(
        catalog=catalog,
        client=engine,
        lease=held,
        engine=durable_engine.Engine(
            durable_engine.EngineSettings(
                settings.jobs_url,
                worker_id,
                labels=settings.worker_labels_with_host,
                idle_seconds_max=settings.lease_seconds,
            ),
            WORKFLOWS,
            context,
            WorkerOwner(fenced, held, clock),
        ),
        housekeeping=Housekeeping(
            fenced,
            engine,
            Sweep(
                fenced,
                engine,
                lease_seconds=settings.lease_seconds,
                lock_folder=settings.lock_dir,
                check_lease=held.check,
            ),
            clock,
            check_engine=lambda: identity.check(catalog, engine_id),
            schedules=schedules.plan(
                gc_every=timedelta(hours=settings.gc_every_hours),
                export_every=timedelta(hours=settings.hub_export_every_hours),
            ),
        ),
        orphaned=orphaned,
    )


def create_context(
    settings: Settings, catalog: Catalog, engine: EngineClient, held: lease.Lease
) -> Context:
    """Return what the steps of workflows work with."""
    hub = create_hub(settings, catalog, engine)

    @contextmanager
    def open_source(row: SourceRow) -> Iterator[Source]:
        for warning in hub.list_warnings(row.type, row.config):
            _log.warning("source %s: %s", row.name, warning)
        with closing(sources.open_registered(hub, row)) as source:
            yield source

    return Context(
        catalog=catalog,
        engine=engine,
        lease=held,
        clock=hub.clock,
        ids=hub.ids,
        open_source=open_source,
        open_repository=lambda row: repositories.open_repository(hub, row),
        resolve_path=hub.paths.resolve,
        transfer=TransferSettings(),
        exporter=create_exporter(settings, hub),
    )


def create_exporter(settings: Settings, hub: Hub) -> Exporter:
    """Return what an export of the hub is made of."""
    return Exporter(
        catalog=hub.catalog,
        vault=hub.vault,
        clock=hub.clock,
        ids=hub.ids,
        version=hub.version,
        settings=settings.model_dump(mode="json", exclude=set(settings.OF_MACHINE)),
    )
