"""What the hub works with, built once by the composition root (app.py)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, cast

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from sendense.connectors.base import Source
from sendense.connectors.certificate import SeenCertificate
from sendense.core.clock import Clock
from sendense.core.ids import IdSource
from sendense.db.catalog import Catalog
from sendense.durable.lease import WorkerState
from sendense.hub.paths import AllowedDirs
from sendense.hub.sealing import Vault
from sendense.repository.storage.base import Storage


class JobStarter(Protocol):
    """Hands a job to the engine; `durable.client.EngineClient` is the real one."""

    def start(
        self,
        workflow_name: str,
        workflow_id: str,
        *args: Any,
        priority: int,
        required: Mapping[str, str] = ...,
    ) -> None:
        """Queue a workflow for a worker with these labels; do nothing where the id is known.

        Raises Unavailable.
        """
        ...


class SourceOpener(Protocol):
    """Opens a source by type, configuration and credentials; the caller closes it."""

    def __call__(
        self, kind: str, config: Mapping[str, Any], credentials: Mapping[str, str] | None = None, /
    ) -> Source:
        """Return the source. Contacts nothing yet, or raises what the platform's failure is."""
        ...


class SourceChecker(Protocol):
    """Says what is wrong with a source without contacting it."""

    def __call__(
        self, kind: str, config: Mapping[str, Any], credentials: Mapping[str, str] | None = None, /
    ) -> None:
        """Raise Invalid for a type, configuration or credentials that no connector understands.

        Raises Denied for paths outside the allowed places.
        """
        ...


@dataclass(frozen=True, slots=True)
class Hub:
    """The hub's collaborators; shared by all requests, safe to use from any thread.

    Attributes:
        open_storage: opens a repository's storage by type and configuration; the caller closes it.
        open_source: opens a source.
        check_source: says what is wrong with a source before it is kept or opened.
        see_certificate: returns the certificate that a source's host shows, or None for types
            without one. Logs in to nothing. Raises Unavailable.
        list_warnings: what of a configuration is not meant for production, in words.
        vault: seals the credentials of sources.
        list_workers: the workers that hold a lease, live or not, with whether they are.
        list_running: the ids of the jobs that each worker runs. Raises Unavailable.
        lease_seconds: how long a silent worker counts as alive.
    """

    catalog: Catalog
    paths: AllowedDirs
    starter: JobStarter
    clock: Clock
    ids: IdSource
    version: str
    open_storage: Callable[[str, Mapping[str, Any]], Storage]
    open_source: SourceOpener
    check_source: SourceChecker
    see_certificate: Callable[[str, Mapping[str, Any]], SeenCertificate | None]
    list_warnings: Callable[[str, Mapping[str, Any]], tuple[str, ...]]
    vault: Vault
    list_workers: Callable[[Session], list[tuple[WorkerState, bool]]]
    list_running: Callable[[], Mapping[str, set[str]]]
    lease_seconds: float

    def count_workers(self) -> int:
        """Return how many workers are alive."""
        with self.catalog.read() as session:
            return sum(alive for _, alive in self.list_workers(session))


def get_hub(request: Request) -> Hub:
    """Return the hub of the application that serves the request."""
    return cast("Hub", request.app.state.hub)


HubOf = Annotated[Hub, Depends(get_hub)]
