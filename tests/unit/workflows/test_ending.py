from sendense.core.errors import Cancelled, Corrupt, NoSpace
from sendense.hub.jobs.schemas import JobStatus
from sendense.workflows import ending


def test_only_what_somebody_cancelled_ends_as_cancelled() -> None:
    assert ending.ending_of(Cancelled("the job was cancelled")) is JobStatus.CANCELLED
    assert ending.ending_of(NoSpace("full")) is JobStatus.FAILED


def test_an_error_given_to_a_step_comes_back_whole() -> None:
    error = Corrupt("bad chunk", hint="restore from another", kind="chunk-corrupt", chunk="ab")

    back = ending.from_data(ending.to_data(error))

    assert type(back) is Corrupt
    assert (back.message, back.hint, back.kind) == (error.message, error.hint, error.kind)
    assert back.fields == {"chunk": "ab"}
