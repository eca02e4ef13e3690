from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sendense.core.errors import Denied
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs.schemas import JobStatus
from sendense.hub.repositories import queries
from sendense.repository.storage.base import Buffer, Capacity
from sendense.repository.storage.local import LocalStorage
from tests.api.kit import Lab, check_problem


class FullStorage(LocalStorage):
    """A place with one byte left."""

    def capacity(self) -> Capacity:
        return Capacity(total_bytes=10**12, free_bytes=1)


class ReadOnlyStorage(LocalStorage):
    """A place that is mounted read-only."""

    def put_if_absent(self, name: str, data: Buffer | Any) -> None:
        del data
        raise Denied(f"cannot write {name}: read-only", kind="repository-read-only")


def use_storage(lab: Lab, kind: type[LocalStorage]) -> None:
    def open_storage(_: str, config: Mapping[str, Any]) -> LocalStorage:
        return kind(Path(config["path"]))

    lab.replace_hub(open_storage=open_storage)


def body(path: Path | str, name: str = "main", **config: Any) -> dict[str, Any]:
    return {"name": name, "type": "local", "config": {"path": str(path), **config}}


def test_a_repository_is_made_where_its_folder_is_missing(lab: Lab) -> None:
    path = lab.data_dir / "backups" / "deep" / "er"
    answer = lab.api.post("/repositories", json=body(path))
    assert answer.status_code == 201
    made = answer.json()
    assert made["id"] == made["repository_id"] == "repo-local-1767225600"
    assert answer.headers["location"] == f"/api/v1/repositories/{made['id']}"
    assert made["enabled"] is True
    assert made["free_bytes"] > 0
    assert made["warnings"] == []
    assert made["encrypted"] is True
    assert made["recovery_key"].startswith("SENDENSE-1-")
    assert (path / "sendense.json").is_file()
    del made["recovery_key"]
    assert lab.api.get(f"/repositories/{made['id']}").json() == made
    listed = lab.api.get("/repositories").json()
    assert listed == {"repositories": [made], "total": 1}


def test_a_place_too_small_for_any_backup_is_taken_with_a_warning(lab: Lab) -> None:
    use_storage(lab, FullStorage)
    answer = lab.api.post("/repositories", json=body(lab.data_dir / "backups" / "small"))
    assert answer.status_code == 201
    assert "no backup fits" in answer.json()["warnings"][0]


def test_two_repositories_of_one_second_get_different_ids(lab: Lab) -> None:
    first, second = lab.add_repository(), lab.add_repository("second")
    assert second.startswith(f"{first}-")


def test_a_folder_that_is_not_empty_and_not_ours_is_refused(lab: Lab) -> None:
    folder = lab.data_dir / "backups" / "photos"
    folder.mkdir()
    (folder / "holiday.jpg").write_bytes(b"x")
    before = lab.count_rows()
    document = check_problem(
        lab.api.post("/repositories", json=body(folder)), 409, "repository-folder-not-empty"
    )
    assert "holiday.jpg" in document["detail"]
    assert [path.name for path in folder.iterdir()] == ["holiday.jpg"]
    assert lab.count_rows() == before


@pytest.mark.parametrize("inside", ["new", "packs/deep/new"])
def test_a_repository_is_not_made_inside_another(lab: Lab, inside: str) -> None:
    lab.add_repository()
    outer = lab.data_dir / "backups" / "main"
    before = (lab.count_rows(), sorted(outer.rglob("*")))
    for place in ("/repositories", "/repositories/test"):
        document = check_problem(
            lab.api.post(place, json=body(outer / inside, "inner")),
            409,
            "repository-folder-not-empty",
        )
        assert str(outer) in document["detail"]
    assert (lab.count_rows(), sorted(outer.rglob("*"))) == before


def test_a_file_is_no_place_for_a_repository(lab: Lab) -> None:
    path = lab.image("a-file")
    check_problem(
        lab.api.post("/repositories", json=body(path)), 409, "repository-folder-not-empty"
    )
    check_problem(
        lab.api.post("/repositories", json=body(path / "below")),
        409,
        "repository-folder-not-empty",
    )


def test_a_failed_creation_leaves_no_folders(lab: Lab) -> None:
    use_storage(lab, ReadOnlyStorage)
    path = lab.data_dir / "backups" / "a" / "b"
    check_problem(lab.api.post("/repositories", json=body(path)), 403, "repository-read-only")
    assert list((lab.data_dir / "backups").iterdir()) == []


def test_an_existing_repository_is_adopted_with_a_word_on_its_backups(lab: Lab) -> None:
    lab.add_vm(disks=1)
    repository_id = lab.add_repository()
    backup_id = lab.back_up(repository_id)
    path = lab.data_dir / "backups" / "main"
    document = check_problem(
        lab.api.post("/repositories", json=body(path, "again")), 409, "repository-registered"
    )
    assert document["repository_id"] == repository_id
    forget_rows(lab, repository_id)
    adopted = lab.api.post(
        "/repositories", json=body(path, "again", recovery_key=lab.recovery_keys[repository_id])
    )
    assert adopted.status_code == 201
    assert "holds 1 backups" in adopted.json()["warnings"][0]
    assert backup_id not in lab.api.get("/backups").text


def forget_rows(lab: Lab, repository_id: str) -> None:
    """Lose the catalog's knowledge of a repository, as a new hub has none."""
    from sqlalchemy import delete

    from sendense.db.tables import ChainRow

    with lab.hub.catalog.write() as session:
        session.execute(delete(ChainRow))
        queries.delete_repository(session, repository_id)


def test_names_are_unique(lab: Lab) -> None:
    lab.add_repository()
    other = lab.add_repository("second")
    path = lab.data_dir / "backups" / "third"
    check_problem(lab.api.post("/repositories", json=body(path)), 409, "repository-name-taken")
    assert not path.exists()
    check_problem(
        lab.api.patch(f"/repositories/{other}", json={"name": "main"}),
        409,
        "repository-name-taken",
    )


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [
        ("/etc/sendense-test", 403, "path-not-allowed"),
        ("relative", 422, "path-invalid"),
        ("", 422, "fields-invalid"),
        ("{data}/backups/../../x", 422, "path-invalid"),
        ("{data}/backups/a\u0000b", 422, "path-invalid"),
        ("{data}/backups/" + "x" * 256, 422, "path-invalid"),
        ("{data}/backups" + "/x" * 2048, 422, "fields-invalid"),
        ("{data}", 403, "path-not-allowed"),
        ("{data}/catalog.sqlite", 403, "path-not-allowed"),
        ("{data}/locks", 403, "path-not-allowed"),
        ("{data}/backups/link", 403, "path-not-allowed"),
        ("{data}/backups/loop/x", 422, "path-invalid"),
    ],
)
def test_paths_outside_the_allowed_places_are_refused(
    lab: Lab, path: str, status: int, kind: str
) -> None:
    (lab.data_dir / "backups" / "link").symlink_to("/etc")
    (lab.data_dir / "backups" / "loop").symlink_to("loop")
    wanted = path.format(data=lab.data_dir)
    before = lab.count_rows()
    check_problem(lab.api.post("/repositories", json=body(wanted)), status, kind)
    check_problem(
        lab.api.post("/repositories/test", json=body(wanted)),
        status,
        kind,
    )
    assert lab.count_rows() == before


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"type": "tape"}, "type"),
        ({"type": "s3", "config": {}}, "config.url"),
        ({"name": ""}, "name"),
        ({"name": "x" * 256}, "name"),
        ({"config": {}}, "config.path"),
        ({"config": []}, "config"),
        ({"config": {"path": "/x", "bucket": "y"}}, "config.bucket"),
        ({"config": {"path": "/x", "chunk_size": "1"}}, "config.chunk_size"),
        ({"password": "x"}, "password"),
    ],
)
def test_wrong_fields_are_named(lab: Lab, change: dict[str, Any], field: str) -> None:
    document = check_problem(
        lab.api.post("/repositories", json={**body("/x"), **change}), 422, "fields-invalid"
    )
    assert [error["field"] for error in document["errors"]] == [field]


def test_an_impossible_chunk_size_is_refused_and_makes_nothing(lab: Lab) -> None:
    path = lab.data_dir / "backups" / "odd"
    answer = lab.api.post("/repositories", json=body(path, chunk_size=12345))
    assert answer.status_code == 422
    assert not path.exists()


def test_a_place_can_be_tried_before(lab: Lab) -> None:
    path = lab.data_dir / "backups" / "new"
    tried = lab.api.post("/repositories/test", json=body(path)).json()
    assert tried["usable"] is True
    assert tried["exists"] is False
    assert not path.exists()
    lab.add_repository()
    known = lab.api.post("/repositories/test", json=body(lab.data_dir / "backups" / "main"))
    assert known.json()["exists"] is True


def test_a_registered_repository_can_be_tried_and_measured(lab: Lab) -> None:
    repository_id = lab.add_repository()
    assert lab.api.post(f"/repositories/{repository_id}/test").json()["usable"] is True
    lab.clock.advance(100)
    measured = lab.api.get(f"/repositories/{repository_id}/storage").json()
    assert measured["capacity_bytes"] >= measured["free_bytes"] > 0
    assert measured["measured_at"].startswith("2026-01-01T00:01:40")
    shown = lab.api.get(f"/repositories/{repository_id}").json()
    assert shown["measured_at"] == measured["measured_at"]


# What a backup asks of its repository.


def refuse_backup(lab: Lab, repository_id: str, status: int, kind: str) -> dict[str, Any]:
    before = lab.count_rows()
    answer = lab.api.post("/backups", json={"vm_name": "pgtest1", "repository_id": repository_id})
    document = check_problem(answer, status, kind)
    assert lab.count_rows() == before
    assert lab.starter.started == []
    return document


def test_a_backup_to_an_unknown_repository_is_refused(lab: Lab) -> None:
    lab.add_vm(disks=1)
    refuse_backup(lab, "repo-local-1", 404, "repository-unknown")


def test_a_backup_to_a_disabled_repository_is_refused(lab: Lab) -> None:
    lab.add_vm(disks=1)
    repository_id = lab.add_repository()
    lab.api.patch(f"/repositories/{repository_id}", json={"enabled": False})
    refuse_backup(lab, repository_id, 409, "repository-disabled")


def test_a_backup_to_a_repository_whose_folder_has_vanished_is_refused(lab: Lab) -> None:
    lab.add_vm(disks=1)
    repository_id = lab.add_repository()
    folder = lab.data_dir / "backups" / "main"
    folder.rename(folder.with_name("away"))
    refuse_backup(lab, repository_id, 503, "repository-missing")
    folder.mkdir()  # a share that is not mounted leaves an empty folder
    refuse_backup(lab, repository_id, 503, "repository-missing")
    check_problem(lab.api.get(f"/repositories/{repository_id}/storage"), 503, "repository-missing")
    assert lab.api.get(f"/repositories/{repository_id}").json()["trouble"]


def test_a_backup_to_the_place_of_another_repository_is_refused(lab: Lab) -> None:
    lab.add_vm(disks=1)
    first, _ = lab.add_repository(), lab.add_repository("second")
    folder = lab.data_dir / "backups"
    (folder / "main").rename(folder / "away")
    (folder / "second").rename(folder / "main")
    refuse_backup(lab, first, 500, "repository-mistaken")


def test_a_backup_to_a_full_repository_is_refused(lab: Lab) -> None:
    lab.add_vm(disks=1)
    repository_id = lab.add_repository()
    use_storage(lab, FullStorage)
    refuse_backup(lab, repository_id, 507, "repository-full")


def test_a_backup_to_a_read_only_repository_is_refused(lab: Lab) -> None:
    lab.add_vm(disks=1)
    repository_id = lab.add_repository()
    use_storage(lab, ReadOnlyStorage)
    refuse_backup(lab, repository_id, 409, "repository-read-only")
    check_problem(lab.api.post(f"/repositories/{repository_id}/test"), 409, "repository-read-only")


def test_a_read_only_repository_keeps_its_backups(lab: Lab) -> None:
    lab.add_vm(disks=1)
    backup_id = lab.back_up(lab.add_repository())
    use_storage(lab, ReadOnlyStorage)
    check_problem(lab.api.delete(f"/backups/{backup_id}"), 409, "repository-read-only")
    assert lab.api.get(f"/backups/{backup_id}").status_code == 200


# Changing and forgetting.


def test_a_repository_is_renamed_and_disabled(lab: Lab) -> None:
    repository_id = lab.add_repository()
    changed = lab.api.patch(
        f"/repositories/{repository_id}", json={"name": "other", "enabled": False}
    ).json()
    assert changed["name"] == "other"
    assert changed["enabled"] is False
    check_problem(lab.api.patch(f"/repositories/{repository_id}", json={}), 422, "fields-invalid")


def test_a_repository_with_backups_is_not_forgotten(lab: Lab) -> None:
    lab.add_vm(disks=1)
    repository_id = lab.add_repository()
    accepted = lab.start_backup(repository_id)
    document = check_problem(
        lab.api.delete(f"/repositories/{repository_id}"), 409, "repository-busy"
    )
    assert document["job_id"] == accepted["job_id"]
    lab.complete(accepted["backup_id"])
    check_problem(lab.api.delete(f"/repositories/{repository_id}"), 409, "repository-has-backups")
    lab.api.delete(f"/backups/{accepted['backup_id']}")
    assert lab.api.delete(f"/repositories/{repository_id}").status_code == 204
    check_problem(lab.api.get(f"/repositories/{repository_id}"), 404, "repository-unknown")
    assert (lab.data_dir / "backups" / "main" / "sendense.json").is_file()


def test_a_check_is_started_as_a_job(lab: Lab) -> None:
    repository_id = lab.add_repository()
    answer = lab.api.post(f"/repositories/{repository_id}/check", json={"read_data": True})
    assert answer.status_code == 202
    job = lab.api.get(f"/jobs/{answer.json()['job_id']}").json()
    assert job["kind"] == "check"
    assert job["subject"] == {"repository_id": repository_id, "read_data": True}
    assert lab.starter.started == [("check_repository", job["job_id"])]


def test_an_import_is_started_as_a_job_and_started_again(lab: Lab) -> None:
    repository_id = lab.add_repository()
    answer = lab.api.post(f"/repositories/{repository_id}/import")
    assert answer.status_code == 202
    job_id = answer.json()["job_id"]
    job = lab.api.get(f"/jobs/{job_id}").json()
    assert (job["kind"], job["subject"]) == ("import", {"repository_id": repository_id})
    assert lab.starter.started == [("import_repository", job_id)]
    with lab.hub.catalog.write() as session:
        jobs.finish(session, job_id, JobStatus.CANCELLED, now=lab.clock.now())
    assert lab.api.post(f"/jobs/{job_id}/retry").status_code == 202
    assert [name for name, _ in lab.starter.started] == ["import_repository"] * 2


def test_a_verification_is_started_as_a_job_and_started_again(lab: Lab) -> None:
    repository_id = lab.add_repository()
    wanted = {"level": 3, "bytes_max": 1024, "seconds_max": 9.5}
    answer = lab.api.post(f"/repositories/{repository_id}/verify", json=wanted)
    assert (answer.status_code, answer.json()["repository_id"]) == (202, repository_id)
    job_id = answer.json()["job_id"]
    job = lab.api.get(f"/jobs/{job_id}").json()
    assert (job["kind"], job["subject"]) == ("verify", {"repository_id": repository_id, **wanted})
    assert lab.starter.started == [("verify_repository", job_id)]
    with lab.hub.catalog.write() as session:
        jobs.finish(session, job_id, JobStatus.FAILED, now=lab.clock.now())
    again = lab.api.post(f"/jobs/{job_id}/retry")
    retried = lab.api.get(f"/jobs/{again.json()['job_id']}").json()
    assert retried["subject"] == {"repository_id": repository_id, **wanted}
    refused = lab.api.post(f"/repositories/{repository_id}/verify", json={"level": 5})
    check_problem(refused, 422, "fields-invalid")


def test_a_collection_is_started_as_a_job_and_started_again(lab: Lab) -> None:
    repository_id = lab.add_repository()
    wanted = {"preview": False, "now": True, "confirmed": True, "deletes_per_second": 9.5}
    answer = lab.api.post(f"/repositories/{repository_id}/gc", json=wanted)
    assert (answer.status_code, answer.json()["repository_id"]) == (202, repository_id)
    job_id = answer.json()["job_id"]
    job = lab.api.get(f"/jobs/{job_id}").json()
    assert (job["kind"], job["subject"]) == ("gc", {"repository_id": repository_id, **wanted})
    assert lab.starter.started == [("collect_garbage", job_id)]

    second = lab.api.post(f"/repositories/{repository_id}/gc")
    assert check_problem(second, 409, "gc-running")["job_id"] == job_id
    preview = lab.api.post(f"/repositories/{repository_id}/gc", json={"preview": True})
    assert preview.status_code == 202

    with lab.hub.catalog.write() as session:
        jobs.finish(session, job_id, JobStatus.FAILED, now=lab.clock.now())
    again = lab.api.post(f"/jobs/{job_id}/retry")
    assert again.status_code == 202
    retried = lab.api.get(f"/jobs/{again.json()['job_id']}").json()
    assert retried["subject"] == {"repository_id": repository_id, **wanted}


@pytest.mark.parametrize(
    "path", ["", "/test", "/storage", "/check", "/gc", "/verify", "/import", "/keys", "/hub-export"]
)
def test_an_unknown_repository_is_not_found(lab: Lab, path: str) -> None:
    method = (
        "POST" if path in {"/test", "/check", "/gc", "/verify", "/import", "/hub-export"} else "GET"
    )
    answer = lab.api.request(method, f"/repositories/repo-local-1{path}")
    check_problem(answer, 404, "repository-unknown")
