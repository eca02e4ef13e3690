import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import Hub, Run

VM = {"id": "vm-1", "name": "web 1", "source_id": "s-1", "power_state": "on", "disk_count": 2}
SOURCES = {"sources": [{"id": "s-1", "name": "lab", "type": "image", "config": {}}], "total": 1}
REPOSITORIES = {"repositories": [{"id": "repo-1", "name": "main", "config": {}}], "total": 1}
BACKUP = {
    "backup_id": "b-1",
    "job_id": "job-1",
    "vm_id": "vm-1",
    "vm_name": "web 1",
    "backup_type": "full",
    "status": "completed",
    "created_at": "2026-01-01T00:00:00Z",
    "started_at": "2026-01-01T00:00:00Z",
    "completed_at": "2026-01-01T00:01:01Z",
    "bytes_read": 1024,
    "bytes_new": 512,
    "disks": [{"disk_id": "disk-2000", "index": 0, "capacity_bytes": 1024, "status": "completed"}],
}


@pytest.fixture(autouse=True)
def catalog(hub: Hub) -> None:
    hub.answer("GET", "/vms", {"vms": [VM], "total": 1})
    hub.answer("GET", "/sources", SOURCES)
    hub.answer("GET", "/repositories", REPOSITORIES)


def _completed(hub: Hub, **subject: str) -> None:
    body = {"job_id": "job-1", "kind": "x", "status": "completed", "subject": subject}
    hub.answer("GET", "/jobs/job-1", body)


def test_a_backup_is_started_by_names_and_waited_for(run: Run, hub: Hub) -> None:
    hub.answer("POST", "/backups", {"backup_id": "b-1", "job_id": "job-1"}, status=202)
    _completed(hub, backup_id="b-1")
    hub.answer("GET", "/backups/b-1", BACKUP)
    result = run("backup", "start", "web 1", "-r", "main", "--disk", "0", "--tag", "a=b=c")
    assert result.code == 0, result.err
    assert result.out == "backup b-1 completed: full, read 1.0 KiB, new 512 B, 1 min 01 s\n"
    [request] = hub.sent("POST", "/backups")
    assert request.body == {
        "vm_id": "vm-1",
        "repository_id": "repo-1",
        "backup_type": "auto",
        "disk_id": 0,
        "tags": {"a": "b=c"},
    }
    assert request.headers["idempotency-key"]


def test_a_broken_connection_repeats_a_start_with_the_same_key(run: Run, hub: Hub) -> None:
    hub.hang_up("POST", "/backups")
    hub.answer("POST", "/backups", {"backup_id": "b-1", "job_id": "job-1"}, status=202)
    result = run("backup", "start", "web 1", "-r", "main", "--no-wait", "--json")
    assert result.code == 0
    assert json.loads(result.out) == {"backup_id": "b-1", "job_id": "job-1"}
    keys = [request.headers["idempotency-key"] for request in hub.sent("POST", "/backups")]
    assert len(keys) == 2
    assert keys[0] == keys[1]


def test_a_start_is_given_up_after_three_broken_connections(run: Run, hub: Hub) -> None:
    hub.hang_up("POST", "/backups")
    assert run("backup", "start", "web 1", "-r", "main").code == 6
    assert len(hub.sent("POST", "/backups")) == 3


@pytest.mark.parametrize("tag", ["a", "=b", ""])
def test_a_tag_without_key_or_value_is_refused_before_anything_starts(
    run: Run, hub: Hub, tag: str
) -> None:
    result = run("backup", "start", "web 1", "-r", "main", "--tag", tag)
    assert result.code == 2
    assert not hub.sent("POST", "/backups")


def test_an_unknown_vm_is_not_found_with_a_hint(run: Run) -> None:
    result = run("backup", "start", "web 2", "-r", "main")
    assert result.code == 3
    assert result.err.splitlines() == [
        "error: VM web 2 is not known to the server",
        "hint: `sendense vm list` shows what there is",
    ]


def test_an_ambiguous_name_is_a_conflict_that_lists_the_candidates(run: Run, hub: Hub) -> None:
    twins = [{**VM, "id": "vm-1", "path": "/a"}, {**VM, "id": "vm-2", "path": "/b"}]
    hub._replies.clear()
    hub.answer("GET", "/vms", {"vms": twins, "total": 2})
    result = run("vm", "show", "web 1")
    assert result.code == 4
    assert "  - vm-1 (/a)" in result.err
    assert "  - vm-2 (/b)" in result.err


def test_names_are_looked_up_beyond_the_first_page(run: Run, hub: Hub) -> None:
    hub._replies.clear()
    hub.answer("GET", "/vms", {"vms": [VM], "total": 2})
    hub.answer("GET", "/vms", {"vms": [{**VM, "id": "vm-9", "name": "last"}], "total": 2})
    hub.answer("GET", "/vms/vm-9", {**VM, "id": "vm-9"})
    assert run("vm", "show", "last").code == 0


def test_a_vms_name_cannot_drive_the_terminal(run: Run, hub: Hub) -> None:
    hub._replies.clear()
    hub.answer("GET", "/vms", {"vms": [{**VM, "name": "x\x1b]0;pwned\x07\n[red]y"}], "total": 1})
    result = run("vm", "list")
    assert "\x1b" not in result.out
    assert "x\\x1b]0;pwned\\x07\\n[red]y" in result.out


def test_a_table_in_a_pipe_is_whole_lines_without_colours(run: Run, hub: Hub) -> None:
    long_id = "backup-" + "x" * 200
    listed = [{**BACKUP, "backup_id": long_id}, {**BACKUP, "partial": True}]
    hub.answer("GET", "/backups", {"backups": listed, "total": 7})
    result = run("backup", "list")
    lines = result.out.splitlines()
    assert len(lines) == 3
    assert lines[0].split() == ["CREATED", "(UTC)", "VM", "TYPE", "STATUS", "READ", "NEW", "BACKUP"]
    assert long_id in lines[1]
    assert "partial" in lines[2]
    assert "2 of 7 shown" in result.err
    assert not any(line.endswith(" ") for line in lines)


def test_filters_are_sent_as_the_api_names_them(run: Run, hub: Hub) -> None:
    hub.answer("GET", "/backups", {"backups": [], "total": 0})
    arguments = "--vm|web 1|-r|main|--type|full|--status|failed|--tag|a=b|--limit|5|--offset|2"
    result = run("backup", "list", *arguments.split("|"))
    assert (result.code, result.out) == (0, "")
    assert hub.sent("GET", "/backups")[0].query == {
        "vm_id": "vm-1",
        "repository_id": "repo-1",
        "backup_type": "full",
        "status": "failed",
        "tag": "a=b",
        "limit": "5",
        "offset": "2",
    }


def test_deleting_needs_a_person_or_yes(run: Run, hub: Hub) -> None:
    hub.answer("GET", "/backups/b-1", BACKUP)
    hub.answer("DELETE", "/backups/b-1", {"backup_id": "b-1"})
    refused = run("backup", "delete", "b-1")
    assert refused.code == 2
    assert "--yes" in refused.err
    assert not hub.sent("DELETE", "/backups/b-1")
    assert run("backup", "delete", "b-1", "--yes").out == "backup b-1 deleted\n"
    assert len(hub.sent("DELETE", "/backups/b-1")) == 1


def test_an_empty_answer_to_a_delete_is_fine(run: Run, hub: Hub) -> None:
    hub.answer("DELETE", "/sources/s-1", "", status=204)
    result = run("source", "remove", "lab", "--yes", "--json")
    assert (result.code, result.out) == (0, "")


def test_chains_of_several_disks_are_shown_one_after_the_other(run: Run, hub: Hub) -> None:
    chain = {
        "chain_id": "c",
        "vm_name": "web 1",
        "disk_id": "disk-2000",
        "repository_id": "repo-1",
        "full_backup_id": "b-1",
        "latest_backup_id": "b-1",
        "backups": [BACKUP],
        "total_backups": 1,
        "total_size_bytes": 1024,
    }
    chains = [chain, {**chain, "disk_id": "disk-2001"}]
    hub.answer("GET", "/backups/vm-1/chain", {"chains": chains})
    result = run("backup", "chain", "web 1")
    assert result.code == 0, result.err
    assert "web 1 disk-2000 in repo-1: 1 backup, 1.0 KiB" in result.out
    assert "web 1 disk-2001 in repo-1: 1 backup, 1.0 KiB" in result.out
    assert "base, latest" in result.out


def test_a_restore_sends_an_absolute_path(run: Run, hub: Hub) -> None:
    hub.answer("POST", "/restores", {"restore_id": "r-1", "job_id": "job-1"}, status=202)
    _completed(hub, restore_id="r-1")
    hub.answer("GET", "/restores/r-1", {"restore_id": "r-1", "status": "completed"})
    result = run("restore", "start", "b-1", "--disk", "1", "--to", "out.qcow2", "--format", "qcow2")
    assert result.code == 0, result.err
    assert hub.sent("POST", "/restores")[0].body == {
        "backup_id": "b-1",
        "disk_id": 1,
        "target": {"type": "file", "path": str(Path("out.qcow2").absolute()), "format": "qcow2"},
        "overwrite": False,
    }
    assert result.out == f"restore r-1 completed: {Path('out.qcow2').absolute()}\n"


@pytest.mark.parametrize(
    ("kind", "value", "vm"),
    [
        ("image", "a=/x,/y", {"name": "a", "disks": ["/x", "/y"]}),
        ("qemu", "a=/q", {"name": "a", "qmp": "/q", "agent": None}),
        ("qemu", "a=/q,/g", {"name": "a", "qmp": "/q", "agent": "/g"}),
    ],
)
def test_a_source_is_described_on_the_command_line(
    run: Run, hub: Hub, kind: str, value: str, vm: dict[str, Any]
) -> None:
    hub.answer("POST", "/sources", {"id": "s-9"}, status=201)
    result = run("source", "add", "n", "--type", kind, "--vm", value)
    assert result.code == 0, result.err
    body = {"name": "n", "type": kind, "config": {"vms": [vm]}}
    assert hub.sent("POST", "/sources")[0].body == body


@pytest.mark.parametrize("value", ["a", "=x", "a=", "a=x,", "a=1,2,3"])
def test_a_vm_that_cannot_be_meant_is_refused(run: Run, value: str) -> None:
    assert run("source", "add", "n", "--type", "qemu", "--vm", value).code == 2


@pytest.mark.parametrize("content", ["", "[]", "{", "\xff"])
def test_a_configuration_file_that_is_no_json_object_is_refused(
    run: Run, tmp_path: Path, content: str
) -> None:
    file = tmp_path / "c.json"
    file.write_bytes(content.encode("latin-1"))
    result = run("source", "add", "n", "--type", "vsphere", "--config", str(file))
    assert result.code == 2
    assert "c.json" in result.err


def test_a_configuration_is_given_once(run: Run, tmp_path: Path) -> None:
    assert run("source", "add", "n", "--type", "image").code == 2
    file = tmp_path / "c.json"
    file.write_text("{}")
    both = run("source", "add", "n", "--type", "image", "--vm", "a=/b", "--config", str(file))
    assert both.code == 2
    assert run("source", "add", "n", "--type", "image", "--config", str(tmp_path)).code == 2


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_an_id_that_would_change_the_path_is_never_sent(run: Run, hub: Hub, name: str) -> None:
    assert run("backup", "delete", name, "--yes").code == 2
    assert not hub.requests


def test_an_id_with_a_slash_stays_one_part_of_the_path(run: Run, hub: Hub) -> None:
    assert run("job", "show", "../backups?x").code == 3
    assert hub.requests[0].path == "/jobs/..%2Fbackups%3Fx"


def test_a_path_and_a_name_are_not_taken_for_each_other(run: Run) -> None:
    assert run("repository", "show", "./main").code == 3
    assert run("repository", "stats", "main").code == 2


def test_an_id_wins_over_a_name_and_asks_for_no_list(run: Run, hub: Hub) -> None:
    hub.answer("GET", "/vms/vm-7", {**VM, "id": "vm-7", "name": "by id"})
    assert "by id" in run("vm", "show", "vm-7").out
    assert not hub.sent("GET", "/vms")


def test_a_name_that_is_no_id_is_never_tried_as_one(run: Run, hub: Hub) -> None:
    assert run("vm", "show", "a/../b").code == 3
    assert [request.path for request in hub.requests] == ["/vms"]
    assert hub.requests[0].query["name"] == "a/../b"


@pytest.mark.parametrize("clean", [True, False])
def test_a_check_by_name_ends_with_7_where_the_repository_is_damaged(
    run: Run, hub: Hub, *, clean: bool
) -> None:
    problem = {"severity": "error", "kind": "pack-missing", "message": "object p is missing"}
    report = {
        "clean": clean,
        "problems": [] if clean else [problem],
        "error_count": 0 if clean else 1,
        "backup_count": 3,
    }
    hub.answer("POST", "/repositories/repo-1/check", {"job_id": "job-1"}, status=202)
    status = "completed" if clean else "failed"
    job = {"job_id": "job-1", "kind": "check", "status": status, "result": report}
    hub.answer("GET", "/jobs/job-1", job)
    result = run("repository", "check", "main", "--read-data")
    assert hub.sent("POST", "/repositories/repo-1/check")[0].body == {"read_data": True}
    if clean:
        assert (result.code, result.out) == (0, "repository main is whole: 3 backups\n")
    else:
        assert result.code == 7
        assert result.out == "error: pack-missing: object p is missing\n"
        assert "repository main is damaged: 1 error" in result.err


def test_a_check_that_could_not_be_made_is_a_failed_job(run: Run, hub: Hub) -> None:
    hub.answer("POST", "/repositories/repo-1/check", {"job_id": "job-1"}, status=202)
    error = {"kind": "repository-missing", "message": "there is no folder", "hint": "mount it"}
    job = {"job_id": "job-1", "kind": "check", "status": "failed", "result": None, "error": error}
    hub.answer("GET", "/jobs/job-1", job)
    result = run("repository", "check", "main")
    assert result.code == 1
    assert "check failed: there is no folder" in result.err


def test_a_job_that_nobody_may_take_says_why_it_waits(run: Run, hub: Hub) -> None:
    reason = "no worker with site=berlin is alive"
    job = {"job_id": "job-1", "kind": "backup", "status": "pending", "waiting_reason": reason}
    hub.answer("GET", "/jobs", {"jobs": [job], "total": 1})
    hub.answer("GET", "/jobs/job-1", job)
    assert f"job job-1 waits: {reason}" in run("job", "list").err
    assert reason in run("job", "show", "job-1").out


def test_labels_may_be_required_of_whoever_works_on_a_place(run: Run, hub: Hub) -> None:
    added = {"id": "r1", "warnings": ["a word"], "recovery_key": "SENDENSE-1-ABCD"}
    hub.answer("POST", "/repositories", added, status=201)
    hub.answer("POST", "/sources", {"id": "s1"}, status=201)
    required = ("--require", "host=nas1", "--require", "site=berlin")
    assert run("repository", "add", "r", "--path", "/b", *required).code == 0
    assert run("source", "add", "s", "--type", "image", "--vm", "a=/b", *required).code == 0
    for request in hub.requests:
        assert request.body["required_labels"] == {"host": "nas1", "site": "berlin"}
    assert run("repository", "add", "r", "--path", "/b").code == 0
    assert "required_labels" not in hub.requests[-1].body
    refused = run("repository", "add", "r", "--path", "/b", "--require", "nas1")
    assert refused.code == 2
    assert "--require nas1 is not KEY=VALUE" in refused.err
