"""Registering a vCenter: its password never in an argument, its certificate trusted knowingly."""

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest

from tests.unit.cli.conftest import Hub, Run

CANARY = "canary-hunter2"
SHA256 = ":".join(["AB"] * 32)
PEM = "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n"
SHOWN = {
    "sha256": SHA256,
    "pem": PEM,
    "subject": "CN=vc1",
    "issuer": "CN=CA",
    "not_before": "2026-01-01T00:00:00Z",
    "not_after": "2028-01-01T00:00:00Z",
    "trusted": False,
    "problems": ["nobody this machine trusts has signed it"],
}
ADD = ("source", "add", "vc1", "--type", "vsphere", "--host", "vc1.example")


@pytest.fixture
def password(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.touch(mode=0o600)
    path.write_text(f"{CANARY}\n")
    return path


def shows(hub: Hub, **changes: Any) -> None:
    """Let the vCenter show a certificate, and the hub take the source."""
    tested = {"reachable": True, "detail": "x", "certificate": {**SHOWN, **changes}}
    hub.answer("POST", "/sources/test", tested)
    hub.answer("POST", "/sources", {"id": "s-1", "warnings": []}, status=201)


def sent(hub: Hub) -> dict[str, Any]:
    [request] = hub.sent("POST", "/sources")
    body: dict[str, Any] = request.body
    return body


def test_a_fingerprint_that_fits_pins_the_certificate(hub: Hub, run: Run, password: Path) -> None:
    shows(hub)
    trust = ("--trust-fingerprint", SHA256.replace(":", "").lower())
    result = run(*ADD, "--username", "me", "--password-file", str(password), *trust)
    assert result.code == 0, result.err
    assert sent(hub)["config"] == {"host": "vc1.example", "certificate_pem": PEM}
    assert sent(hub)["credentials"] == {"username": "me", "password": CANARY}
    [asked] = hub.sent("POST", "/sources/test")
    assert "credentials" not in asked.body, "no password goes to whom nobody trusts yet"
    assert CANARY not in result.out + result.err


def test_another_fingerprint_is_refused(hub: Hub, run: Run, password: Path) -> None:
    shows(hub)
    trust = ("--trust-fingerprint", "cd" * 32)
    result = run(*ADD, "--username", "me", "--password-file", str(password), *trust)
    assert result.code == 5
    assert SHA256 in result.err
    assert hub.sent("POST", "/sources") == []


@pytest.mark.parametrize("wrong", ["", "ab", "xy" * 32, f"{SHA256}:AB"])
def test_what_is_no_fingerprint_is_refused_before_anything(
    hub: Hub, run: Run, password: Path, wrong: str
) -> None:
    trust = ("--trust-fingerprint", wrong)
    assert run(*ADD, "--username", "me", "--password-file", str(password), *trust).code == 2
    assert hub.requests == []


def test_without_a_person_an_untrusted_certificate_is_told(
    hub: Hub, run: Run, password: Path
) -> None:
    shows(hub)
    result = run(*ADD, "--username", "me", "--password-file", str(password))
    assert result.code == 5
    assert f"--trust-fingerprint {SHA256}" in result.err
    assert "nobody this machine trusts" in result.err
    assert hub.sent("POST", "/sources") == []
    as_json = run(*ADD, "--username", "me", "--password-file", str(password), "--json")
    assert SHA256 in json.loads(as_json.err)["detail"]


def test_a_certificate_that_the_machine_trusts_is_not_pinned(
    hub: Hub, run: Run, password: Path
) -> None:
    shows(hub, trusted=True, problems=[])
    assert run(*ADD, "--username", "me", "--password-file", str(password)).code == 0
    assert sent(hub)["config"] == {"host": "vc1.example"}


def test_a_certificate_of_a_file_is_pinned_unasked(
    hub: Hub, run: Run, password: Path, tmp_path: Path
) -> None:
    shows(hub)
    (tmp_path / "vc1.pem").write_text(PEM)
    more = ("--certificate", str(tmp_path / "vc1.pem"), "--reader", "file", "--file-dir", "/d")
    assert run(*ADD, "--username", "me", "--password-file", str(password), *more).code == 0
    assert sent(hub)["config"] == {
        "host": "vc1.example",
        "certificate_pem": PEM,
        "reader": "file",
        "file_dir": "/d",
    }
    assert hub.sent("POST", "/sources/test") == []


@pytest.mark.parametrize("content", [CANARY, f"{CANARY}\n", f"{CANARY}\r\n"])
def test_a_password_comes_from_standard_input(
    hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    shows(hub, trusted=True)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    assert run(*ADD, "--username", "me", "--password-stdin").code == 0
    assert sent(hub)["credentials"]["password"] == CANARY


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no password"),
        (b"\n", "no password"),
        (b"a\nb\n", "more than one line"),
        (b"\xff\xfe", "not UTF-8"),
        (b"x" * 5000, "more than a password"),
    ],
)
def test_what_is_no_password_is_refused_and_not_repeated(
    hub: Hub, run: Run, tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "password"
    path.write_bytes(content)
    hub.answer("GET", "/sources/s-1", {"id": "s-1"})
    given = ("--username", "me", "--password-file", str(path))
    result = run("source", "set-credentials", "s-1", *given)
    assert result.code == 2
    assert reason in result.err
    assert hub.sent("PATCH", "/sources/s-1") == []


def test_a_password_that_everybody_may_read_is_warned_about(
    hub: Hub, run: Run, password: Path
) -> None:
    password.chmod(0o644)
    shows(hub, trusted=True)
    result = run(*ADD, "--username", "me", "--password-file", str(password))
    assert "every user of this machine may read" in result.err


@pytest.mark.parametrize(
    "arguments",
    [
        ADD,
        (*ADD, "--username", "me"),
        (*ADD, "--password-stdin"),
        (*ADD, "--username", "me", "--password-stdin", "--password-file", "/x"),
        (*ADD, "--username", "me", "--vm", "a=/b"),
        (*ADD, "--username", "me", "--password", CANARY),
        ("source", "add", "x", "--type", "image", "--host", "vc1"),
        ("source", "add", "x", "--type", "vsphere", "--reader", "file"),
        ("source", "add", "x", "--type", "image", "--vm", "a=/b", "--trust-fingerprint", "x"),
        ("source", "test", "lab", "--host", "vc1"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    hub: Hub, run: Run, arguments: tuple[str, ...]
) -> None:
    shows(hub, trusted=True)
    assert run(*arguments).code == 2
    assert hub.sent("POST", "/sources") == []


def test_no_command_takes_a_password_as_an_argument() -> None:
    page = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
    assert "--password-file" in page
    assert "`--password`" not in page


def test_new_credentials_are_set(hub: Hub, run: Run, password: Path) -> None:
    hub.answer("GET", "/sources/s-1", {"id": "s-1"})
    hub.answer("PATCH", "/sources/s-1", {"id": "s-1"})
    given = ("--username", "me", "--password-file", str(password))
    result = run("source", "set-credentials", "s-1", *given)
    assert result.code == 0
    assert hub.sent("PATCH", "/sources/s-1")[0].body == {
        "credentials": {"username": "me", "password": CANARY}
    }
    assert CANARY not in result.out + result.err


def test_a_renewed_certificate_is_trusted(hub: Hub, run: Run) -> None:
    config = {"host": "vc1.example", "certificate_pem": "old", "disks_per_host": 2}
    hub.answer("GET", "/sources/s-1", {"id": "s-1", "type": "vsphere", "config": config})
    hub.answer("PATCH", "/sources/s-1", {"id": "s-1"})
    shows(hub)
    result = run("source", "trust", "s-1", "--trust-fingerprint", SHA256)
    assert result.code == 0, result.err
    [changed] = hub.sent("PATCH", "/sources/s-1")
    assert changed.body == {"config": {**config, "certificate_pem": PEM}}
    [asked] = hub.sent("POST", "/sources/test")
    assert "certificate_pem" not in asked.body["config"], "the old one would be refused"


def test_the_development_reader_is_labelled_wherever_a_source_is_shown(hub: Hub, run: Run) -> None:
    warning = "reader `file` is for development only"
    source = {
        "id": "s-1",
        "name": "vc1",
        "type": "vsphere",
        "config": {"host": "vc1", "reader": "file", "certificate_pem": PEM},
        "vm_count": 1,
        "discovered_at": None,
        "trouble": None,
        "username": "me",
        "warnings": [warning],
    }
    hub.answer("GET", "/sources", {"sources": [source], "total": 1})
    hub.answer("GET", "/sources/s-1", source)
    assert warning in run("source", "list").err
    shown = run("source", "show", "s-1").out
    assert warning in shown
    assert "pinned" in shown
    assert "BEGIN CERTIFICATE" not in shown


def test_a_test_shows_the_certificate(hub: Hub, run: Run) -> None:
    shows(hub)
    result = run("source", "test", "--type", "vsphere", "--host", "vc1.example")
    assert result.code == 0
    assert SHA256 in result.out
    assert "nobody this machine trusts" in result.out


@pytest.mark.parametrize(("reply", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1)])
def test_a_person_is_shown_the_certificate_and_asked(hub: Hub, reply: str, code: int) -> None:
    shows(hub)
    ours, theirs = pty.openpty()
    words = [*ADD, "--username", "me"]
    environment = {**os.environ, "SENDENSE_URL": hub.url}
    with subprocess.Popen(
        [sys.executable, "-m", "sendense.cli.main", *words],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        assert process.stderr is not None
        err = read_until(process.stderr, "[y/N] ")
        os.write(ours, reply.encode())
        if code == 0:
            err += read_until(process.stderr, "Password of me: ")
            os.write(ours, f"{CANARY}\n".encode())
        out, rest = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == code, err + rest
    assert SHA256 in err
    assert CANARY not in out + err + rest
    if code == 0:
        assert sent(hub)["config"]["certificate_pem"] == PEM
        assert sent(hub)["credentials"]["password"] == CANARY
    else:
        assert hub.sent("POST", "/sources") == []


def read_until(stream: IO[str], awaited: str) -> str:
    """Return what a program writes until it waits for an answer."""
    read = ""
    while not read.endswith(awaited):
        one = stream.read(1)
        assert one, f"it ended: {read}"
        read += one
    return read
