"""Requests that start work: the job is written, then run; the answer is 202 and where to watch."""

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import Response, status
from sqlalchemy.orm import Session

from sendense.hub import idempotency
from sendense.hub.context import Hub
from sendense.hub.idempotency import Keyed
from sendense.hub.jobs import service as jobs
from sendense.hub.model import Accepted

A = TypeVar("A", bound=Accepted)

JOBS_PATH = "/api/v1/jobs"

ACCEPTED: dict[int | str, dict[str, Any]] = {
    status.HTTP_202_ACCEPTED: {
        "description": "The work was started; watch its job.",
        "headers": {
            "Location": {"description": "Where to watch the job.", "schema": {"type": "string"}}
        },
    }
}


def point_to_job(response: Response, job_id: str) -> None:
    """Say where the job can be watched."""
    response.headers["Location"] = f"{JOBS_PATH}/{job_id}"


def start_once(hub: Hub, keyed: Keyed, kind: type[A], write: Callable[[Session], A]) -> A:
    """Write the job's rows in one transaction, then hand it to the engine.

    A request that was answered before gets its answer again, and starts nothing.
    """
    answer, fresh = idempotency.run_once(hub, keyed, kind, write)
    if fresh:
        jobs.enqueue(hub, answer.job_id)
    return answer
