"""Workers as the API shows them."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from sendense.hub.model import Answer, Moment


class WorkerStatus(StrEnum):
    """Whether a worker is alive."""

    LIVE = "live"
    STALE = "stale"


class Worker(Answer):
    """A worker that holds a lease."""

    id: str
    host: str
    pid: int
    labels: Annotated[dict[str, str], Field(examples=[{"host": "nas1", "site": "berlin"}])]
    version: str
    started_at: Moment
    beat_age_seconds: Annotated[float, Field(description="Since it last renewed its lease.")]
    status: Annotated[
        WorkerStatus, Field(description="Stale: dead, or about to be; its jobs are taken over.")
    ]
    jobs: Annotated[list[str], Field(description="Ids of the jobs that it runs.")]


class WorkerList(Answer):
    """All workers, oldest first."""

    workers: list[Worker]
    total: int
    unplaced_jobs: Annotated[
        list[str], Field(description="Ids of the jobs that no live worker may run.")
    ]
