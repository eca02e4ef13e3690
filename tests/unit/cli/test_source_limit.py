import pytest

from tests.unit.cli.conftest import Hub, Run

VMS = {"vms": [{"name": "a", "qmp": "/q"}]}


@pytest.fixture(autouse=True)
def source(hub: Hub) -> None:
    config = {**VMS, "write_latency_ms_max": 20, "on_write_latency": "give_up"}
    found = {"id": "s-1", "name": "lab", "type": "qemu", "config": config}
    hub.answer("GET", "/sources", {"sources": [found], "total": 1})
    hub.answer("GET", "/sources/s-1", found)
    hub.answer("PATCH", "/sources/s-1", found)


def test_limits_that_are_given_join_those_that_are_set(run: Run, hub: Hub) -> None:
    result = run("source", "limit", "lab", "--read-bytes-per-second-max", "50000000")
    assert result.code == 0, result.err
    config = {
        **VMS,
        "write_latency_ms_max": 20,
        "on_write_latency": "give_up",
        "read_bytes_per_second_max": 50_000_000,
    }
    assert hub.sent("PATCH", "/sources/s-1")[0].body == {"config": config}
    assert result.out == (
        "limits of source lab: write_latency_ms_max 20, on_write_latency give_up,"
        " read_bytes_per_second_max 50000000\n"
    )


def test_all_limits_are_lifted_at_once(run: Run, hub: Hub) -> None:
    result = run("source", "limit", "lab", "--none")
    assert hub.sent("PATCH", "/sources/s-1")[0].body == {"config": VMS}
    assert result.out == "limits of source lab: none\n"


def test_with_json_the_answer_is_printed_as_it_came(run: Run) -> None:
    result = run("source", "limit", "lab", "--write-latency-ms-max", "5.5", "--json")
    assert result.code == 0
    assert '"s-1"' in result.out


@pytest.mark.parametrize("options", [[], ["--none", "--write-latency-ms-max", "5"]])
def test_limits_and_none_exclude_each_other(run: Run, hub: Hub, options: list[str]) -> None:
    assert run("source", "limit", "lab", *options).code == 2
    assert hub.sent("PATCH", "/sources/s-1") == []
