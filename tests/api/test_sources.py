from typing import Any

import pytest

from tests.api.kit import DISK_BYTES, Lab, check_problem


def test_a_source_is_registered_and_shown(lab: Lab) -> None:
    config = {"vms": [{"name": "pgtest1", "disks": [str(lab.image("a.raw"))]}]}
    answer = lab.api.post("/sources", json={"name": "lab", "type": "image", "config": config})
    assert answer.status_code == 201
    made = answer.json()
    assert answer.headers["location"] == f"/api/v1/sources/{made['id']}"
    assert made["config"] == config
    assert made["discovered_at"] is None
    assert lab.api.get(f"/sources/{made['id']}").json() == made
    assert lab.api.get("/sources").json() == {"sources": [made], "total": 1}


def test_a_source_can_be_tried_before_and_after(lab: Lab) -> None:
    path = lab.image("a.raw")
    config = {"vms": [{"name": "a", "disks": [str(path)]}]}
    tried = lab.api.post("/sources/test", json={"type": "image", "config": config})
    assert tried.json()["reachable"] is True
    assert lab.api.get("/sources").json()["total"] == 0
    source_id = lab.add_source(*config["vms"])
    assert lab.api.post(f"/sources/{source_id}/test").json()["reachable"] is True
    path.unlink()
    answer = lab.api.post(f"/sources/{source_id}/test")
    assert answer.status_code in {404, 422, 503}
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_discovery_is_a_job(lab: Lab) -> None:
    source_id = lab.add_source({"name": "a", "disks": [str(lab.image("a.raw"))]})
    answer = lab.api.post(f"/sources/{source_id}/discover", json={})
    assert answer.status_code == 202
    body = answer.json()
    assert body["status"] == "pending"
    assert answer.headers["location"] == f"/api/v1/jobs/{body['job_id']}"
    assert lab.starter.started == [("discover_vms", body["job_id"])]
    again = lab.api.post(f"/sources/{source_id}/discover").json()
    assert again["job_id"] == body["job_id"]


def test_a_source_is_called_by_its_id_under_both_names(lab: Lab) -> None:
    source_id = lab.add_source({"name": "a", "disks": [str(lab.image("a.raw"))]})
    shown = lab.api.get(f"/sources/{source_id}").json()
    assert shown["source_id"] == shown["id"] == source_id


@pytest.mark.parametrize(
    "change",
    [
        {"type": "hyperv"},
        {"config": {}},
        {"config": {"vms": []}},
        {"config": {"vms": [{"name": "a"}]}},
        {"config": {"vms": [{"name": "a", "disks": ["relative.raw"]}]}},
        {"config": {"vms": [{"name": "", "disks": ["/x"]}]}},
        {"config": {"vms": [], "host": "x"}},
        {"credentials": {"username": "x"}},
        {"name": ""},
        {"name": "a\nb"},
    ],
)
def test_a_wrong_source_is_refused_and_not_kept(lab: Lab, change: dict[str, Any]) -> None:
    config = {"vms": [{"name": "a", "disks": [str(lab.image("a.raw"))]}]}
    wanted = {"name": "lab", "type": "image", "config": config, **change}
    answer = lab.api.post("/sources", json=wanted)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"]
    assert lab.api.get("/sources").json()["total"] == 0


@pytest.mark.parametrize("place", ["/etc/hostname", "{data}/catalog.sqlite", "{images}/link"])
def test_images_outside_the_allowed_places_are_refused(lab: Lab, place: str) -> None:
    (lab.images / "link").symlink_to("/etc/hostname")
    path = place.format(data=lab.data_dir, images=lab.images)
    config = {"vms": [{"name": "a", "disks": [path]}]}
    answer = lab.api.post("/sources", json={"name": "x", "type": "image", "config": config})
    check_problem(answer, 403, "path-not-allowed")
    tried = lab.api.post("/sources/test", json={"type": "image", "config": config})
    check_problem(tried, 403, "path-not-allowed")
    assert lab.api.get("/sources").json()["total"] == 0


def test_names_are_unique(lab: Lab) -> None:
    vm = {"name": "a", "disks": [str(lab.image("a.raw"))]}
    lab.add_source(vm)
    second = lab.add_source(vm, name="second")
    body = {"name": "lab", "type": "image", "config": {"vms": [vm]}}
    check_problem(lab.api.post("/sources", json=body), 409, "source-name-taken")
    check_problem(
        lab.api.patch(f"/sources/{second}", json={"name": "lab"}), 409, "source-name-taken"
    )


def test_a_source_is_changed(lab: Lab) -> None:
    source_id = lab.add_source({"name": "a", "disks": [str(lab.image("a.raw"))]})
    config = {"vms": [{"name": "b", "disks": [str(lab.image("b.raw"))]}]}
    changed = lab.api.patch(f"/sources/{source_id}", json={"name": "new", "config": config})
    assert changed.json()["name"] == "new"
    assert changed.json()["config"] == config
    wrong = lab.api.patch(f"/sources/{source_id}", json={"config": {"vms": 1}})
    assert wrong.status_code == 422
    check_problem(lab.api.patch("/sources/x", json={"name": "y"}), 404, "source-unknown")
    check_problem(lab.api.patch("/sources/x", json={"config": {}}), 404, "source-unknown")


def test_a_source_whose_vms_have_backups_is_kept(lab: Lab) -> None:
    lab.add_vm(disks=1)
    source_id = lab.api.get("/sources").json()["sources"][0]["id"]
    repository_id = lab.add_repository()
    accepted = lab.start_backup(repository_id)
    check_problem(lab.api.delete(f"/sources/{source_id}"), 409, "source-busy")
    lab.complete(accepted["backup_id"])
    check_problem(lab.api.delete(f"/sources/{source_id}"), 409, "source-has-backups")
    lab.api.delete(f"/backups/{accepted['backup_id']}")
    assert lab.api.delete(f"/sources/{source_id}").status_code == 204
    assert lab.api.get("/vms").json() == {"vms": [], "total": 0}
    check_problem(lab.api.get(f"/sources/{source_id}"), 404, "source-unknown")


# VMs, as the source's discovery wrote them.


def test_vms_and_disks_are_written_at_discovery(lab: Lab) -> None:
    vm_id = lab.add_vm(disks=2)
    vm = lab.api.get(f"/vms/{vm_id}").json()
    assert vm["name"] == "pgtest1"
    assert vm["disk_count"] == 2
    assert vm["protected"] is False
    assert vm["last_backup_at"] is None
    disks = lab.api.get(f"/vms/{vm_id}/disks").json()
    assert disks["total"] == 2
    first = disks["disks"][0]
    assert first["disk_id"] == "disk-2000"
    assert first["index"] == 0
    assert first["capacity_bytes"] == DISK_BYTES
    assert first["job_id"] is None
    assert first["excluded"] is False
    assert first["tracking"] == "unsupported"


def test_vms_are_filtered_and_searched(lab: Lab) -> None:
    first = lab.add_vm("web_1", disks=1)
    second = lab.add_vm("web%2", disks=1, source="second")
    lab.add_repository()
    lab.back_up(lab.api.get("/repositories").json()["repositories"][0]["id"], vm_name="web_1")
    lab.api.patch(f"/vms/{second}", json={"tags": {"tier": "gold"}})

    def found(**params: Any) -> list[str]:
        answer = lab.api.get("/vms", params=params)
        assert answer.status_code == 200, answer.text
        return [vm["id"] for vm in answer.json()["vms"]]

    assert found() == [second, first]
    assert found(q="WEB") == [second, first]
    assert found(q="_") == [first]
    assert found(q="%") == [second]
    assert found(name="web_1") == [first]
    assert found(tag="tier=gold") == [second]
    assert found(protected=True) == [first]
    assert found(protected=False) == [second]
    assert found(limit=1, offset=1) == [first]
    assert found(present=False) == []
    check_problem(lab.api.get("/vms", params={"power_state": "dreaming"}), 422, "fields-invalid")


def test_tags_and_exclusions_are_set_and_replaced(lab: Lab) -> None:
    vm_id = lab.add_vm(disks=2)
    lab.api.patch(f"/vms/{vm_id}", json={"tags": {"a": "1"}, "excluded_disks": ["disk-2001"]})
    disks = lab.api.get(f"/vms/{vm_id}/disks").json()["disks"]
    assert [disk["excluded_reason"] for disk in disks] == [None, "excluded by the user"]
    changed = lab.api.patch(f"/vms/{vm_id}", json={"tags": {"b": "2"}, "excluded_disks": []})
    assert changed.json()["tags"] == {"b": "2"}
    disks = lab.api.get(f"/vms/{vm_id}/disks").json()["disks"]
    assert [disk["excluded"] for disk in disks] == [False, False]
    check_problem(lab.api.patch(f"/vms/{vm_id}", json={"excluded_disks": [5]}), 404, "disk-unknown")
    check_problem(lab.api.patch(f"/vms/{vm_id}", json={"name": "x"}), 422, "fields-invalid")


def test_readiness_says_why_a_backup_will_not_be_incremental(lab: Lab) -> None:
    vm_id = lab.add_vm(disks=1)
    repository_id = lab.add_repository()
    told = lab.api.get(f"/vms/{vm_id}/readiness").json()
    assert told["backup_possible"] is True
    assert told["incremental_possible"] is False
    assert "no change tracking" in told["reasons"][0]

    lab.track_changes()
    assert lab.api.get(f"/vms/{vm_id}/readiness").json()["incremental_possible"] is True
    params = {"repository_id": repository_id}
    told = lab.api.get(f"/vms/{vm_id}/readiness", params=params).json()
    assert told["disks"][0]["reason"] == "no backup of it in this repository yet"
    lab.back_up(repository_id)
    told = lab.api.get(f"/vms/{vm_id}/readiness", params=params).json()
    assert told["incremental_possible"] is True
    assert told["reasons"] == []
    lab.api.patch(f"/vms/{vm_id}", json={"excluded_disks": [0]})
    assert lab.api.get(f"/vms/{vm_id}/readiness").json()["backup_possible"] is False


def test_a_vms_backups_are_listed(lab: Lab) -> None:
    vm_id = lab.add_vm(disks=1)
    lab.add_vm("other", disks=1, source="second")
    repository_id = lab.add_repository()
    backup_id = lab.back_up(repository_id)
    lab.back_up(repository_id, vm_name="other")
    listed = lab.api.get(f"/vms/{vm_id}/backups").json()
    assert [backup["backup_id"] for backup in listed["backups"]] == [backup_id]
    vm = lab.api.get(f"/vms/{vm_id}").json()
    assert vm["protected"] is True
    assert vm["last_backup_at"] is not None


def test_a_vm_is_forgotten_once_it_has_no_backups(lab: Lab) -> None:
    vm_id = lab.add_vm(disks=1)
    repository_id = lab.add_repository()
    accepted = lab.start_backup(repository_id)
    check_problem(lab.api.delete(f"/vms/{vm_id}"), 409, "vm-busy")
    lab.complete(accepted["backup_id"])
    check_problem(lab.api.delete(f"/vms/{vm_id}"), 409, "vm-has-backups")
    lab.api.delete(f"/backups/{accepted['backup_id']}")
    assert lab.api.delete(f"/vms/{vm_id}").status_code == 204
    gone = lab.api.get("/backups", params={"deleted": True}).json()["backups"][0]
    assert gone["vm_id"] is None
    assert gone["vm_name"] == "pgtest1"


def test_a_vm_that_its_source_lost_is_kept_but_not_backed_up(lab: Lab) -> None:
    vm_id = lab.add_vm(disks=1)
    repository_id = lab.add_repository()
    lab.back_up(repository_id)
    source_id = lab.api.get("/sources").json()["sources"][0]["id"]
    config = {"vms": [{"name": "new", "disks": [str(lab.image("new.raw"))]}]}
    lab.api.patch(f"/sources/{source_id}", json={"config": config})
    lab.discover(source_id)
    assert lab.api.get(f"/vms/{vm_id}").json()["present"] is False
    body = {"vm_name": "pgtest1", "repository_id": repository_id}
    check_problem(lab.api.post("/backups", json=body), 409, "vm-gone")
    assert lab.api.get("/backups/pgtest1/chain").json()["total_backups"] == 1


@pytest.mark.parametrize("path", ["", "/disks", "/backups", "/readiness"])
def test_an_unknown_vm_is_not_found(lab: Lab, path: str) -> None:
    check_problem(lab.api.get(f"/vms/vm-x{path}"), 404, "vm-unknown")
