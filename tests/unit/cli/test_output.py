"""On a real terminal: the other end of a pseudo terminal sees what a person would."""

import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from tests.unit.cli.conftest import Hub

DEADLINE_SECONDS = 30.0


def _on_terminal(hub: Hub, *arguments: str, keys: bytes = b"", width: int = 80) -> tuple[int, str]:
    """Run the program on a pseudo terminal; return its status and all it wrote there."""
    ours, theirs = pty.openpty()
    environment = {
        "PATH": os.environ["PATH"],
        "TERM": "xterm-256color",
        "COLUMNS": str(width),
        "LANG": "C.UTF-8",
        "SENDENSE_URL": hub.url,
    }
    with subprocess.Popen(
        [sys.executable, "-m", "sendense.cli.main", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
    ) as program:
        os.close(theirs)
        os.write(ours, keys)
        seen = _read_all(ours)
        os.close(ours)
        return program.wait(DEADLINE_SECONDS), seen.decode()


def _read_all(descriptor: int) -> bytes:
    seen = b""
    end = time.monotonic() + DEADLINE_SECONDS
    while select.select([descriptor], [], [], max(end - time.monotonic(), 0))[0]:
        try:
            part = os.read(descriptor, 65536)
        except OSError:  # EIO: the program has closed its side
            return seen
        if not part:
            return seen
        seen += part
    pytest.fail(f"the program did not end; it wrote {seen!r}")


def test_a_hostile_name_reaches_no_terminal(hub: Hub) -> None:
    name = "evil\x1b]0;owned\x07\x9b2J\u202egpj"
    hub.answer("GET", "/vms", {"vms": [{"id": "vm-1", "name": name}], "total": 1})
    for extra in ([], ["--json"]):
        code, seen = _on_terminal(hub, "vm", "list", *extra, width=200)
        assert code == 0
        assert "owned" in seen
        assert "\x1b]" not in seen
        assert not any(character in seen for character in "\x07\x9b\u202e")


def test_an_id_stays_in_one_piece_on_a_narrow_terminal(hub: Hub) -> None:
    long_id = "backup-" + "0123456789" * 6
    entry = {"backup_id": long_id, "vm_name": "v", "status": "completed", "backup_type": "full"}
    hub.answer("GET", "/backups", {"backups": [entry], "total": 1})
    _, seen = _on_terminal(hub, "backup", "list")
    assert long_id in seen


@pytest.mark.parametrize(("keys", "deleted"), [(b"y\n", 1), (b"n\n", 0), (b"\n", 0)])
def test_a_question_is_asked_on_a_terminal_and_no_is_the_default(
    hub: Hub, keys: bytes, deleted: int
) -> None:
    hub.answer("GET", "/backups/b-1", {"backup_id": "b-1", "vm_name": "web1"})
    hub.answer("DELETE", "/backups/b-1", {"backup_id": "b-1"})
    code, seen = _on_terminal(hub, "backup", "delete", "b-1", keys=keys)
    assert "Delete backup b-1 of VM web1" in seen
    assert len(hub.sent("DELETE", "/backups/b-1")) == deleted
    assert code == (0 if deleted else 1)


def test_a_bar_is_drawn_and_taken_away_again(hub: Hub) -> None:
    job = {"job_id": "j", "kind": "backup", "status": "running", "progress_percent": 50}
    counts = {"bytes_done": 1024, "bytes_total": 2048, "transfer_speed_bps": 1024}
    for _ in range(3):
        hub.answer("GET", "/jobs/j", {**job, "current_phase": "transfer\x1b[2J", **counts})
    hub.answer("GET", "/jobs/j", {**job, "status": "completed", "progress_percent": 100})
    code, seen = _on_terminal(hub, "job", "watch", "j", width=120)
    assert code == 0
    assert "transfer\\x1b[2J" in seen
    assert "50 %" in seen
    assert "1.0 KiB / 2.0 KiB" in seen
    assert "\x1b[?25h" in seen, "the cursor is shown again"
    assert seen.rstrip().endswith("job j completed")


def test_ctrl_c_ends_the_bar_with_130_and_says_that_the_job_goes_on(hub: Hub) -> None:
    job = {"job_id": "j", "kind": "backup", "status": "running", "progress_percent": 50}
    hub.answer("GET", "/jobs/j", {**job, "current_phase": "transfer"})
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "sendense.cli.main", "job", "watch", "j", "--url", hub.url],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={"PATH": os.environ["PATH"], "TERM": "xterm", "LANG": "C.UTF-8"},
    ) as program:
        os.close(theirs)
        seen = b""
        while b"transfer" not in seen:
            assert select.select([ours], [], [], DEADLINE_SECONDS)[0], seen
            seen += os.read(ours, 65536)
        program.send_signal(signal.SIGINT)
        seen += _read_all(ours)
        os.close(ours)
        assert program.wait(DEADLINE_SECONDS) == 130
    said = seen.decode()
    assert "job j goes on" in said
    assert "sendense job cancel j" in said
    assert "\x1b[?25h" in said, "the cursor is shown again"
    assert not hub.sent("POST", "/jobs/j/cancel")
