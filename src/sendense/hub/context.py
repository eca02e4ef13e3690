"""What the hub works with, built once by the composition root (app.py)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, cast

from fastapi import Depends, Request

from sendense.connectors.base import Source
from sendense.core.clock import Clock
from sendense.core.ids import IdSource
from sendense.db.catalog import Catalog
from sendense.hub.paths import AllowedDirs
from sendense.repository.storage.base import Storage


class JobStarter(Protocol):
    """Hands a job to the engine; `durable.client.EngineClient` is the real one."""

    def start(self, workflow_name: str, workflow_id: str, *args: Any, priority: int) -> None:
        """Queue a workflow; do nothing where the id is known. Raises Unavailable."""
        ...


@dataclass(frozen=True, slots=True)
class Hub:
    """The hub's collaborators; shared by all requests, safe to use from any thread.

    Attributes:
        open_storage: opens a repository's storage by type and configuration; the caller closes it.
        open_source: opens a source by type and configuration; the caller closes it.
        check_source: raises Invalid for a type or configuration no connector understands, and
            Denied for paths outside the allowed places.
        count_workers: how many workers are alive.
    """

    catalog: Catalog
    paths: AllowedDirs
    starter: JobStarter
    clock: Clock
    ids: IdSource
    version: str
    open_storage: Callable[[str, Mapping[str, Any]], Storage]
    open_source: Callable[[str, Mapping[str, Any]], Source]
    check_source: Callable[[str, Mapping[str, Any]], None]
    count_workers: Callable[[], int]


def get_hub(request: Request) -> Hub:
    """Return the hub of the application that serves the request."""
    return cast("Hub", request.app.state.hub)


HubOf = Annotated[Hub, Depends(get_hub)]
