"""Backups that may not be deleted: held, or immutable until a date."""

import pytest

from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs.schemas import JobStatus
from tests.api.kit import Lab, check_problem

DAY = 86_400.0


def _add_immutable(lab: Lab, days: int = 30) -> str:
    path = str(lab.data_dir / "backups" / "vault")
    config = {"path": path, "immutable_days": days}
    answer = lab.api.post(
        "/repositories", json={"name": "vault", "type": "local", "config": config}
    )
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert (made["immutable_days"], made["lock_mode"]) == (days, None)
    assert "immutable_days" not in made["config"]
    return str(made["id"])


def test_a_held_backup_is_shown_refused_and_let_go(lab: Lab) -> None:
    lab.add_vm(disks=1)
    backup_id = lab.back_up(lab.add_repository())
    shown = lab.api.get(f"/backups/{backup_id}").json()
    assert (shown["hold"], shown["immutable_until"]) == (None, None)

    for why in ("case 7", "case 8"):
        held = lab.api.post(f"/backups/{backup_id}/hold", json={"why": why})
        assert (held.status_code, held.json()["hold"]["why"]) == (200, why)
        assert lab.api.get(f"/backups/{backup_id}").json()["hold"] == held.json()["hold"]
    refused = check_problem(lab.api.delete(f"/backups/{backup_id}"), 409, "backup-held")
    assert "case 8" in refused["detail"]

    for _ in range(2):
        released = lab.api.delete(f"/backups/{backup_id}/hold")
        assert (released.status_code, released.json()["hold"]) == (200, None)
    assert lab.api.delete(f"/backups/{backup_id}").status_code == 200
    again = lab.api.post(f"/backups/{backup_id}/hold", json={})
    check_problem(again, 404, "backup-unknown")


def test_what_was_never_made_cannot_be_held(lab: Lab) -> None:
    lab.add_vm(disks=1)
    accepted = lab.start_backup(lab.add_repository())
    answer = lab.api.post(f"/backups/{accepted['backup_id']}/hold", json={})
    check_problem(answer, 409, "backup-not-completed")


def test_an_immutable_backup_says_until_when_and_goes_then(lab: Lab) -> None:
    lab.add_vm(disks=1)
    backup_id = lab.back_up(_add_immutable(lab))
    until = lab.api.get(f"/backups/{backup_id}").json()["immutable_until"]
    assert until.startswith("2026-01-31T00:00:")
    refused = check_problem(lab.api.delete(f"/backups/{backup_id}"), 409, "backup-immutable")
    assert refused["until"] == until
    lab.clock.advance(31 * DAY)
    assert lab.api.delete(f"/backups/{backup_id}").status_code == 200


def test_a_repository_out_of_reach_holds_nothing(lab: Lab) -> None:
    lab.add_vm(disks=1)
    backup_id = lab.back_up(lab.add_repository())
    folder = lab.data_dir / "backups" / "main"
    folder.rename(folder.with_name("away"))
    answer = lab.api.post(f"/backups/{backup_id}/hold", json={})
    check_problem(answer, 503, "repository-missing")
    assert lab.api.get(f"/backups/{backup_id}").json()["hold"] is None


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"immutable_days": 5, "lock_mode": "compliance"}, "storage-cannot-lock"),
        ({"lock_mode": "attribute"}, "repository-immutability-invalid"),
    ],
)
def test_what_a_place_cannot_do_is_refused_and_leaves_nothing(
    lab: Lab, change: dict[str, object], kind: str
) -> None:
    path = lab.data_dir / "backups" / "vault"
    body = {"name": "vault", "type": "local", "config": {"path": str(path), **change}}
    check_problem(lab.api.post("/repositories", json=body), 422, kind)
    assert not path.exists()
    assert lab.api.get("/repositories").json()["total"] == 0


def test_an_existing_repository_says_how_long_its_backups_are_immutable(lab: Lab) -> None:
    repository_id = _add_immutable(lab, days=3)
    key = lab.api.get(f"/repositories/{repository_id}").json()
    assert key["immutable_days"] == 3
    lab.add_vm(disks=1)
    backup_id = lab.back_up(repository_id)
    assert lab.api.post(f"/backups/{backup_id}/hold", json={"why": "x"}).status_code == 200


def test_an_export_of_the_hub_is_started_as_a_job_and_started_again(lab: Lab) -> None:
    repository_id = lab.add_repository()
    answer = lab.api.post(f"/repositories/{repository_id}/hub-export")
    assert (answer.status_code, answer.json()["repository_id"]) == (202, repository_id)
    assert lab.starter.started == [("export_hub", answer.json()["job_id"])]
    with lab.hub.catalog.write() as session:
        jobs.finish(session, answer.json()["job_id"], JobStatus.FAILED, now=lab.clock.now())
    again = lab.api.post(f"/jobs/{answer.json()['job_id']}/retry")
    assert again.status_code == 202
    assert lab.starter.started[-1] == ("export_hub", again.json()["job_id"])
