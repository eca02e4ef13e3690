"""Is the product well? Version, database, workers, repositories, waiting jobs."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from datetime import datetime

from fastapi import APIRouter, Request
from sqlalchemy import text

from sendense.core.errors import SendenseError, Unavailable
from sendense.db.failure import CatalogUnavailable
from sendense.db.tables import RepositoryRow
from sendense.hub import problem
from sendense.hub.context import Hub, HubOf
from sendense.hub.jobs import queries as jobs
from sendense.hub.model import Answer, Moment
from sendense.hub.repositories import queries as repositories
from sendense.hub.repositories import service as repository_service

# A dead NFS server blocks whoever asks it for minutes; whoever asks us waits no longer than this.
ANSWER_SECONDS_MAX = 2.0
PROBES_MAX = 4

router = APIRouter(tags=["health"])


class RepositoryHealth(Answer):
    """Whether a repository can be reached."""

    repository_id: str
    name: str
    reachable: bool
    trouble: str | None


class Health(Answer):
    """How the product is."""

    status: str
    version: str
    database: str
    workers_alive: int
    repositories: list[RepositoryHealth]
    oldest_waiting_job_at: Moment | None
    problems: list[str]


class Prober:
    """Asks repositories in threads of its own, so that one that hangs holds up nobody else."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(PROBES_MAX, thread_name_prefix="probe")
        self._running: dict[str, Future[str | None]] = {}

    def probe(self, hub: Hub, rows: list[RepositoryRow]) -> list[RepositoryHealth]:
        """Return the health of each repository; one whose probe still hangs is not asked twice."""
        for row in rows:
            running = self._running.get(row.id)
            if running is None or running.done():
                self._running[row.id] = self._threads.submit(_find_trouble, hub, row)
        deadline = time.monotonic() + ANSWER_SECONDS_MAX  # for all: several may hang
        return [self._collect(row, deadline) for row in rows]

    def _collect(self, row: RepositoryRow, deadline: float) -> RepositoryHealth:
        try:
            trouble = self._running[row.id].result(timeout=max(0.0, deadline - time.monotonic()))
        except FutureTimeoutError:
            trouble = f"does not answer within {ANSWER_SECONDS_MAX:.0f} s"
        return RepositoryHealth(
            repository_id=row.id, name=row.name, reachable=trouble is None, trouble=trouble
        )

    def close(self) -> None:
        """Wait for no probe: one that hangs would keep the server from ending."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _find_trouble(hub: Hub, row: RepositoryRow) -> str | None:
    try:
        with repository_service.open_checked(hub, row) as storage:
            storage.capacity()
    except SendenseError as error:
        return error.message
    return None


@router.get("/health", responses=problem.responses(503), summary="Is the product well?")
def get_health(request: Request, hub: HubOf) -> Health:
    """Answer 200 where everything needed for a backup works, else 503 with what does not."""
    return examine(hub, request.app.state.prober)


@router.get("/debug/health", responses=problem.responses(503), summary="The same")
def get_debug_health(request: Request, hub: HubOf) -> Health:
    """As `/health`, under the name that existing clients use."""
    return examine(hub, request.app.state.prober)


def examine(hub: Hub, prober: Prober) -> Health:
    """Return the health, or raise Unavailable, kind `unhealthy`, with the same facts."""
    problems: list[str] = []
    rows: list[RepositoryRow] = []
    oldest: datetime | None = None
    workers = 0
    try:
        with hub.catalog.read() as session:
            session.execute(text("SELECT 1"))
            rows = [row for row in repositories.list_repositories(session)[0] if row.enabled]
            oldest = jobs.find_oldest_pending(session)
        workers = hub.count_workers()
        database = "ok"
    except CatalogUnavailable as error:
        database = "unreachable"
        problems.append(error.message)
    else:
        if workers == 0:
            problems.append("no worker is alive")
    found = prober.probe(hub, rows)
    problems.extend(f"repository {one.name}: {one.trouble}" for one in found if not one.reachable)
    health = Health(
        status="failing" if problems else "ok",
        version=hub.version,
        database=database,
        workers_alive=workers,
        repositories=found,
        oldest_waiting_job_at=oldest,
        problems=problems,
    )
    if problems:
        facts = health.model_dump(mode="json")
        facts["health"] = facts.pop("status")
        raise Unavailable(
            "; ".join(problems),
            kind="unhealthy",
            hint="`sendense doctor` on the server's machine looks closer",
            **facts,
        )
    return health
