import json
import socket
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Hub, Run

WELL = {"status": "ok", "version": "9.9.9"}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def _checks(run: Run, *arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    result = run("doctor", "--json", *arguments)
    document = json.loads(result.out)
    assert document["healthy"] == (result.code == 0)
    return result.code, {check["name"]: check for check in document["checks"]}


def test_a_healthy_machine_and_server_end_with_0(run: Run, hub: Hub, data_dir: Path) -> None:
    hub.answer("GET", "/health", WELL)
    code, checks = _checks(run, "--data-dir", str(data_dir))
    assert code == 0
    assert checks["qemu-img"]["verdict"] == "ok"
    assert checks["data directory"]["verdict"] == "ok"
    assert "9.9.9" in checks["server"]["found"]


def test_every_optional_part_names_its_licence(run: Run, hub: Hub, data_dir: Path) -> None:
    hub.answer("GET", "/health", WELL)
    _, checks = _checks(run, "--data-dir", str(data_dir))
    assert checks["nbdkit"]["licence"] == "BSD-3-Clause"
    assert checks["qemu-nbd"]["licence"] == "GPL-2.0-only"
    shown = run("doctor", "--data-dir", str(data_dir)).out
    assert "Apache-2.0" in shown
    assert "LGPL-2.1-or-later" in shown


def test_without_required_programs_it_ends_with_1_and_says_what_to_install(
    run: Run, hub: Hub, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.answer("GET", "/health", WELL)
    monkeypatch.setenv("PATH", str(data_dir))
    code, checks = _checks(run, "--data-dir", str(data_dir))
    assert code == 1
    assert checks["qemu-img"]["verdict"] == "failed"
    assert checks["qemu-img"]["hint"] == "on Debian: apt install qemu-utils"
    assert checks["nbdkit"]["verdict"] == "missing"


def test_a_program_that_does_not_run_is_told(
    run: Run, hub: Hub, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.answer("GET", "/health", WELL)
    broken = data_dir / "qemu-img"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(data_dir), prepend=":")
    code, checks = _checks(run, "--data-dir", str(data_dir))
    assert code == 1
    assert "does not run" in checks["qemu-img"]["found"]


def test_an_unwell_server_is_told_with_its_reason(run: Run, hub: Hub, data_dir: Path) -> None:
    hub.refuse("GET", "/health", 503, detail="no worker is alive")
    code, checks = _checks(run, "--data-dir", str(data_dir))
    assert code == 1
    assert "no worker is alive" in checks["server"]["found"]


def test_no_server_and_a_free_port_are_fine(run: Run, data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    arguments = ["--data-dir", str(data_dir), "--url", f"http://127.0.0.1:{port}"]
    code, checks = _checks(run, *arguments)
    assert code == 0
    assert checks["server"]["found"] == f"not running; port {port} is free"


def test_a_port_that_something_else_has_is_told(run: Run, data_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        code, checks = _checks(run, "--data-dir", str(data_dir), "--url", url)
    assert code == 1
    assert "is not free" in checks["server"]["found"]


def test_a_data_directory_that_others_can_reach_is_a_warning(
    run: Run, hub: Hub, data_dir: Path
) -> None:
    hub.answer("GET", "/health", WELL)
    data_dir.chmod(0o755)
    code, checks = _checks(run, "--data-dir", str(data_dir))
    assert code == 0
    assert checks["data directory"]["verdict"] == "warning"
    assert "chmod 0700" in checks["data directory"]["hint"]


def test_a_data_directory_that_is_a_file_fails(run: Run, hub: Hub, data_dir: Path) -> None:
    hub.answer("GET", "/health", WELL)
    file = data_dir / "file"
    file.touch()
    code, checks = _checks(run, "--data-dir", str(file))
    assert code == 1
    assert "not a directory" in checks["data directory"]["found"]


def test_a_data_directory_to_come_is_looked_for_in_its_parent(
    run: Run, hub: Hub, data_dir: Path
) -> None:
    hub.answer("GET", "/health", WELL)
    code, checks = _checks(run, "--data-dir", str(data_dir / "a" / "b"))
    assert code == 0
    assert "will be made" in checks["data directory"]["found"]


def test_a_wrong_variable_of_the_environment_is_named(
    run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.answer("GET", "/health", WELL)
    monkeypatch.setenv("SENDENSE_PORT", "abc")
    code, checks = _checks(run)
    assert code == 1
    assert checks["settings"]["found"].startswith("port: ")
