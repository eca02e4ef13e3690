import shutil
from pathlib import Path
from typing import Any

import pytest

from sendense.core.errors import Cancelled
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs.schemas import JobStatus
from sendense.hub.restores import queries as restores
from tests.api.kit import DISK_BYTES, Lab, check_problem


@pytest.fixture
def backup_id(lab: Lab) -> str:
    lab.add_vm(disks=2)
    return lab.back_up(lab.add_repository())


def body(backup_id: str, path: Path | str, **more: Any) -> dict[str, Any]:
    return {
        "backup_id": backup_id,
        "disk_id": 0,
        "target": {"type": "file", "path": str(path), "format": "raw"},
        **more,
    }


def refuse(lab: Lab, wanted: dict[str, Any], status: int, kind: str) -> dict[str, Any]:
    before = lab.count_rows()
    started = list(lab.starter.started)
    document = check_problem(lab.api.post("/restores", json=wanted), status, kind)
    assert lab.count_rows() == before
    assert lab.starter.started == started
    return document


def test_a_restore_is_accepted_and_shown(lab: Lab, backup_id: str) -> None:
    path = lab.images / "restored.raw"
    answer = lab.api.post("/restores", json=body(backup_id, path))
    assert answer.status_code == 202
    accepted = answer.json()
    assert set(accepted) == {"restore_id", "job_id", "status"}
    assert answer.headers["location"] == f"/api/v1/jobs/{accepted['job_id']}"
    assert lab.starter.started[-1] == ("restore_disk", accepted["job_id"])
    shown = lab.api.get(f"/restores/{accepted['restore_id']}").json()
    assert shown["status"] == "pending"
    assert shown["backup_id"] == backup_id
    assert shown["disk_id"] == "disk-2000"
    assert shown["target"] == {"type": "file", "path": str(path), "format": "raw", "host": None}
    assert shown["total_bytes"] == DISK_BYTES
    listed = lab.api.get("/restores", params={"backup_id": backup_id}).json()
    assert listed == {"restores": [shown], "total": 1}
    assert lab.api.get("/restores", params={"status": "failed"}).json()["total"] == 0


def test_a_restore_runs_beside_a_backup_of_the_same_vm(lab: Lab, backup_id: str) -> None:
    repository_id = lab.api.get(f"/backups/{backup_id}").json()["repository_id"]
    lab.start_backup(repository_id)
    answer = lab.api.post("/restores", json=body(backup_id, lab.images / "x.raw"))
    assert answer.status_code == 202


def test_progress_and_end_are_shown(lab: Lab, backup_id: str) -> None:
    accepted = lab.api.post("/restores", json=body(backup_id, lab.images / "x.raw")).json()
    restore_id = accepted["restore_id"]
    now = lab.clock.now()
    with lab.hub.catalog.write() as session:
        jobs.begin(session, accepted["job_id"], now=now)
        restores.begin_restore(session, restore_id, now=now)
        restores.set_progress(
            session, restore_id, bytes_total=1000, bytes_written=250, rate=50.0, now=now
        )
    shown = lab.api.get(f"/restores/{restore_id}").json()
    assert shown["status"] == "running"
    assert shown["progress_percent"] == 25.0
    assert shown["bytes_written"] == 250
    assert shown["seconds_left"] == 15.0
    with lab.hub.catalog.write() as session:
        restores.finish_restore(session, restore_id, JobStatus.COMPLETED, now=now)
        jobs.finish(session, accepted["job_id"], JobStatus.COMPLETED, now=now)
    shown = lab.api.get(f"/restores/{restore_id}").json()
    assert shown["status"] == "completed"
    assert shown["progress_percent"] == 100.0


def test_a_restore_is_cancelled_once(lab: Lab, backup_id: str) -> None:
    accepted = lab.api.post("/restores", json=body(backup_id, lab.images / "x.raw")).json()
    path = f"/restores/{accepted['restore_id']}/cancel"
    assert lab.api.post(path).status_code == 202
    assert lab.api.get(f"/jobs/{accepted['job_id']}").json()["cancel_requested"] is True
    error = Cancelled("the job was cancelled")
    with lab.hub.catalog.write() as session:
        now = lab.clock.now()
        restores.finish_restore(
            session, accepted["restore_id"], JobStatus.CANCELLED, now=now, error=error
        )
        jobs.finish(session, accepted["job_id"], JobStatus.CANCELLED, now=now, error=error)
    check_problem(lab.api.post(path), 409, "job-ended")
    shown = lab.api.get(f"/restores/{accepted['restore_id']}").json()
    assert shown["status"] == "cancelled"
    retried = lab.api.post(f"/jobs/{accepted['job_id']}/retry")
    assert retried.status_code == 202
    job = lab.api.get(f"/jobs/{retried.json()['job_id']}").json()
    assert job["retry_of"] == accepted["job_id"]


def test_an_existing_target_is_refused_unless_it_may_be_overwritten(
    lab: Lab, backup_id: str
) -> None:
    path = lab.image("there.raw")
    refuse(lab, body(backup_id, path), 409, "target-exists")
    assert lab.api.post("/restores", json=body(backup_id, path, overwrite=True)).status_code == 202


def test_a_target_is_written_by_one_restore_at_a_time(lab: Lab, backup_id: str) -> None:
    path = lab.images / "x.raw"
    (lab.images / "alias").symlink_to(path)
    lab.api.post("/restores", json=body(backup_id, path))
    refuse(lab, body(backup_id, path), 409, "target-busy")
    refuse(lab, body(backup_id, lab.images / "alias"), 409, "target-busy")


def test_a_target_in_a_repository_is_refused(lab: Lab, backup_id: str) -> None:
    path = lab.data_dir / "backups" / "main" / "sendense.json"
    refuse(lab, body(backup_id, path, overwrite=True), 403, "target-in-repository")
    refuse(lab, body(backup_id, path.with_name("new")), 403, "target-in-repository")


def test_a_target_in_a_repository_that_is_not_registered_is_refused(
    lab: Lab, backup_id: str
) -> None:
    stranger = lab.images / "stranger"
    shutil.copytree(lab.data_dir / "backups" / "main", stranger)
    for path in (stranger / "sendense.json", stranger / "packs" / "new"):
        refuse(lab, body(backup_id, path, overwrite=True), 403, "target-in-repository")


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [
        ("/etc/restored.raw", 403, "path-not-allowed"),
        ("{data}/catalog.sqlite", 403, "path-not-allowed"),
        ("{images}/link/x.raw", 403, "path-not-allowed"),
        ("{images}/dangling", 403, "path-not-allowed"),
        ("{images}/../x.raw", 422, "path-invalid"),
        ("x.raw", 422, "path-invalid"),
        ("{images}/nowhere/x.raw", 422, "target-folder-missing"),
        ("{images}", 409, "target-not-a-file"),
        ("{images}/a\u0000", 422, "path-invalid"),
    ],
)
def test_a_wrong_target_is_refused(
    lab: Lab, backup_id: str, path: str, status: int, kind: str
) -> None:
    (lab.images / "link").symlink_to("/etc")
    (lab.images / "dangling").symlink_to("/etc/not-there")
    wanted = path.format(data=lab.data_dir, images=lab.images)
    refuse(lab, body(backup_id, wanted, overwrite=True), status, kind)


def test_only_a_completed_backup_is_restored(lab: Lab, backup_id: str) -> None:
    repository_id = lab.api.get(f"/backups/{backup_id}").json()["repository_id"]
    running = lab.start_backup(repository_id)["backup_id"]
    path = lab.images / "x.raw"
    refuse(lab, body(running, path), 409, "backup-not-completed")
    refuse(lab, body("backup-x", path), 404, "backup-unknown")
    refuse(lab, body(backup_id, path, disk_id=2), 404, "disk-unknown")
    refuse(lab, body(backup_id, path, disk_id=None), 422, "disk-needed")
    lab.api.delete(f"/backups/{backup_id}")
    refuse(lab, body(backup_id, path), 404, "backup-unknown")


def test_a_vm_of_a_source_that_takes_nothing_back_is_refused(lab: Lab, backup_id: str) -> None:
    (vm,) = lab.api.get("/vms").json()["vms"]
    target = {"type": "vm", "vm_id": vm["id"]}
    asked = {"backup_id": backup_id, "disk_id": 0, "target": target, "overwrite": True}
    refuse(lab, asked, 422, "target-unsupported")
    refuse(lab, {**asked, "target": {**target, "vm_id": "vm-unknown"}}, 404, "vm-unknown")


def test_a_backup_that_is_being_read_is_not_deleted(lab: Lab, backup_id: str) -> None:
    accepted = lab.api.post("/restores", json=body(backup_id, lab.images / "x.raw")).json()
    document = check_problem(lab.api.delete(f"/backups/{backup_id}"), 409, "backup-in-use")
    assert document["restore_id"] == accepted["restore_id"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"backup_id": 1}, "backup_id"),
        ({"target": {"type": "file"}}, "target.path"),
        ({"target": {"type": "tape", "path": "/x"}}, "target.type"),
        ({"target": {"path": "/x"}}, "target.type"),
        ({"target": {"type": "vm"}}, "target.vm_id"),
        ({"target": {"type": "file", "path": "/x", "format": "vmdk"}}, "target.format"),
        ({"target": {"type": "file", "path": "/x", "mode": 1}}, "target.mode"),
        ({"overwrite": "yes"}, "overwrite"),
        ({"speed": 1}, "speed"),
    ],
)
def test_wrong_fields_are_named(lab: Lab, change: dict[str, Any], field: str) -> None:
    document = check_problem(
        lab.api.post("/restores", json={**body("backup-x", "/x"), **change}),
        422,
        "fields-invalid",
    )
    assert [error["field"] for error in document["errors"]] == [field]


def test_an_unknown_restore_is_not_found(lab: Lab) -> None:
    check_problem(lab.api.get("/restores/x"), 404, "restore-unknown")
    check_problem(lab.api.post("/restores/x/cancel"), 404, "restore-unknown")
