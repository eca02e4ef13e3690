import json
import stat
import tarfile
from pathlib import Path

import pytest

from sendense.cli import config_file
from tests.unit.cli.conftest import Hub, Run

SECRETS = ("hunter2", "t0ken-of-mine", "p%40ss", "p@ss", "sealed-thing")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with secrets in every place that the product reads."""
    data_dir = tmp_path / "data"
    data_dir.mkdir(mode=0o700)
    (data_dir / "catalog.sqlite").write_bytes(b"x" * 10)
    config = tmp_path / "sendense.toml"
    config.write_text(f'database_url = "postgresql://s:hunter2@db/x"\ndata_dir = "{data_dir}"\n')
    config.chmod(0o600)
    monkeypatch.setenv(config_file.VARIABLE, str(config))
    monkeypatch.setenv("SENDENSE_ENGINE_URL", "postgresql://s:p%40ss@db/y")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _answers(hub: Hub) -> None:
    hub.answer("GET", "/health", {"status": "ok", "version": "9.9.9"})
    hub.answer("GET", "/workers", {"workers": [], "total": 0})
    failed = {"job_id": "job-1", "status": "failed"}
    hub.answer("GET", "/jobs", {"jobs": [failed, {"job_id": "job-2", "status": "completed"}]})
    error = "cannot log in with hunter2 at postgresql://s:p@ss@db; password: p@ss"
    hub.answer("GET", "/jobs/job-1", {**failed, "error": {"message": error}})
    hub.answer("GET", "/repositories", {"repositories": [{"name": "main"}], "total": 1})
    source = {"id": "s1", "name": "vc", "type": "vsphere", "config": {"password": "sealed-thing"}}
    hub.answer("GET", "/sources", {"sources": [source], "total": 1})
    hub.answer("GET", "/metrics", "sendense_catalog_up 1.0\n")


def _read(path: Path) -> dict[str, str]:
    with tarfile.open(path) as tar:
        members = {one.name.partition("/")[2]: tar.extractfile(one) for one in tar}
        return {name: file.read().decode() for name, file in members.items() if file is not None}


def test_it_holds_what_helps_and_no_secret(
    run: Run, hub: Hub, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answers(hub)
    monkeypatch.setenv("SENDENSE_TOKEN", "t0ken-of-mine")
    result = run("support-bundle", "--output", "b.tar.gz", "--json")
    assert result.code == 0, result.err
    told = json.loads(result.out)
    found = _read(place / "b.tar.gz")
    assert told["path"] == "b.tar.gz"
    assert set(found) | {"journal.txt"} == {
        *("about.json", "settings.json", "doctor.json", "data-dir.json", "health.json"),
        *("metrics.txt", "workers.json", "jobs.json", "repositories.json", "sources.json"),
        *("journal.txt", "left-out.json"),
    }
    for name, text in found.items():
        for secret in SECRETS:
            assert secret not in text, f"{secret} is in {name}"
    assert json.loads(found["settings.json"])["database_url"]["value"] == "postgresql://s:***@db/x"
    assert "cannot log in with ***" in found["jobs.json"]
    assert json.loads(found["sources.json"]) == [{"id": "s1", "name": "vc", "type": "vsphere"}]
    assert "SENDENSE_TOKEN" in json.loads(found["about.json"])["variables"]
    assert json.loads(found["data-dir.json"])["entries"]["catalog.sqlite"]["size_bytes"] == 10
    assert found["metrics.txt"] == "sendense_catalog_up 1.0\n"


@pytest.mark.parametrize(
    ("url", "secret"),
    [
        ("postgresql://s:p[ssw0rd@db/y", "p[ssw0rd"),  # no URL to the standard library
        ("postgresql://s:p/ssw0rd@db/y", "p/ssw0rd"),
        ("postgresql://db/y?user=s&password=p%20ssw0rd", "p ssw0rd"),
        ('postgresql://s:pä"ssw0rd@db/y', 'pä"ssw0rd'),
    ],
)
def test_no_password_that_a_driver_repeats_alone_is_in_it(
    run: Run, hub: Hub, place: Path, monkeypatch: pytest.MonkeyPatch, url: str, secret: str
) -> None:
    hub.answer("GET", "/workers", {"workers": [], "total": 0, "error": f"refused for {secret}"})
    _answers(hub)
    monkeypatch.setenv("SENDENSE_ENGINE_URL", url)
    result = run("support-bundle", "--output", "b.tar.gz")
    assert result.code == 0, result.err
    told = json.loads(_read(place / "b.tar.gz")["workers.json"])
    assert told["error"] == "refused for ***"


def test_only_its_owner_may_read_it_and_it_replaces_nothing(
    run: Run, hub: Hub, place: Path
) -> None:
    _answers(hub)
    assert run("support-bundle", "--output", "b.tar.gz").code == 0
    assert stat.S_IMODE((place / "b.tar.gz").stat().st_mode) == 0o600
    again = run("support-bundle", "--output", "b.tar.gz")
    assert again.code == 4
    assert "exists" in again.err
    nowhere = run("support-bundle", "--output", "no/such/folder/b.tar.gz")
    assert nowhere.code == 5


def test_without_a_server_it_says_what_is_missing(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENDENSE_URL", "http://127.0.0.1:1")
    result = run("support-bundle", "--json")
    assert result.code == 0
    told = json.loads(result.out)
    found = _read(place / told["path"])
    left = json.loads(found["left-out.json"])
    assert {"health.json", "metrics.txt", "jobs.json", "sources.json"} <= set(left)
    assert "cannot reach the server" in left["health.json"]
    assert "settings.json" in found


def test_a_server_that_is_not_well_is_shown_as_it_is(run: Run, hub: Hub, place: Path) -> None:
    hub.refuse("GET", "/health", 503, detail="no worker is alive")
    hub.refuse("GET", "/metrics", 500, detail="broken")
    result = run("support-bundle", "--output", "b.tar.gz")
    assert result.code == 0
    found = _read(place / "b.tar.gz")
    assert json.loads(found["health.json"])["detail"] == "no worker is alive"
    assert "metrics.txt" in json.loads(found["left-out.json"])
    assert "left out metrics.txt" in result.err


def test_wrong_settings_do_not_keep_it_from_working(
    run: Run, hub: Hub, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answers(hub)
    monkeypatch.setenv("SENDENSE_PORT", "many")
    assert run("support-bundle", "--output", "b.tar.gz").code == 0
    assert "port" in json.loads(_read(place / "b.tar.gz")["left-out.json"])["settings.json"]


def test_the_journal_is_read_where_there_is_one(
    run: Run, hub: Hub, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answers(hub)
    programs = place / "bin"
    programs.mkdir()
    journalctl = programs / "journalctl"
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    journalctl.write_text("#!/bin/sh\necho 'sendense[7]: password=hunter2'\n")
    journalctl.chmod(0o755)
    assert run("support-bundle", "--output", "a.tar.gz").code == 0
    assert _read(place / "a.tar.gz")["journal.txt"] == "sendense[7]: password=***\n"
    journalctl.write_text("#!/bin/sh\necho 'no permission' >&2; exit 1\n")
    assert run("support-bundle", "--output", "b.tar.gz").code == 0
    left = json.loads(_read(place / "b.tar.gz")["left-out.json"])
    assert "no permission" in left["journal.txt"]
