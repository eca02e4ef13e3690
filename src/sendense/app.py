"""The composition root: the only place that builds concrete objects from settings."""

from collections.abc import Mapping
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
from sendense.durable import client, lease
from sendense.durable.client import EngineClient
from sendense.hub.context import Hub
from sendense.hub.paths import USER_FOLDERS, AllowedDirs
from sendense.hub.repositories import service as repositories
from sendense.settings import Settings


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
