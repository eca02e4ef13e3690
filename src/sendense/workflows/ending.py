"""How jobs end: errors that steps hand to steps, what they mean for a job, and the last step."""

from typing import Any

from sendense.core.errors import Cancelled, SendenseError
from sendense.durable import failure
from sendense.durable.definition import Retry, Step, Workflow, step
from sendense.durable.flow import Flow
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs.schemas import JobStatus
from sendense.workflows.context import Context

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


@step("finish", retry=FINISH_RETRY)
def finish(context: Context, job_id: str, result: dict[str, Any]) -> None:
    """End a job well, with its result."""
    with context.catalog.write() as session:
        jobs.finish(session, job_id, JobStatus.COMPLETED, now=context.now(), result=result)


@step("fail", retry=FINISH_RETRY)
def fail(context: Context, job_id: str, reason: dict[str, Any]) -> None:
    """End a job that left nothing to undo, with the reason why it could not be done."""
    error = from_data(reason)
    with context.catalog.write() as session:
        jobs.finish(session, job_id, ending_of(error), now=context.now(), error=error)


def one_step(
    name: str,
    work: Step[Context, [str], dict[str, Any]],
    finish: Step[Context, [str, dict[str, Any]], None] = finish,
    fail: Step[Context, [str, dict[str, Any]], None] = fail,
) -> Workflow[Context]:
    """Return the workflow whose work is one step; then the job ends, whatever happened.

    `work` takes the job's id, `finish` also what it returned, `fail` the error of it. Work that
    has rows of its own beside the job's needs its own two, which end both.
    """

    def run(flow: Flow[Context]) -> None:
        try:
            result = flow.run(work, flow.job_id)
        except SendenseError as error:
            flow.run(fail, flow.job_id, to_data(error))
            return
        flow.run(finish, flow.job_id, result)

    return Workflow[Context](name, run, (work, finish, fail))
