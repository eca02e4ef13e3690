"""The composition root: the only place that builds concrete objects from settings."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from importlib import metadata
from typing import Any

from fastapi import FastAPI

from sendense.api import server
from sendense.connectors import registry
from sendense.connectors.base import Source
from sendense.core.clock import SystemClock
from sendense.core.ids import SystemIds
from sendense.db import schema
from sendense.db.catalog import Catalog
from sendense.db.tables import RepositoryRow, SourceRow
from sendense.durable import client, lease
from sendense.durable import engine as durable_engine
from sendense.durable.client import EngineClient
from sendense.durable.sweep import Sweep
from sendense.engine.backup import EngineSettings as TransferSettings
from sendense.hub.context import Hub
from sendense.hub.paths import USER_FOLDERS, AllowedDirs
from sendense.hub.repositories import service as repositories
from sendense.repository.repository import Repository
from sendense.settings import Settings
from sendense.workflows.context import Context
from sendense.workflows.housekeeping import Housekeeping
from sendense.workflows.owner import WorkerOwner
from sendense.workflows.registry import WORKFLOWS
from sendense.workflows.worker import Worker


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
    return AllowedDirs(settings.data_dir, settings.allowed_dirs)


def create_hub(settings: Settings, catalog: Catalog, engine: EngineClient) -> Hub:
    """Return what the API works with."""
    paths = create_paths(settings)

    def open_source(kind: str, config: Mapping[str, Any]) -> Source:
        return registry.open_source(
            kind, config, resolve=paths.resolve, scratch=settings.scratch_dir
        )

    def check_source(kind: str, config: Mapping[str, Any]) -> None:
        registry.validate_config(kind, config, resolve=paths.resolve)

    def count_workers() -> int:
        with catalog.read() as session:
            return lease.count_live(
                session, lease_seconds=settings.lease_seconds, lock_folder=settings.lock_dir
            )

    return Hub(
        catalog=catalog,
        paths=paths,
        starter=engine,
        clock=SystemClock(),
        ids=SystemIds(),
        version=metadata.version("sendense"),
        open_storage=repositories.local_opener(paths),
        open_source=open_source,
        check_source=check_source,
        count_workers=count_workers,
    )


def create_api(settings: Settings) -> FastAPI:
    """Return the API with catalog and engine tables brought up to date.

    It lives as long as the process: its connections close with that.
    """
    catalog = open_catalog(settings, migrate=True)
    client.migrate(settings.jobs_url)
    hub = create_hub(settings, catalog, EngineClient(settings.jobs_url))
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return server.create_app(hub, hosts=(*server.LOOPBACK_HOSTS, host.lower()))


def create_worker(
    settings: Settings, *, worker_id: str, orphaned: Callable[[], bool] = lambda: False
) -> Worker:
    """Return a worker, not yet started; the catalog must be up to date.

    It shares nothing with the API but databases, repositories and sources.
    """
    catalog = open_catalog(settings, migrate=False)
    client.migrate(settings.jobs_url)
    engine = EngineClient(settings.jobs_url)
    clock = SystemClock()
    held = lease.Lease(
        catalog,
        worker_id=worker_id,
        lease_seconds=settings.lease_seconds,
        lock_folder=settings.lock_dir,
    )
    context = create_context(settings, catalog, engine, held)
    return Worker(
        catalog=catalog,
        client=engine,
        lease=held,
        engine=durable_engine.Engine(
            durable_engine.EngineSettings(settings.jobs_url, worker_id),
            WORKFLOWS,
            context,
            WorkerOwner(catalog, held, clock),
        ),
        housekeeping=Housekeeping(
            catalog,
            engine,
            Sweep(
                catalog,
                engine,
                lease_seconds=settings.lease_seconds,
                lock_folder=settings.lock_dir,
            ),
            clock,
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
        with closing(hub.open_source(row.type, row.config)) as source:
            yield source

    @contextmanager
    def open_repository(row: RepositoryRow) -> Iterator[Repository]:
        with repositories.open_checked(hub, row) as storage:
            yield Repository.open(storage, clock=hub.clock, ids=hub.ids)

    return Context(
        catalog=catalog,
        engine=engine,
        lease=held,
        clock=hub.clock,
        ids=hub.ids,
        open_source=open_source,
        open_repository=open_repository,
        resolve_path=hub.paths.resolve,
        transfer=TransferSettings(),
    )
