"""The answer to a request that started work: 202, the job, and where to watch it."""

from typing import Any

from fastapi import Response, status

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
