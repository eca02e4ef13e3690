"""The hub is lost with its database and data directory; the command line makes a new one."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

SECONDS_MAX = 120.0
SENDENSE = [sys.executable, "-m", "sendense.cli.main"]
MIB = 1 << 20


def _environment(**more: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("SENDENSE_")}
    return {**own, "SENDENSE_LEASE_SECONDS": "2", **more}


def _run(*arguments: str, status: int = 0, **environment: str) -> Any:
    done = subprocess.run(
        [*SENDENSE, *arguments, "--json"],
        capture_output=True,
        text=True,
        env=_environment(**environment),
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == status, (arguments, done.stdout, done.stderr)
    return json.loads(done.stdout) if done.stdout.strip() else done.stderr


@contextlib.contextmanager
def _serve(data: Path, shared: Path) -> Iterator[str]:
    """Run a server; at the end it dies without a word, with its worker."""
    command = [*SENDENSE, "serve", "--data-dir", str(data), "--port", "0", "--no-auth"]
    command += ["--allow-dir", str(shared)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=_environment()
    ) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert "listens on" in line, line
            yield line.split()[-1]
        finally:
            process.kill()
            for one in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    if one.environ().get("SENDENSE_DATA_DIR") == str(data):
                        one.kill()


def _until(condition: Callable[[], bool], tell: Callable[[], object]) -> None:
    waiting = threading.Event()
    for _ in range(int(SECONDS_MAX / 0.2)):
        if condition():
            return
        waiting.wait(0.2)
    raise AssertionError(tell())


def _back_up(url: str) -> str:
    made = _run("backup", "start", "web", "--repository", "main", "--url", url)
    assert made["status"] == "completed", made
    return str(made["backup_id"])


@dataclass(frozen=True)
class Lost:
    """A hub that was lost, all but what its repository and somebody's drawer hold.

    Attributes:
        told: its recovery key, as it was shown. added: its repository, as it was shown.
        content: of the disk in the first of its two backups, which is held since the export.
    """

    told: dict[str, Any]
    added: dict[str, Any]
    first: str
    second: str
    content: bytes


def _lose(shared: Path, data: Path) -> Lost:
    image = shared / "web.raw"
    image.write_bytes(os.urandom(3 * MIB))
    vm = [{"name": "web", "disks": [str(image)]}]
    with _serve(data, shared) as server:
        url = server.removesuffix("/api/v1")
        api = httpx.Client(base_url=server, timeout=SECONDS_MAX)
        body = {"name": "lab", "type": "image", "config": {"vms": vm}}
        assert api.post("/sources", json=body).status_code == 201
        _run("source", "discover", "lab", "--url", url)
        place = shared / "main"
        added = _run("repository", "add", "main", "--path", str(place), "--url", url)
        first = _back_up(url)
        content = image.read_bytes()
        told = _run("hub", "recovery-key", "--data-dir", str(data))
        exported = _run("hub", "export", "--url", url)["jobs"][0]
        assert exported["result"]["warnings"] == []
        image.write_bytes(os.urandom(MIB) + content[MIB:])
        second = _back_up(url)
        held = _run("backup", "hold", first, "--why", "case 7", "--url", url)
        assert held["hold"]["why"] == "case 7"
        api.close()
    shutil.rmtree(data)
    return Lost(told, added, first, second, content)


def test_a_hub_that_is_lost_is_made_anew_from_a_repository(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    lost = _lose(shared, tmp_path / "data")
    place, told, first = shared / "main", lost.told, lost.first
    key = tmp_path / "hub-key.txt"
    key.write_text(told["recovery_key"] + "\n")
    given = ("--recovery-key-file", str(key))
    new = tmp_path / "new"
    wrong = {"SENDENSE_HUB_RECOVERY_KEY": lost.added["recovery_key"]}
    assert _run("hub", "list", str(place), **wrong) == {
        "exports": [], "total": 0, "of_other_keys": 1,
    }  # fmt: skip
    _run("hub", "restore", str(place), "--data-dir", str(new), status=3, **wrong)
    listed = _run("hub", "list", str(place), *given)["exports"]
    assert [one["hub"] for one in listed] == [told["hub"]]
    done = _run("hub", "restore", str(place), *given, "--data-dir", str(new))
    assert done["repositories"] == ["main"]
    assert json.loads(Path(done["settings_file"]).read_text())["lease_seconds"] == 2.0
    _run("hub", "restore", str(place), *given, "--data-dir", str(new), status=4)

    assert not [path for path in (new, *new.rglob("*")) if path.stat().st_mode & 0o077]
    with _serve(new, shared) as server:
        url = server.removesuffix("/api/v1")

        def jobs() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = _run("job", "list", "--url", url)["jobs"]
            return found

        _until(lambda: all(one["status"] not in {"pending", "running"} for one in jobs()), jobs)
        backups = _run("backup", "list", "--url", url)["backups"]
        assert [one["backup_id"] for one in backups] == [lost.second, first]
        assert backups[1]["hold"]["why"] == "case 7"
        assert backups[0]["imported_at"] is not None
        _run("backup", "delete", first, "--yes", "--url", url, status=4)
        target = new / "restores" / "web.raw"
        _run("restore", "start", first, "--to", str(target), "--url", url)
        assert target.read_bytes() == lost.content
        third = _back_up(url)
        assert len({first, lost.second, third}) == 3
        again = _run("hub", "recovery-key", "--data-dir", str(new))
        assert again == told
