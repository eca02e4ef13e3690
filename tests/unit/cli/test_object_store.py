"""Commands on the URL of a repository in an object store, with no server of ours."""

import json
from pathlib import Path

import pytest

from sendense.core.clock import SystemClock
from sendense.core.ids import SeededIds
from sendense.repository import recovery
from sendense.repository.repository import Repository
from sendense.repository.storage import probe
from sendense.repository.storage.probe import Abilities
from tests.s3.fixtures import open_impatient
from tests.unit.cli.conftest import Hub, Run
from tests.unit.cli.test_standalone import DISK, _back_up


@pytest.fixture(autouse=True)
def short_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "ROUNDS", 3)  # the whole trial: tests/system/test_object_store.py


def test_a_repository_is_made_and_used_by_its_url(run: Run, s3_url: str, tmp_path: Path) -> None:
    made = run("repository", "create", s3_url, "--json")
    assert made.code == 0, made.err
    told = json.loads(made.out)
    assert told["path"] == s3_url
    key = tmp_path / "key.txt"
    key.write_text(told["recovery_key"])
    key.chmod(0o600)
    with Repository.open(
        open_impatient(s3_url),
        root_key=recovery.parse(told["recovery_key"]),
        clock=SystemClock(),
        ids=SeededIds(1),
    ) as repository:
        _back_up(repository, "backup-1", DISK)
    opened = ["--recovery-key-file", str(key)]
    assert "backup-1" in run("repository", "list", s3_url, *opened).out
    assert "is whole: 1 backup" in run("repository", "check", s3_url, *opened, "--read-data").out
    assert run("repository", "verify", s3_url, *opened, "--level", "v4").code == 0
    stats = json.loads(run("repository", "stats", s3_url, *opened, "--json").out)
    assert (stats["backup_count"], stats["capacity"]) == (1, None)
    target = tmp_path / "disk.raw"
    arguments = ["--backup", "backup-1", "--to", str(target)]
    assert run("repository", "restore", s3_url, *arguments, *opened).code == 0
    assert target.read_bytes() == DISK
    assert run("repository", "gc", s3_url, *opened, "--now", "--yes").code == 0
    assert run("repository", "key", "list", s3_url, "--json").code == 0
    assert not list(tmp_path.glob("s3:*"))


def test_the_trial_is_told(run: Run, s3_url: str) -> None:
    result = run("repository", "create", s3_url)
    assert result.code == 0
    assert "3 times 16 writers at once, 0 failures" in result.err


def test_a_store_that_fails_its_trial_is_refused_unless_it_is_accepted(
    run: Run, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = Abilities(5, 16, ("two writers won",), 0.1)
    monkeypatch.setattr(probe, "probe", lambda *_: failed)
    refused = run("repository", "create", s3_url)
    assert refused.code == 4
    assert "two writers won" in refused.err
    assert open_impatient(s3_url).list_top() == []
    accepted = run("repository", "create", s3_url, "--accept-unfit")
    assert accepted.code == 0
    assert "warning: two writers won" in accepted.err


def test_a_place_where_something_lies_is_left_alone(run: Run, s3_url: str) -> None:
    storage = open_impatient(s3_url)
    storage.put_if_absent("holiday.jpg", b"x")
    assert run("repository", "create", s3_url).code == 4
    assert storage.list_top() == ["holiday.jpg"]


def test_a_url_that_names_no_place_is_refused(run: Run) -> None:
    result = run("repository", "check", "ftp://example.com/x")
    assert result.code == 2
    assert "s3://" in result.err


def test_a_url_without_a_repository_is_not_found(run: Run, s3_url: str) -> None:
    result = run("repository", "check", s3_url)
    assert result.code == 3
    assert s3_url in result.err


@pytest.mark.parametrize(("scheme", "kind"), [("s3", "s3"), ("az", "azure"), ("gs", "gcs")])
def test_a_store_is_registered_with_a_server(run: Run, hub: Hub, scheme: str, kind: str) -> None:
    url = f"{scheme}://backups/main"
    added: dict[str, object] = {"id": "r1", "warnings": [], "recovery_key": None}
    hub.answer("POST", "/repositories", added, status=201)
    assert run("repository", "add", "offsite", "--store", url, "--accept-unfit").code == 0
    assert hub.requests[-1].body == {
        "name": "offsite",
        "type": kind,
        "config": {"url": url, "accept_unfit": True, "encryption": True},
    }
    tried = {"usable": True, "exists": False, "detail": "nothing lies there", "free_bytes": None}
    hub.answer("POST", "/repositories/test", tried)
    assert "usable: nothing lies there" in run("repository", "test", "--store", url).out
    assert hub.requests[-1].body == {"type": kind, "config": {"url": url}}
    hub.answer("POST", "/repositories/r1/import", {"job_id": "j1"}, status=202)
    result = {"backups_added": 1, "backups_known": 0}
    job = {"job_id": "j1", "kind": "import", "status": "completed", "result": result, "log": []}
    hub.answer("GET", "/jobs/j1", job)
    assert run("repository", "import", url, "--name", "offsite").code == 0
    sent = hub.sent("POST", "/repositories")[-1].body
    assert sent == {"name": "offsite", "type": kind, "config": {"url": url}}


@pytest.mark.parametrize("given", [[], ["--path", "/b", "--store", "s3://backups"]])
def test_a_repository_lies_at_one_place(run: Run, given: list[str]) -> None:
    result = run("repository", "add", "r", *given)
    assert result.code == 2
    assert "--path, or --store" in result.err


@pytest.mark.parametrize(("fit", "word"), [(True, "passed"), (False, "FAILED")])
def test_a_stores_place_and_trial_are_shown(run: Run, hub: Hub, *, fit: bool, word: str) -> None:
    trial = {"fit": fit, "rounds": 50, "writers": 16, "failures": [], "seconds": 1.0}
    entry = {
        "id": "r1", "name": "offsite", "type": "s3", "enabled": True, "trouble": None,
        "config": {"url": "s3://backups/main", "trial": trial}, "backup_count": 0,
        "capacity_bytes": None, "free_bytes": None, "measured_at": None, "warnings": [],
        "chunk_size": 524288, "encrypted": True, "uuid": "u", "created_at": None,
    }  # fmt: skip
    hub.answer("GET", "/repositories", {"repositories": [entry], "total": 1})
    hub.answer("GET", "/repositories/r1", entry)
    assert "s3://backups/main" in run("repository", "list").out
    shown = run("repository", "show", "r1").out
    assert "s3://backups/main" in shown
    assert f"50 times 16 writers at once: {word}" in shown
