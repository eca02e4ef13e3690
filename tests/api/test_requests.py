import json
import logging
import re
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sendense.api import repeats
from sendense.core.errors import Unavailable
from sendense.hub import figures
from tests.api.kit import Lab, check_problem


def test_an_answer_names_its_request_and_a_client_may_name_it(lab: Lab) -> None:
    made = lab.api.get("/vms").headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{16}", made)
    assert lab.api.get("/vms").headers["x-request-id"] != made
    given = lab.api.get("/vms", headers={"X-Request-ID": "trace:1/a"})
    assert given.headers["x-request-id"] == "trace:1/a"


@pytest.mark.parametrize("hostile", ["a b", "x" * 101, 'a"b', ""])
def test_a_name_that_could_forge_a_log_line_is_replaced(lab: Lab, hostile: str) -> None:
    answer = lab.api.get("/vms", headers={"X-Request-ID": hostile})
    assert re.fullmatch("[0-9a-f]{16}", answer.headers["x-request-id"])


@pytest.mark.parametrize(
    "path", ["/vms/{}", "/backups/{}", "/backups/{}/chain", "/jobs/{}", "/repositories/{}/storage"]
)
def test_a_name_with_a_nul_is_unknown_on_every_database(lab: Lab, path: str) -> None:
    check_problem(lab.api.get(path.format("a%00b")), 404, "path-unknown")


def test_a_parameter_of_which_one_value_counts_is_given_once(lab: Lab) -> None:
    for query in ("limit=10&limit=1000", "source_id=a&source_id=", "limit=10&limit=10"):
        problem = check_problem(lab.api.get(f"/vms?{query}"), 422, "fields-invalid")
        name = query.partition("=")[0]
        assert problem["errors"] == [{"field": name, "reason": "must be given once"}]
    assert lab.api.get("/vms?tag=a:b&tag=c:d&limit=10").status_code == 200
    assert lab.api.get("/health?a=1&a=2").status_code == 200


def test_the_parameters_that_may_be_repeated_are_those_that_the_document_calls_lists(
    lab: Lab,
) -> None:
    document = lab.api.get("/openapi.json").json()
    lists = {
        parameter["name"]
        for methods in document["paths"].values()
        for operation in methods.values()
        for parameter in operation.get("parameters", [])
        if parameter["schema"].get("type") == "array"
    }
    assert lists == repeats.LISTS


def test_failures_name_their_request_also_at_the_gate(lab: Lab) -> None:
    headers = {"X-Request-ID": "r-1"}
    for answer in (
        lab.api.get("/backups/none", headers=headers),
        lab.api.get("/nothing", headers=headers),
        lab.api.post("/backups", content=b"{", headers=headers),
        lab.api.get("/vms", headers={**headers, "host": "evil.example"}),
    ):
        assert answer.status_code >= 400
        assert answer.json()["request_id"] == answer.headers["x-request-id"] == "r-1"


def test_a_job_remembers_the_request_that_asked_for_it(lab: Lab) -> None:
    source = lab.add_source({"name": "a", "disks": [{"path": str(lab.image("a.raw"))}]})
    answer = lab.api.post(f"/sources/{source}/discover", headers={"X-Request-ID": "r-7"})
    job = lab.api.get(f"/jobs/{answer.json()['job_id']}").json()
    assert job["log"][0]["message"] == "asked for by request r-7"


def test_requests_are_logged_with_their_id(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sendense.api.requests"):
        lab.api.get("/backups/none")
        lab.api.get("/vms")
    [record] = [one for one in caplog.records if one.name == "sendense.api.requests"]
    assert re.fullmatch(r"GET /api/v1/backups/none 404 \d+\.\d ms", record.getMessage()), (
        "polls of health are said at debug only"
    )


def _scrape(lab: Lab) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    answer = httpx.get(str(lab.api.base_url.join("/metrics")))
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        family.name: {
            tuple(sorted(sample.labels.items())): sample.value
            for sample in family.samples
            if not sample.name.endswith("_created")
        }
        for family in text_string_to_metric_families(answer.text)
    }


def test_metrics_count_requests_by_route_and_never_by_path(lab: Lab) -> None:
    backup = (("method", "GET"), ("route", "/api/v1/backups/{backup_id}"), ("status", "404"))
    nothing = (("method", "GET"), ("route", "unmatched"), ("status", "404"))
    before = _scrape(lab)["sendense_http_requests"]
    for path in ("/backups/one", "/backups/two", "/no/such/path"):
        lab.api.get(path)
    lab.api.request("BREW", "/vms")
    after = _scrape(lab)["sendense_http_requests"]
    assert after[backup] - before.get(backup, 0) == 2
    assert after[nothing] - before.get(nothing, 0) == 1
    assert any(("method", "other") in labels for labels in after)
    assert not any("BREW" in dict(labels).values() for labels in after)


def test_metrics_tell_what_the_catalog_holds(lab: Lab) -> None:
    lab.add_vm(disks=1)
    backup_id = lab.back_up(lab.add_repository(), vm_name="pgtest1")
    backup = lab.api.get(f"/backups/{backup_id}").json()
    found = _scrape(lab)
    vm = (("vm_id", backup["vm_id"]), ("vm_name", backup["vm_name"]))
    assert found["sendense_catalog_up"] == {(): 1}
    assert found["sendense_backups"][("status", "completed"),] == 1
    assert found["sendense_backup_read_bytes"][()] == backup["bytes_read"]
    assert found["sendense_jobs"][("kind", "backup"), ("status", "completed")] == 1
    assert found["sendense_vms"] == {(): 1}
    assert found["sendense_vms_without_backup"] == {(): 0}
    assert found["sendense_vm_last_backup_timestamp_seconds"][vm] > 0
    [(labels, up)] = found["sendense_repository_up"].items()
    assert dict(labels)["repository_id"] == backup["repository_id"]
    assert up == 1
    assert found["sendense_repository_free_bytes"][labels] > 0


def test_metrics_say_that_the_catalog_is_away(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_hub: object) -> figures.Figures:
        raise Unavailable("the catalog does not answer")

    monkeypatch.setattr("sendense.api.metrics.read_figures", refuse)
    found = _scrape(lab)
    assert found["sendense_catalog_up"] == {(): 0}
    assert "sendense_jobs" not in found
    assert "sendense_build_info" in found


def test_problem_documents_are_json_with_the_id_inside(lab: Lab) -> None:
    answer = lab.api.get("/backups/none")
    assert json.loads(answer.text)["request_id"]


def test_the_page_explains_every_figure_and_no_other(lab: Lab) -> None:
    page = Path(__file__).parents[2] / "docs" / "operations" / "monitoring.md"
    told = set(re.findall(r"^\| `(sendense_\w+)`", page.read_text(), re.MULTILINE))
    lab.api.get("/vms")
    text = httpx.get(str(lab.api.base_url.join("/metrics"))).text
    shown = {
        name
        for name in re.findall(r"^# HELP (\w+) ", text, re.MULTILINE)
        if not name.endswith("_created")
    }
    assert told == shown
