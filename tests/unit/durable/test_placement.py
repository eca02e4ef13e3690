import pytest

from sendense.durable import placement

BASES = ("jobs", "transfers")


def test_a_worker_listens_to_the_queues_of_all_that_it_can_run_and_no_others() -> None:
    assert placement.list_queues(BASES, {"site": "berlin", "host": "nas1"}) == [
        "jobs",
        "transfers",
        "jobs:host=nas1",
        "transfers:host=nas1",
        "jobs:site=berlin",
        "transfers:site=berlin",
        "jobs:host=nas1,site=berlin",
        "transfers:host=nas1,site=berlin",
    ]


@pytest.mark.parametrize(
    "required",
    [{}, {"host": "nas1"}, {"site": "berlin", "host": "nas1"}, {"host": "nas2"}, {"gpu": "1"}],
)
def test_it_listens_to_a_queue_exactly_where_it_fits(required: dict[str, str]) -> None:
    labels = {"host": "nas1", "site": "berlin", "storage": "nas1"}
    listens = placement.queue_of("jobs", required) in placement.list_queues(("jobs",), labels)
    assert listens == placement.fits(labels, required)


def test_a_set_has_one_name_whatever_its_order() -> None:
    assert placement.queue_of("jobs", {"b": "2", "a": "1"}) == "jobs:a=1,b=2"
    assert placement.queue_of("jobs", {"a": "1", "b": "2"}) == "jobs:a=1,b=2"
    assert placement.queue_of("jobs", {}) == "jobs"


def test_labels_are_written_as_key_and_value() -> None:
    assert placement.parse("site=berlin") == ("site", "berlin")
    assert placement.parse("rack/row=A.7-b_2") == ("rack/row", "A.7-b_2")
    assert placement.describe({"b": "2", "a": "1"}) == "a=1, b=2"


@pytest.mark.parametrize(
    "text", ["site", "=x", "site=", "Site=x", "a b=x", "a=b=c", "a=b,c", "a=é"]
)
def test_what_is_no_label_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(ValueError, match=r"label|key|value"):
        placement.parse(text)


def test_a_job_that_nobody_can_take_says_why() -> None:
    berlin = {"host": "nas1", "site": "berlin"}
    assert placement.explain({}, [berlin]) is None
    assert placement.explain({"site": "berlin"}, [{"host": "x"}, berlin]) is None
    assert placement.explain({"site": "rome"}, [berlin]) == "no worker with site=rome is alive"
    assert placement.explain({}, []) == "no worker is alive"
