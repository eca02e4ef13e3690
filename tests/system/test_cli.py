"""The command line against a real server: the whole way of a backup, and what goes wrong on it."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from sendense.cli import main

START_SECONDS_MAX = 60.0  # migrations and a worker on a busy machine
STOP_SECONDS_MAX = 30.0
COMMAND_SECONDS_MAX = 120.0

MIB = 1024 * 1024
PROGRAM = [sys.executable, "-m", "sendense.cli.main"]


@dataclass
class Server:
    """A running `sendense serve` and the folder its sources and restores lie in."""

    url: str
    folder: Path

    def run(self, *arguments: str, **environment: str) -> "Result":
        done = subprocess.run(
            [*PROGRAM, *arguments],
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
            check=False,
            stdin=subprocess.DEVNULL,
            cwd=self.folder,
            env={**os.environ, "SENDENSE_URL": self.url, **environment},
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def ask(self, *arguments: str) -> Any:
        """Run a command that must succeed, and return its JSON."""
        result = self.run(*arguments, "--json")
        assert result.code == 0, result.err
        return json.loads(result.out)


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def call(
    lab: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Run commands in this process: for many of them, where starting each would take minutes."""
    monkeypatch.setenv("SENDENSE_URL", lab.url)
    monkeypatch.chdir(lab.folder)

    def run(*arguments: str) -> Result:
        with pytest.raises(SystemExit) as left:
            main.main(arguments)
        printed = capsys.readouterr()
        return Result(int(left.value.code or 0), printed.out, printed.err)

    return run


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _wait_until_well(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{url}/api/v1/health", timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail(f"the server was not well in time: {log.read_text()}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("server")
    folder = base / "files"
    folder.mkdir()
    log = base / "server.log"
    port = _free_port()
    arguments = ["--data-dir", str(base / "data"), "--port", str(port), "--no-auth"]
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [*PROGRAM, "serve", *arguments, "--allow-dir", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        ) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_well(url, process, log)
            yield Server(url, folder)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                status = process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    assert status == 0, log.read_text()


def _make_disk(path: Path, *, seed: int) -> bytes:
    """Write a sparse disk of 12 MiB with two runs of data, and return its bytes."""
    source = random.Random(seed)
    content = bytearray(12 * MIB)
    content[: 2 * MIB] = source.randbytes(2 * MIB)
    content[7 * MIB : 8 * MIB] = source.randbytes(MIB)
    path.write_bytes(content)
    return bytes(content)


@pytest.fixture(scope="module")
def lab(server: Server) -> Server:
    """The server with a source of two VMs and a repository."""
    for name, seed in (("a", 1), ("b", 2), ("other", 3)):
        _make_disk(server.folder / f"{name}.raw", seed=seed)
    added = server.run(
        "source",
        "add",
        "lab",
        "--type",
        "image",
        "--vm",
        "pgtest1=a.raw,b.raw",
        "--vm",
        "wëb/服务器=other.raw",
    )
    assert added.code == 0, added.err
    discovered = server.run("source", "discover", "lab")
    assert discovered.code == 0, discovered.err
    assert "2 VMs" in discovered.out
    place = server.folder / "backups"
    made = server.run("repository", "add", "main", "--path", str(place))
    assert made.code == 0, made.err
    (key,) = re.findall(r"SENDENSE-1(?:-[A-Z2-7]{4}){14}", made.out)
    (server.folder / "key.txt").write_text(f"{key}\n")
    (server.folder / "key.txt").chmod(0o600)
    return server


def test_a_vm_is_backed_up_and_restored_bit_for_bit(lab: Server) -> None:
    before = (lab.folder / "a.raw").read_bytes()
    first = lab.run("backup", "start", "pgtest1", "-r", "main", "--tag", "why=test")
    assert first.code == 0, first.err
    assert "completed: full" in first.out

    with (lab.folder / "a.raw").open("r+b") as disk:
        disk.seek(5 * MIB)
        disk.write(random.Random(9).randbytes(MIB))
    after = (lab.folder / "a.raw").read_bytes()
    second = lab.ask("backup", "start", "pgtest1", "-r", "main")
    assert second["status"] == "completed"
    assert second["bytes_new"] < MIB * 2

    listed = lab.ask("backup", "list", "--vm", "pgtest1")
    assert listed["total"] == 2
    newest, oldest = (backup["backup_id"] for backup in listed["backups"])
    assert newest == second["backup_id"]
    assert [backup["tags"] for backup in listed["backups"]] == [{}, {"why": "test"}]
    chains = lab.ask("backup", "chain", "pgtest1")["chains"]
    assert len(chains) == 2
    one = lab.ask("backup", "chain", "pgtest1", "--disk", "0")
    assert [backup["backup_id"] for backup in one["backups"]] == [oldest, newest]
    assert one["total_backups"] == 2

    for backup, wanted in ((oldest, before), (newest, after)):
        target = lab.folder / f"{backup}.raw"
        restored = lab.run("restore", "start", backup, "--disk", "0", "--to", str(target))
        assert restored.code == 0, restored.err
        assert target.read_bytes() == wanted

    place = str(lab.folder / "backups")
    standalone = lab.folder / "standalone.raw"
    key = ["--recovery-key-file", str(lab.folder / "key.txt")]
    arguments = ["--backup", oldest, "--disk", "0", "--to", str(standalone), *key]
    alone = lab.run("repository", "restore", place, *arguments, SENDENSE_URL="http://127.0.0.1:1")
    assert alone.code == 0, alone.err
    assert standalone.read_bytes() == before
    for repository in (place, "main"):
        checked = lab.run("repository", "check", repository, *key)
        assert checked.code == 0, checked.err
        assert "whole" in checked.out
    inside = lab.ask("repository", "list", place, *key)
    assert lab.run("repository", "list", place).code == 5
    assert {newest, oldest} <= {backup["backup_id"] for backup in inside["backups"]}


def test_a_restore_to_qcow2_holds_the_same_disk(lab: Server) -> None:
    backup = lab.ask("backup", "start", "wëb/服务器", "-r", "main")
    target = lab.folder / "other.qcow2"
    arguments = ["--to", str(target), "--format", "qcow2"]
    restored = lab.run("restore", "start", backup["backup_id"], *arguments)
    assert restored.code == 0, restored.err
    plain = lab.folder / "other.plain"
    subprocess.run(
        ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(target), str(plain)], check=True
    )
    assert plain.read_bytes() == (lab.folder / "other.raw").read_bytes()


def test_failures_end_with_the_status_of_their_class(
    lab: Server, call: Callable[..., Result]
) -> None:
    target, key = str(lab.folder / "x.raw"), str(lab.folder / "key.txt")
    inside = (str(lab.folder / "backups"), "--backup", "x", "--to", target)
    backup = lab.ask("backup", "start", "pgtest1", "-r", "main", "--disk", "1")["backup_id"]
    (lab.folder / "taken.raw").write_bytes(b"precious")
    cases = {
        ("backup", "start", "pgtest1"): 2,
        ("backup", "start", "pgtest1", "-r", "main", "--tag", "a b=c"): 2,
        ("backup", "start", "nobody", "-r", "main"): 3,
        ("backup", "start", "pgtest1", "-r", "nowhere"): 3,
        ("backup", "start", "pgtest1", "-r", "main", "--disk", "7"): 3,
        ("backup", "show", "backup-x"): 3,
        ("restore", "start", backup, "--disk", "1", "--to", str(lab.folder / "taken.raw")): 4,
        ("repository", "add", "main", "--path", str(lab.folder / "second")): 4,
        ("repository", "remove", "main", "--yes"): 4,
        ("restore", "start", backup, "--disk", "1", "--to", "/etc/sendense.raw"): 5,
        ("source", "add", "etc", "--type", "image", "--vm", "a=/etc/passwd"): 5,
        ("vm", "list", "--url", "http://127.0.0.1:1"): 6,
        ("repository", "restore", *inside, "--recovery-key-file", key): 3,
        ("repository", "restore", *inside): 5,
    }
    for arguments, code in cases.items():
        result = call(*arguments)
        assert result.code == code, (arguments, result)
        assert result.err.startswith("error: "), arguments
        as_json = call(*arguments, "--json")
        assert as_json.code == code, arguments
        assert json.loads(as_json.err)["detail"], arguments
    assert (lab.folder / "taken.raw").read_bytes() == b"precious"
    assert not Path(target).exists()


def test_a_deleted_backup_is_gone_and_the_others_restore(lab: Server) -> None:
    ids = [lab.ask("backup", "start", "pgtest1", "-r", "main")["backup_id"] for _ in range(2)]
    deleted = lab.run("backup", "delete", ids[0], "--yes")
    assert deleted.code == 0, deleted.err
    assert lab.run("backup", "show", ids[0]).code == 3
    assert ids[0] in lab.run("backup", "list", "--deleted").out
    target = lab.folder / "kept.raw"
    assert lab.run("restore", "start", ids[1], "--disk", "1", "--to", str(target)).code == 0
    assert target.read_bytes() == (lab.folder / "b.raw").read_bytes()


def test_every_list_and_show_works_on_real_answers(
    lab: Server, call: Callable[..., Result]
) -> None:
    backup = lab.ask("backup", "start", "pgtest1", "-r", "main", "--disk", "0")
    restored = lab.ask(
        "restore", "start", backup["backup_id"], "--to", str(lab.folder / "shown.raw")
    )
    shown = [
        ("source", "list"),
        ("source", "show", "lab"),
        ("source", "test", "lab"),
        ("source", "test", "--type", "image", "--vm", "a=a.raw"),
        ("vm", "list"),
        ("vm", "list", "--search", "pg", "--protected"),
        ("vm", "show", "pgtest1"),
        ("vm", "disks", "pgtest1"),
        ("vm", "backups", "pgtest1"),
        ("vm", "readiness", "pgtest1"),
        ("vm", "readiness", "wëb/服务器", "-r", "main"),
        ("vm", "update", "pgtest1", "--tag", "tier=gold", "--exclude", "1"),
        ("vm", "update", "pgtest1", "--include-all"),
        ("repository", "list"),
        ("repository", "show", "main"),
        ("repository", "test", "main"),
        ("repository", "test", "--path", str(lab.folder / "new")),
        ("repository", "storage", "main"),
        ("repository", "update", "main", "--disable"),
        ("repository", "update", "main", "--enable"),
        ("repository", "stats", str(lab.folder / "backups"), "--recovery-key-file", "key.txt"),
        ("backup", "list", "--status", "completed", "--type", "full", "--tag", "why=test"),
        ("backup", "list", "--after", "2020-01-01T00:00:00Z", "--limit", "1"),
        ("backup", "show", backup["backup_id"]),
        ("backup", "chain", "pgtest1"),
        ("restore", "list", "--backup", backup["backup_id"]),
        ("restore", "show", restored["restore_id"]),
        ("job", "list", "--kind", "backup", "--status", "completed"),
        ("job", "show", backup["job_id"]),
        ("job", "watch", backup["job_id"]),
    ]
    for arguments in shown:
        result = call(*arguments)
        assert result.code == 0, (arguments, result.err)
        assert result.out.strip(), arguments
        assert "None" not in result.out, (arguments, result.out)
        assert json.loads(call(*arguments, "--json").out), arguments
    assert call("doctor").code == 0
