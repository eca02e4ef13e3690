import itertools
from typing import Any

import pytest

from sendense.core.errors import NotFound
from sendense.hub.backups import queries as backups
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs.schemas import JobStatus
from sendense.hub.repositories import root_keys
from sendense.hub.repositories.queries import get_repository
from sendense.repository.repository import Repository
from sendense.repository.storage.local import LocalStorage
from tests.api.kit import CHANGE_ID, DISK_BYTES, Lab, check_problem, later


def test_an_empty_list_has_exactly_the_shape_that_clients_expect(lab: Lab) -> None:
    answer = lab.api.get("/backups")
    assert answer.status_code == 200
    assert answer.json() == {"backups": [], "total": 0}
    assert list(answer.json()) == ["backups", "total"]


def test_the_request_of_an_existing_client_is_accepted(lab: Lab) -> None:
    lab.add_vm()
    repository_id = lab.add_repository()
    answer = lab.api.post(
        "/backups",
        json={
            "vm_name": "pgtest1",
            "disk_id": 0,
            "repository_id": repository_id,
            "backup_type": "full",
            "tags": {"test": "vm_disks_integration"},
        },
    )
    assert answer.status_code == 202
    body = answer.json()
    assert set(body) == {"backup_id", "job_id", "status", "backup_type", "type_reason"}
    assert body["status"] == "pending"
    assert body["backup_type"] == "full"
    assert body["backup_id"].startswith("backup-pgtest1-20260101t000000z-")
    assert answer.headers["location"] == f"/api/v1/jobs/{body['job_id']}"
    assert lab.starter.started == [("backup_vm", body["job_id"])]


def test_a_pending_backup_shows_everything_that_is_known(lab: Lab) -> None:
    vm_id = lab.add_vm()
    repository_id = lab.add_repository()
    accepted = lab.start_backup(repository_id, disk_id=1, tags={"a": "b"})
    shown = lab.api.get(f"/backups/{accepted['backup_id']}").json()
    assert shown["status"] == "pending"
    assert shown["vm_id"] == vm_id
    assert shown["vm_name"] == "pgtest1"
    assert shown["repository_id"] == repository_id
    assert shown["requested_type"] == "auto"
    assert shown["type_reason"] == "first backup of this disk in this repository"
    assert shown["tags"] == {"a": "b"}
    assert shown["progress_percent"] == 0.0
    assert shown["total_bytes"] == DISK_BYTES
    assert shown["completed_at"] is None
    assert shown["created_at"].startswith("2026-01-01T00:00:00")
    [disk] = shown["disks"]
    assert disk["disk_id"] == "disk-2001"
    assert disk["index"] == 1
    assert disk["capacity_bytes"] == DISK_BYTES


def test_all_disks_are_backed_up_where_none_is_named(lab: Lab) -> None:
    lab.add_vm(disks=3)
    accepted = lab.start_backup(lab.add_repository())
    shown = lab.api.get(f"/backups/{accepted['backup_id']}").json()
    assert [disk["index"] for disk in shown["disks"]] == [0, 1, 2]


def test_a_disk_may_be_named_by_its_id_too(lab: Lab) -> None:
    lab.add_vm()
    accepted = lab.start_backup(lab.add_repository(), disk_id="disk-2001")
    shown = lab.api.get(f"/backups/{accepted['backup_id']}").json()
    assert [disk["disk_id"] for disk in shown["disks"]] == ["disk-2001"]


def test_a_completed_backup_tells_its_figures(lab: Lab) -> None:
    lab.add_vm(disks=1)
    backup_id = lab.back_up(lab.add_repository())
    shown = lab.api.get(f"/backups/{backup_id}").json()
    assert shown["status"] == "completed"
    assert shown["progress_percent"] == 100.0
    assert shown["current_phase"] == "completed"
    assert shown["bytes_read"] == shown["bytes_transferred"] == DISK_BYTES
    assert shown["bytes_new"] == 100
    assert shown["consistency"] == "crash"
    assert shown["transfer_speed_bps"] == DISK_BYTES / 10
    assert shown["verification"] is None
    assert shown["error"] is None
    assert shown["disks"][0]["change_id"] == CHANGE_ID.format(backup_id)


def test_the_type_is_decided_from_the_catalog_with_its_reason(lab: Lab) -> None:
    lab.add_vm(disks=1)
    repository_id = lab.add_repository()
    first = lab.start_backup(repository_id, backup_type="incremental")
    assert first["backup_type"] == "full"
    assert first["type_reason"] == "first backup of this disk in this repository"
    lab.complete(first["backup_id"])

    untracked = lab.start_backup(repository_id)
    assert untracked["backup_type"] == "full"
    assert "no change tracking" in untracked["type_reason"]
    lab.complete(untracked["backup_id"])

    lab.track_changes()
    tracked = lab.start_backup(repository_id)
    assert tracked["backup_type"] == "incremental"
    assert tracked["type_reason"] is None
    shown = lab.api.get(f"/backups/{tracked['backup_id']}").json()
    assert shown["parent_backup_id"] == untracked["backup_id"]
    lab.complete(tracked["backup_id"])

    asked = lab.start_backup(repository_id, backup_type="full")
    assert asked["type_reason"] == "a full read was requested"


def test_progress_of_a_running_backup_is_shown(lab: Lab) -> None:
    lab.add_vm(disks=2)
    accepted = lab.start_backup(lab.add_repository())
    backup_id, job_id = accepted["backup_id"], accepted["job_id"]
    with lab.hub.catalog.write() as session:
        now = lab.clock.now()
        backups.begin_backup(session, backup_id, now=now)
        jobs.begin(session, job_id, now=now)
        jobs.set_phase(session, job_id, "transferring", now=now)
        progress = backups.DiskProgress(
            bytes_total=DISK_BYTES,
            bytes_read=DISK_BYTES // 2,
            bytes_new=1,
            bytes_deduplicated=2,
            rate=1000.0,
        )
        backups.set_disk_progress(session, backup_id, 2000, progress, now=now)
    shown = lab.api.get(f"/backups/{backup_id}").json()
    assert shown["status"] == "running"
    assert shown["current_phase"] == "transferring"
    assert shown["progress_percent"] == 25.0
    assert shown["transfer_speed_bps"] == 1000.0
    assert shown["seconds_left"] == DISK_BYTES / 2 / 1000
    assert shown["bytes_to_read"] == DISK_BYTES
    assert shown["disks"][0]["status"] == "running"
    job = lab.api.get(f"/jobs/{job_id}").json()
    assert job["bytes_done"] == DISK_BYTES // 2
    assert job["subject"]["backup_id"] == backup_id


def test_a_failed_backup_says_why(lab: Lab) -> None:
    lab.add_vm(disks=1)
    repository_id = lab.add_repository()
    accepted = lab.start_backup(repository_id)
    fail(lab, accepted)
    shown = lab.api.get(f"/backups/{accepted['backup_id']}").json()
    assert shown["status"] == "failed"
    assert shown["error"] == {
        "kind": "source-unreachable",
        "message": "the source does not answer",
        "hint": "start it",
    }
    assert lab.api.get("/backups/pgtest1/chain").status_code == 404
    lab.start_backup(repository_id)  # the VM's slot is free again


def fail(lab: Lab, accepted: dict[str, Any]) -> None:
    from sendense.core.errors import Unavailable

    error = Unavailable("the source does not answer", kind="source-unreachable", hint="start it")
    with lab.hub.catalog.write() as session:
        now = lab.clock.now()
        backups.fail_backup(session, accepted["backup_id"], JobStatus.FAILED, error, now=now)
        jobs.finish(session, accepted["job_id"], JobStatus.FAILED, now=now, error=error)


# Lists.


def test_backups_are_listed_newest_first_and_in_pages(lab: Lab) -> None:
    lab.add_vm(disks=1)
    repository_id = lab.add_repository()
    newest_first = [lab.back_up(repository_id, tags={"tier": "gold"}) for _ in range(5)][::-1]
    listed = lab.api.get("/backups").json()
    assert [backup["backup_id"] for backup in listed["backups"]] == newest_first
    for limit, offset in itertools.product(range(1, 7), range(7)):
        for more in ({}, {"tag": "tier=gold"}):
            params: dict[str, str | int] = {"limit": limit, "offset": offset, **more}
            page = lab.api.get("/backups", params=params).json()
            found = [backup["backup_id"] for backup in page["backups"]]
            assert (found, page["total"]) == (newest_first[offset : offset + limit], 5), params


def test_each_filter_leaves_what_it_names(lab: Lab) -> None:
    vm_id = lab.add_vm(disks=1)
    lab.add_vm("other", disks=1, source="second")
    first, second = lab.add_repository(), lab.add_repository("second")
    old = lab.back_up(first, tags={"tier": "gold", "a.b/c": "x"})
    middle = later(lab, -30)
    new = lab.back_up(second, vm_name="other", tags={"tier": "tin"})
    running = lab.start_backup(first)["backup_id"]

    def listed(**params: Any) -> list[str]:
        answer = lab.api.get("/backups", params=params)
        assert answer.status_code == 200, answer.text
        assert answer.json()["total"] == len(answer.json()["backups"])
        return [backup["backup_id"] for backup in answer.json()["backups"]]

    assert listed(vm_name="other") == [new]
    assert listed(vm_id=vm_id) == [running, old]
    assert listed(repository_id=second) == [new]
    assert listed(status="pending") == [running]
    assert listed(backup_type="incremental") == []
    assert listed(tag="tier=gold") == [old]
    assert listed(tag="tier") == [new, old]
    assert listed(tag="a.b/c=x") == [old]
    assert listed(tag="nothing") == []
    assert listed(tag="tier:gold") == [old]
    assert listed(tag="tier:") == []
    assert listed(tag=["tier", "a.b/c:x"]) == [old]
    assert listed(created_before=middle) == [old]
    assert listed(created_after=middle) == [running, new]
    bare_plus = lab.api.get("/backups?created_after=2025-01-01T00:00:00+02:00")
    assert bare_plus.json()["total"] == 3
    assert listed(vm_name="nobody") == []


@pytest.mark.parametrize(
    "params",
    [
        {"limit": "0"},
        {"limit": "1001"},
        {"limit": "many"},
        {"offset": "-1"},
        {"offset": str(2**70)},
        {"status": "gone"},
        {"backup_type": "differential"},
        {"created_after": "yesterday"},
        {"created_after": "1700000000"},
        {"created_after": "6.8e-93"},
        {"created_after": "0001-01-01T00:00:00+14:00"},
        {"tag": '"; drop table'},
        {"tag": "a" * 64},
        {"vm_name": "x" * 256},
        {"unknown": "1"},
    ],
)
def test_a_wrong_filter_is_refused_with_its_name(lab: Lab, params: dict[str, str]) -> None:
    document = check_problem(lab.api.get("/backups", params=params), 422, "fields-invalid")
    [problem] = document["errors"]
    assert problem["field"] == next(iter(params))
    assert "pattern" not in problem["reason"]


# What is checked before anything starts.


def refuse(lab: Lab, status: int, kind: str, **body: Any) -> dict[str, Any]:
    before = lab.count_rows()
    started = list(lab.starter.started)
    wanted = {"vm_name": "pgtest1", **body}
    document = check_problem(lab.api.post("/backups", json=wanted), status, kind)
    assert lab.count_rows() == before
    assert lab.starter.started == started
    return document


def test_an_unknown_vm_is_refused(lab: Lab) -> None:
    repository_id = lab.add_repository()
    refuse(lab, 404, "vm-unknown", repository_id=repository_id)
    refuse(lab, 404, "vm-unknown", vm_name=None, vm_id="vm-x", repository_id=repository_id)


def test_an_ambiguous_name_is_refused_with_the_candidates(lab: Lab) -> None:
    first = lab.add_vm(disks=1)
    lab.add_vm(disks=1, source="second")
    repository_id = lab.add_repository()
    document = refuse(lab, 409, "vm-name-ambiguous", repository_id=repository_id)
    candidates = {one["id"] for one in document["candidates"]}
    assert len(candidates) == 2
    assert first in candidates
    lab.start_backup(repository_id, vm_name=None, vm_id=first)
    check_problem(lab.api.get("/backups/pgtest1/chain"), 409, "vm-name-ambiguous")


def test_an_unknown_disk_is_refused(lab: Lab) -> None:
    lab.add_vm(disks=2)
    repository_id = lab.add_repository()
    document = refuse(lab, 404, "disk-unknown", repository_id=repository_id, disk_id=2)
    assert document["disks"] == ["disk-2000", "disk-2001"]
    refuse(lab, 404, "disk-unknown", repository_id=repository_id, disk_id="disk-2002")


def test_a_disk_without_capacity_is_refused(lab: Lab) -> None:
    from sendense.db.tables import DiskRow

    lab.add_vm(disks=1)
    repository_id = lab.add_repository()
    with lab.hub.catalog.write() as session:
        for disk in session.query(DiskRow):
            disk.capacity_bytes = None
    refuse(lab, 422, "disk-without-capacity", repository_id=repository_id, disk_id=0)
    refuse(lab, 422, "disk-without-capacity", repository_id=repository_id)
    with lab.hub.catalog.write() as session:
        for disk in session.query(DiskRow):
            disk.unsupported_reason = "its image does not exist"
    document = refuse(lab, 422, "disk-without-capacity", repository_id=repository_id, disk_id=0)
    assert "its image does not exist" in document["detail"]
    document = refuse(lab, 422, "vm-without-disks", repository_id=repository_id)
    assert "its image does not exist" in document["detail"]


def test_an_excluded_disk_is_refused_by_name_and_left_out_of_all(lab: Lab) -> None:
    vm_id = lab.add_vm(disks=2)
    repository_id = lab.add_repository()
    lab.api.patch(f"/vms/{vm_id}", json={"excluded_disks": [1]})
    refuse(lab, 409, "disk-excluded", repository_id=repository_id, disk_id=1)
    shown = lab.api.get(f"/backups/{lab.start_backup(repository_id)['backup_id']}").json()
    assert [disk["index"] for disk in shown["disks"]] == [0]
    assert shown["partial"] is False


def test_a_vm_whose_disks_are_all_excluded_is_refused(lab: Lab) -> None:
    vm_id = lab.add_vm(disks=1)
    lab.api.patch(f"/vms/{vm_id}", json={"excluded_disks": [0]})
    refuse(lab, 422, "vm-without-disks", repository_id=lab.add_repository())


def test_a_second_backup_of_a_vm_is_refused_and_names_the_first(lab: Lab) -> None:
    lab.add_vm()
    repository_id = lab.add_repository()
    running = lab.start_backup(repository_id)
    document = refuse(lab, 409, "backup-running", repository_id=repository_id)
    assert document["backup_id"] == running["backup_id"]
    assert document["job_id"] == running["job_id"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"repository_id": None}, "repository_id"),
        ({"repository_id": 7}, "repository_id"),
        ({"vm_name": ""}, "vm_name"),
        ({"vm_name": "x" * 256}, "vm_name"),
        ({"vm_name": "a\u0000b"}, "vm_name"),
        ({"vm_name": " a"}, "vm_name"),
        ({"vm_name": 5}, "vm_name"),
        ({"vm_name": None}, "body"),
        ({"vm_id": "vm-1"}, "body"),
        ({"disk_id": -1}, "disk_id"),
        ({"disk_id": 10_000}, "disk_id"),
        ({"disk_id": True}, "disk_id"),
        ({"disk_id": 1.5}, "disk_id"),
        ({"disk_id": "sda"}, "disk_id"),
        ({"backup_type": "differential"}, "backup_type"),
        ({"backup_type": None}, "backup_type"),
        ({"consistency": "always"}, "consistency"),
        ({"tags": ["a"]}, "tags"),
        ({"tags": {"a": 1}}, "tags.a"),
        ({"tags": {"a": "x" * 256}}, "tags.a"),
        ({"tags": {"": "x"}}, "tags"),
        ({"tags": {"a b": "x"}}, "tags"),
        ({"tags": {str(n): "x" for n in range(65)}}, "tags"),
        ({"priority": 1}, "priority"),
    ],
)
def test_wrong_fields_are_refused_one_by_one(lab: Lab, change: dict[str, Any], field: str) -> None:
    body = {"vm_name": "pgtest1", "repository_id": "repo-local-1", **change}
    document = check_problem(lab.api.post("/backups", json=body), 422, "fields-invalid")
    assert [error["field"] for error in document["errors"]] == [field]
    [reason] = [error["reason"] for error in document["errors"]]
    assert document["detail"] == f"{field}: {reason}"
    for words_of_a_library in ("Input", "String", "pattern", "Dictionary", "validation"):
        assert words_of_a_library not in reason


def test_names_at_their_limits_work(lab: Lab) -> None:
    name = "ü" * 255
    source = lab.add_source({"name": name, "disks": [str(lab.image("limit.raw"))]}, name="n" * 255)
    lab.discover(source)
    tags = {f"k{n}": "v" * 255 for n in range(63)} | {"k" * 63: ""}
    accepted = lab.start_backup(lab.add_repository(), vm_name=name, tags=tags)
    shown = lab.api.get(f"/backups/{accepted['backup_id']}").json()
    assert shown["vm_name"] == name
    assert shown["tags"] == tags


# Chains.


def test_a_chain_tells_where_a_disks_backups_begin_and_end(lab: Lab) -> None:
    vm_id = lab.add_vm(disks=1)
    repository_id = lab.add_repository()
    lab.track_changes()
    full, second, third = (lab.back_up(repository_id) for _ in range(3))
    chain = lab.api.get("/backups/pgtest1/chain").json()
    assert chain["vm_id"] == vm_id
    assert chain["vm_name"] == "pgtest1"
    assert chain["disk_id"] == "disk-2000"
    assert chain["repository_id"] == repository_id
    assert chain["full_backup_id"] == full
    assert chain["latest_backup_id"] == third
    assert [backup["backup_id"] for backup in chain["backups"]] == [full, second, third]
    assert [backup["backup_type"] for backup in chain["backups"]] == [
        "full",
        "incremental",
        "incremental",
    ]
    assert chain["total_backups"] == 3
    assert chain["total_size_bytes"] == 300


def test_several_disks_or_repositories_make_a_list_of_chains(lab: Lab) -> None:
    vm_id = lab.add_vm(disks=2)
    first, second = lab.add_repository(), lab.add_repository("second")
    lab.back_up(first)
    lab.back_up(second, disk_id=0)
    chains = lab.api.get("/backups/pgtest1/chain").json()["chains"]
    assert {(chain["disk_id"], chain["repository_id"]) for chain in chains} == {
        ("disk-2000", first),
        ("disk-2001", first),
        ("disk-2000", second),
    }
    one = lab.api.get(f"/backups/{vm_id}/chain", params={"disk_id": 0, "repository_id": second})
    assert one.json()["total_backups"] == 1
    named = lab.api.get("/backups/pgtest1/chain", params={"disk_id": "disk-2001"}).json()
    assert named["disk_id"] == "disk-2001"


def test_a_vm_without_backups_has_no_chain(lab: Lab) -> None:
    lab.add_vm()
    check_problem(lab.api.get("/backups/pgtest1/chain"), 404, "chain-unknown")
    check_problem(lab.api.get("/backups/nobody/chain"), 404, "vm-unknown")


def test_a_name_with_slashes_finds_its_chain(lab: Lab) -> None:
    name = "folder/ä b/../x"
    source = lab.add_source({"name": name, "disks": [str(lab.image("odd.raw"))]})
    lab.discover(source)
    backup_id = lab.back_up(lab.add_repository(), vm_name=name)
    assert "/" not in backup_id
    chain = lab.api.get("/backups/folder%2F%C3%A4%20b%2F..%2Fx/chain")
    assert chain.json()["full_backup_id"] == backup_id


# Deletion.


def test_a_deleted_backup_is_gone_and_the_chain_follows(lab: Lab) -> None:
    lab.add_vm(disks=1)
    repository_id = lab.add_repository()
    first, second, third = (lab.back_up(repository_id) for _ in range(3))

    answer = lab.api.delete(f"/backups/{first}")
    assert answer.status_code == 200
    assert answer.json()["backup_id"] == first
    check_problem(lab.api.get(f"/backups/{first}"), 404, "backup-unknown")
    check_problem(lab.api.delete(f"/backups/{first}"), 404, "backup-unknown")
    chain = lab.api.get("/backups/pgtest1/chain").json()
    assert chain["full_backup_id"] == second
    assert chain["total_backups"] == 2

    lab.api.delete(f"/backups/{third}")
    assert lab.api.get("/backups/pgtest1/chain").json()["latest_backup_id"] == second
    lab.api.delete(f"/backups/{second}")
    check_problem(lab.api.get("/backups/pgtest1/chain"), 404, "chain-unknown")
    assert lab.api.get("/backups").json() == {"backups": [], "total": 0}
    gone = lab.api.get("/backups", params={"deleted": True}).json()
    assert [backup["backup_id"] for backup in gone["backups"]] == [third, second, first]
    assert gone["backups"][0]["deleted_at"] is not None


def test_deleting_reaches_the_repository_itself(lab: Lab) -> None:
    lab.add_vm(disks=1)
    repository_id = lab.add_repository()
    backup_id = lab.back_up(repository_id)
    lab.api.delete(f"/backups/{backup_id}")
    storage = LocalStorage(lab.data_dir / "backups" / "main")
    with lab.hub.catalog.read() as session:
        root_key = root_keys.find(lab.hub, get_repository(session, repository_id))
    opened = Repository.open(storage, root_key=root_key, clock=lab.clock, ids=lab.hub.ids)
    with pytest.raises(NotFound):
        opened.get_backup(backup_id)
    opened.close()


def test_a_backup_that_is_being_made_is_not_deleted(lab: Lab) -> None:
    lab.add_vm(disks=1)
    accepted = lab.start_backup(lab.add_repository())
    document = check_problem(
        lab.api.delete(f"/backups/{accepted['backup_id']}"), 409, "backup-running"
    )
    assert document["job_id"] == accepted["job_id"]
    assert lab.api.get(f"/backups/{accepted['backup_id']}").status_code == 200


def test_a_repository_out_of_reach_keeps_its_backups(lab: Lab) -> None:
    lab.add_vm(disks=1)
    backup_id = lab.back_up(lab.add_repository())
    folder = lab.data_dir / "backups" / "main"
    away = folder.rename(folder.with_name("away"))
    check_problem(lab.api.delete(f"/backups/{backup_id}"), 503, "repository-missing")
    assert lab.api.get(f"/backups/{backup_id}").status_code == 200
    away.rename(folder)
    assert lab.api.delete(f"/backups/{backup_id}").status_code == 200


def test_a_failed_backup_can_be_deleted_without_its_repository(lab: Lab) -> None:
    lab.add_vm(disks=1)
    accepted = lab.start_backup(lab.add_repository())
    fail(lab, accepted)
    folder = lab.data_dir / "backups" / "main"
    folder.rename(folder.with_name("away"))
    assert lab.api.delete(f"/backups/{accepted['backup_id']}").status_code == 200
