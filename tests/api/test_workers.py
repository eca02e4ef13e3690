from dataclasses import replace
from typing import Any

import pytest

from sendense.core.errors import Unavailable
from tests.api import kit
from tests.api.kit import Lab


def _with_labels(lab: Lab, *labels: dict[str, str]) -> None:
    """Let workers with these labels be alive."""
    workers = [
        (replace(kit.WORKER, about=replace(kit.WORKER.about, labels=some)), True) for some in labels
    ]
    lab.replace_hub(list_workers=lambda _session: workers)


def test_workers_are_listed_with_what_they_run(lab: Lab) -> None:
    assert lab.api.get("/workers").json() == {
        "workers": [
            {
                "id": "worker-1",
                "host": "nas1",
                "pid": 7,
                "labels": {"host": "nas1"},
                "version": "0.1.0",
                "started_at": "2023-11-14T22:13:20.000000Z",
                "beat_age_seconds": 1.5,
                "status": "live",
                "jobs": ["job-1"],
            }
        ],
        "total": 1,
        "unplaced_jobs": [],
    }


@pytest.mark.parametrize(
    ("age_seconds", "alive", "status"),
    [(1.5, True, "live"), (49.0, True, "stale"), (1.5, False, "stale")],
)
def test_a_worker_that_is_dead_or_about_to_be_is_stale(
    lab: Lab, age_seconds: float, *, alive: bool, status: str
) -> None:
    worker = replace(kit.WORKER, age_seconds=age_seconds)
    lab.replace_hub(list_workers=lambda _session: [(worker, alive)])

    assert lab.api.get("/workers").json()["workers"][0]["status"] == status


def test_workers_cannot_be_listed_while_the_engine_is_away(lab: Lab) -> None:
    def fail() -> dict[str, set[str]]:
        raise Unavailable("the job engine's database does not answer")

    lab.replace_hub(list_running=fail)

    assert lab.api.get("/workers").status_code == 503


def test_a_job_demands_what_its_source_and_repository_require(lab: Lab) -> None:
    lab.add_vm("pgtest1", disks=1)
    repository_id = lab.add_repository()
    source_id = lab.api.get("/sources").json()["sources"][0]["id"]
    _patch(lab, f"/sources/{source_id}", {"site": "berlin"})
    _patch(lab, f"/repositories/{repository_id}", {"host": "nas1"})

    started = lab.start_backup(repository_id)

    demanded = {"site": "berlin", "host": "nas1"}
    assert lab.starter.required[started["job_id"]] == demanded
    job = lab.api.get(f"/jobs/{started['job_id']}").json()
    assert job["required_labels"] == demanded
    assert job["waiting_reason"] == "no worker with host=nas1, site=berlin is alive"
    assert lab.api.get("/jobs").json()["jobs"][0]["waiting_reason"] == job["waiting_reason"]
    assert lab.api.get("/workers").json()["unplaced_jobs"] == [started["job_id"]]

    _with_labels(lab, {"host": "nas2"}, {"host": "nas1", "site": "berlin", "rack": "7"})

    assert lab.api.get(f"/jobs/{started['job_id']}").json()["waiting_reason"] is None
    assert lab.api.get("/workers").json()["unplaced_jobs"] == []


def test_a_job_without_demands_waits_only_where_nobody_is_alive(lab: Lab) -> None:
    lab.add_vm("pgtest1", disks=1)
    started = lab.start_backup(lab.add_repository())
    assert lab.starter.required[started["job_id"]] == {}
    assert lab.api.get(f"/jobs/{started['job_id']}").json()["waiting_reason"] is None

    _with_labels(lab)

    job = lab.api.get(f"/jobs/{started['job_id']}").json()
    assert job["waiting_reason"] == "no worker is alive"


def test_a_job_that_no_worker_can_ever_run_is_refused_and_changes_nothing(lab: Lab) -> None:
    lab.add_vm("pgtest1", disks=1)
    repository_id = lab.add_repository()
    source_id = lab.api.get("/sources").json()["sources"][0]["id"]
    _patch(lab, f"/sources/{source_id}", {"host": "kvm1"})
    _patch(lab, f"/repositories/{repository_id}", {"host": "nas1"})

    answer = lab.api.post("/backups", json={"vm_name": "pgtest1", "repository_id": repository_id})

    assert answer.status_code == 409
    assert answer.json()["type"].endswith("placement-impossible")
    assert lab.api.get("/jobs").json()["total"] == 0


def test_labels_are_given_with_a_source_and_a_repository_and_taken_back(lab: Lab) -> None:
    vms = [{"name": "a", "disks": [str(lab.image("a.raw"))]}]
    source = lab.api.post(
        "/sources",
        json={
            "name": "lab",
            "type": "image",
            "config": {"vms": vms},
            "required_labels": {"host": "kvm1"},
        },
    ).json()
    repository = lab.api.post(
        "/repositories",
        json={
            "name": "main",
            "type": "local",
            "config": {"path": str(lab.data_dir / "backups" / "main")},
            "required_labels": {"storage": "nas1"},
        },
    ).json()
    assert source["required_labels"] == {"host": "kvm1"}
    assert repository["required_labels"] == {"storage": "nas1"}

    assert _patch(lab, f"/sources/{source['id']}", {})["required_labels"] == {}
    assert _patch(lab, f"/repositories/{repository['id']}", {})["required_labels"] == {}


@pytest.mark.parametrize(
    "labels",
    [
        {"Site": "x"},
        {"site": ""},
        {"site": "a,b"},
        {"site": 7},
        {"": "x"},
        ["site"],
        {f"k{number}": "x" for number in range(9)},
    ],
)
def test_what_is_no_label_is_refused(lab: Lab, labels: Any) -> None:
    lab.add_vm("pgtest1", disks=1)
    source_id = lab.api.get("/sources").json()["sources"][0]["id"]

    answer = lab.api.patch(f"/sources/{source_id}", json={"required_labels": labels})

    assert answer.status_code == 422
    assert lab.api.get(f"/sources/{source_id}").json()["required_labels"] == {}


def _patch(lab: Lab, path: str, labels: dict[str, str]) -> Any:
    answer = lab.api.patch(path, json={"required_labels": labels})
    assert answer.status_code == 200, answer.text
    return answer.json()
