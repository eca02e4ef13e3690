import pytest

from sendense.durable import schema
from sendense.workflows.clean_up import clean_up_id, job_of


@pytest.mark.parametrize(
    "workflow_id", ["job-1", "job-1/disk-2000", clean_up_id("job-1", 1), clean_up_id("job-1", 12)]
)
def test_every_workflow_belongs_to_a_job(workflow_id: str) -> None:
    assert job_of(workflow_id) == "job-1"


def test_a_clean_up_is_counted_apart_from_the_job_that_killed_its_workers() -> None:
    assert schema.job_id_of(clean_up_id("job-1", 1)) != "job-1"
    assert schema.job_id_of("job-1/disk-2000") == "job-1"
