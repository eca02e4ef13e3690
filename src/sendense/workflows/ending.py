"""How jobs end: the errors that steps hand to steps, and what they mean for a job's status."""

from typing import Any

from sendense.core.errors import Cancelled, SendenseError
from sendense.durable import failure
from sendense.durable.definition import Retry
from sendense.hub.jobs.schemas import JobStatus

# Ending a job only needs the catalog; it must not be given up while the database restarts.
FINISH_RETRY = Retry(attempts_max=20, interval_seconds=1.0, cancellable=False)


def ending_of(error: SendenseError) -> JobStatus:
    """Return how a job ends by an error."""
    return JobStatus.CANCELLED if isinstance(error, Cancelled) else JobStatus.FAILED


def to_data(error: SendenseError) -> dict[str, Any]:
    """Return an error as JSON, to be given to a step."""
    portable = failure.to_portable(error)
    data = portable.data
    assert isinstance(data, dict), "to_portable always gives a mapping"
    return {"class": portable.name, **data}


def from_data(data: dict[str, Any]) -> SendenseError:
    """Return the error that `to_data` described."""
    return failure.rebuild(str(data["class"]), data)
