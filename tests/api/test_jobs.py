import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from sendense.core.errors import Unavailable
from sendense.hub.backups import queries as backups
from sendense.hub.jobs import events
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs.schemas import JobStatus
from tests.api.kit import Lab, check_problem


def fail_backup(lab: Lab, accepted: dict[str, Any]) -> None:
    error = Unavailable("the source does not answer", kind="source-unreachable", hint="start it")
    with lab.hub.catalog.write() as session:
        now = lab.clock.now()
        backups.fail_backup(session, accepted["backup_id"], JobStatus.FAILED, error, now=now)
        jobs.finish(session, accepted["job_id"], JobStatus.FAILED, now=now, error=error)


@pytest.fixture
def accepted(lab: Lab) -> dict[str, Any]:
    lab.add_vm(disks=1)
    return lab.start_backup(lab.add_repository())


def test_jobs_are_listed_newest_first_and_filtered(lab: Lab, accepted: dict[str, Any]) -> None:
    source_id = lab.api.get("/sources").json()["sources"][0]["id"]
    lab.clock.advance(1)
    discovery = lab.api.post(f"/sources/{source_id}/discover").json()["job_id"]

    def found(**params: Any) -> list[str]:
        return [job["job_id"] for job in lab.api.get("/jobs", params=params).json()["jobs"]]

    assert found() == [discovery, accepted["job_id"]]
    assert found(kind="backup") == [accepted["job_id"]]
    assert found(status="pending", limit=1) == [discovery]
    assert found(status="running") == []
    assert found(source_id=source_id) == [discovery, accepted["job_id"]]
    check_problem(lab.api.get("/jobs", params={"kind": "x"}), 422, "fields-invalid")


def test_a_job_shows_its_steps_log_and_error(lab: Lab, accepted: dict[str, Any]) -> None:
    job_id = accepted["job_id"]
    error = Unavailable("no answer", kind="source-unreachable", hint="start it")
    with lab.hub.catalog.write() as session:
        now = lab.clock.now()
        jobs.begin(session, job_id, now=now)
        jobs.start_step(session, job_id, "plan", now=now)
        jobs.finish_step(session, job_id, "plan", now=now)
        jobs.start_step(session, job_id, "take_snapshot", now=now)
        jobs.finish_step(session, job_id, "take_snapshot", now=now, error=error)
        jobs.add_log(session, job_id, "the guest agent did not answer", now=now, level="warning")
    fail_backup(lab, accepted)
    shown = lab.api.get(f"/jobs/{job_id}").json()
    assert shown["status"] == "failed"
    assert shown["attempts"] == 1
    assert [(step["name"], step["status"]) for step in shown["steps"]] == [
        ("plan", "completed"),
        ("take_snapshot", "failed"),
    ]
    assert shown["steps"][1]["error"]["kind"] == "source-unreachable"
    assert shown["log"][0]["message"].startswith("asked for by request ")
    assert shown["log"][1]["message"] == "the guest agent did not answer"
    assert shown["error"]["hint"] == "start it"


def test_cancelling_asks_the_job_and_only_while_it_may_still_stop(
    lab: Lab, accepted: dict[str, Any]
) -> None:
    path = f"/jobs/{accepted['job_id']}/cancel"
    answer = lab.api.post(path)
    assert answer.status_code == 202
    assert answer.json()["cancel_requested"] is True
    assert lab.api.post(path).status_code == 202
    with lab.hub.catalog.read() as session:
        assert jobs.is_cancel_requested(session, accepted["job_id"])
    fail_backup(lab, accepted)
    check_problem(lab.api.post(path), 409, "job-ended")


def test_a_failed_backup_is_retried_as_a_new_job(lab: Lab, accepted: dict[str, Any]) -> None:
    path = f"/jobs/{accepted['job_id']}/retry"
    check_problem(lab.api.post(path), 409, "job-not-failed")
    fail_backup(lab, accepted)
    answer = lab.api.post(path)
    assert answer.status_code == 202
    job = lab.api.get(f"/jobs/{answer.json()['job_id']}").json()
    assert job["retry_of"] == accepted["job_id"]
    again = lab.api.get(f"/backups/{job['subject']['backup_id']}").json()
    assert again["backup_id"] != accepted["backup_id"]
    assert again["status"] == "pending"


def test_failed_discoveries_and_checks_are_retried(lab: Lab) -> None:
    repository_id = lab.add_repository()
    source_id = lab.add_source({"name": "a", "disks": [str(lab.image("a.raw"))]})
    check = lab.api.post(f"/repositories/{repository_id}/check", json={"read_data": True}).json()
    discovery = lab.api.post(f"/sources/{source_id}/discover").json()
    for first in (check["job_id"], discovery["job_id"]):
        with lab.hub.catalog.write() as session:
            jobs.finish(session, first, JobStatus.FAILED, now=lab.clock.now())
        second = lab.api.post(f"/jobs/{first}/retry").json()["job_id"]
        before, after = (lab.api.get(f"/jobs/{one}").json() for one in (first, second))
        assert second != first
        assert after["status"] == "pending"
        assert after["subject"] == before["subject"]


def test_a_backup_of_a_forgotten_vm_is_not_retried(lab: Lab, accepted: dict[str, Any]) -> None:
    fail_backup(lab, accepted)
    vm_id = lab.api.get("/vms").json()["vms"][0]["id"]
    assert lab.api.delete(f"/vms/{vm_id}").status_code == 204
    check_problem(lab.api.post(f"/jobs/{accepted['job_id']}/retry"), 409, "vm-gone")


@pytest.mark.parametrize("path", ["", "/cancel", "/retry"])
def test_an_unknown_job_is_not_found(lab: Lab, path: str) -> None:
    answer = lab.api.request("POST" if path else "GET", f"/jobs/job-x{path}")
    check_problem(answer, 404, "job-unknown")


def test_an_engine_out_of_reach_leaves_the_job_for_the_sweep(lab: Lab) -> None:
    lab.add_vm(disks=1)
    repository_id = lab.add_repository()
    lab.starter.reachable = False
    accepted = lab.start_backup(repository_id)
    with lab.hub.catalog.read() as session:
        waiting = jobs.list_unqueued(session, before=lab.hub.clock.now())
        assert waiting == []
        lab.clock.advance(1)
        waiting = jobs.list_unqueued(session, before=lab.hub.clock.now())
        assert [row.id for row in waiting] == [accepted["job_id"]]


# Events.


def read_events(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    event: dict[str, Any] = {}
    for line in answer.iter_lines():
        if line.startswith(("id: ", "event: ")):
            name, _, value = line.partition(": ")
            event[name] = value
        elif line.startswith("data: "):
            event["data"] = json.loads(line.removeprefix("data: "))
        elif not line and "data" in event:
            yield event
            event = {}


def test_events_begin_with_the_state_and_go_on_with_changes(
    lab: Lab, accepted: dict[str, Any]
) -> None:
    job_id = accepted["job_id"]
    with lab.api.stream("GET", "/jobs/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        told = read_events(answer)
        first = next(told)
        assert first["event"] == "job"
        assert first["data"]["job_id"] == job_id
        assert first["data"]["status"] == "pending"
        lab.clock.advance(2)
        with lab.hub.catalog.write() as session:
            jobs.begin(session, job_id, now=lab.clock.now())
        second = next(told)
        assert second["data"]["status"] == "running"
        assert second["id"] > first["id"]
        lab.clock.advance(2)
        fail_backup(lab, accepted)
        assert next(told)["data"]["status"] == "failed"


def test_a_listener_that_comes_back_learns_what_it_missed(
    lab: Lab, accepted: dict[str, Any]
) -> None:
    with lab.api.stream("GET", "/jobs/events") as answer:
        seen = next(read_events(answer))
    lab.clock.advance(60)
    fail_backup(lab, accepted)
    headers = {"Last-Event-ID": seen["id"]}
    with lab.api.stream("GET", "/jobs/events", headers=headers) as answer:
        states = [next(read_events(answer))["data"]["status"]]
    assert "failed" in states
    with lab.api.stream("GET", "/jobs/events", headers={"Last-Event-ID": "rubbish"}) as answer:
        assert answer.status_code == 200


def test_events_of_one_job_are_only_of_that_job(lab: Lab, accepted: dict[str, Any]) -> None:
    source_id = lab.api.get("/sources").json()["sources"][0]["id"]
    discovery = lab.api.post(f"/sources/{source_id}/discover").json()["job_id"]
    with lab.api.stream("GET", "/jobs/events", params={"job_id": discovery}) as answer:
        told = read_events(answer)
        assert next(told)["data"]["job_id"] == discovery
        lab.clock.advance(1)
        fail_backup(lab, accepted)
        lab.api.post(f"/jobs/{discovery}/cancel")
        assert next(told)["data"]["job_id"] == discovery
    unknown = lab.api.get("/jobs/events", params={"job_id": "job-x"})
    check_problem(unknown, 404, "job-unknown")


def test_listeners_are_counted_while_they_listen(
    lab: Lab, accepted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LISTENERS_MAX", 1)
    with lab.api.stream("GET", "/jobs/events") as answer:
        told = read_events(answer)  # held: once it is gone, so is the connection
        assert next(told)["data"]["job_id"] == accepted["job_id"]
        check_problem(lab.api.get("/jobs/events"), 503, "listeners-too-many")
        lab.api.get("/jobs").raise_for_status()
    for _ in range(100):  # the server learns within its next look that the first has gone
        with lab.api.stream("GET", "/jobs/events") as answer:
            if answer.status_code == 200:
                return
        threading.Event().wait(0.1)
    raise AssertionError("the first listener is counted for ever")


# Idempotency.


def test_the_same_request_with_the_same_key_starts_one_job(lab: Lab) -> None:
    lab.add_vm(disks=1)
    body = {"vm_name": "pgtest1", "repository_id": lab.add_repository()}
    headers = {"Idempotency-Key": "key-1"}
    first = lab.api.post("/backups", json=body, headers=headers)
    again = lab.api.post("/backups", json=dict(reversed(body.items())), headers=headers)
    assert first.status_code == again.status_code == 202
    assert first.json() == again.json()
    assert again.headers["location"] == first.headers["location"]
    assert len(lab.starter.started) == 1
    assert lab.api.get("/backups").json()["total"] == 1


def test_a_key_is_not_used_for_another_request(lab: Lab) -> None:
    lab.add_vm(disks=1)
    repository_id = lab.add_repository()
    headers = {"Idempotency-Key": "key-1"}
    body = {"vm_name": "pgtest1", "repository_id": repository_id}
    assert lab.api.post("/backups", json=body, headers=headers).status_code == 202
    other = lab.api.post("/backups", json={**body, "disk_id": 0}, headers=headers)
    check_problem(other, 409, "idempotency-key-reused")
    elsewhere = lab.api.post(f"/repositories/{repository_id}/check", headers=headers)
    check_problem(elsewhere, 409, "idempotency-key-reused")


def test_a_refused_request_leaves_its_key_free(lab: Lab) -> None:
    lab.add_vm(disks=1)
    headers = {"Idempotency-Key": "key-1"}
    body = {"vm_name": "pgtest1", "repository_id": "repo-x"}
    check_problem(lab.api.post("/backups", json=body, headers=headers), 404, "repository-unknown")
    body["repository_id"] = lab.add_repository()
    assert lab.api.post("/backups", json=body, headers=headers).status_code == 202


def test_a_key_is_forgotten_after_a_week(lab: Lab) -> None:
    repository_id = lab.add_repository()
    headers = {"Idempotency-Key": "key-1"}
    path = f"/repositories/{repository_id}/check"
    first = lab.api.post(path, headers=headers).json()
    lab.clock.advance(8 * 86_400)
    lab.api.post(path, headers={"Idempotency-Key": "key-2"})
    assert lab.api.post(path, headers=headers).json() != first


@pytest.mark.parametrize("key", ["", "x" * 256, "two words"])
def test_an_odd_key_is_refused(lab: Lab, key: str) -> None:
    answer = lab.api.post(
        "/backups",
        json={"vm_name": "a", "repository_id": "b"},
        headers={"Idempotency-Key": key},
    )
    check_problem(answer, 422, "fields-invalid")


@pytest.mark.parametrize("keyed", [True, False])
def test_of_many_requests_at_once_one_starts_a_backup(lab: Lab, *, keyed: bool) -> None:
    lab.add_vm(disks=1)
    body = {"vm_name": "pgtest1", "repository_id": lab.add_repository()}
    headers = {"Idempotency-Key": "key-1"} if keyed else {}

    def post(_: int) -> httpx.Response:
        return lab.api.post("/backups", json=body, headers=headers)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(post, range(8)))
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [202] * 8 if keyed else codes == [202] + [409] * 7
    assert len({answer.text for answer in answers if answer.status_code == 202}) == 1
    assert lab.api.get("/backups").json()["total"] == 1
    assert len(lab.starter.started) == 1
