import json
import os
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Hub, Run

DUMP = 'case "$1" in --version) echo nbdkit 1.40.1;; file) echo version=1.40.1;; vddk)'


def _look(run: Run, hub: Hub, folder: Path, *arguments: str) -> dict[str, dict[str, str]]:
    hub.answer("GET", "/health", {"status": "ok", "version": "9.9.9"})
    document = json.loads(run("doctor", "--json", "--data-dir", str(folder), *arguments).out)
    return {check["name"]: check for check in document["checks"]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def _pretend(folder: Path, vddk: str) -> None:
    program = folder / "nbdkit"
    program.write_text(f"#!/bin/sh\n{DUMP} {vddk};; esac\n")
    program.chmod(0o755)


def test_a_missing_plugin_is_named_with_the_package_of_each_distribution(
    run: Run, hub: Hub, folder: Path
) -> None:
    _pretend(folder, "echo 'nbdkit: error: cannot open plugin' >&2; exit 1")
    checks = _look(run, hub, folder)
    assert checks["nbdkit file plugin"]["verdict"] == "ok"
    assert checks["nbdkit vddk plugin"]["verdict"] == "missing"
    for word in ("nbdkit-vddk-plugin", "nbdkit-plugin-vddk", "Debian 12"):
        assert word in checks["nbdkit vddk plugin"]["hint"]
    assert "VDDK" not in checks


def test_a_missing_library_is_looked_for_in_the_folder_given(
    run: Run, hub: Hub, folder: Path
) -> None:
    _pretend(folder, "echo version=1.42.3")
    (folder / "lib64").mkdir()
    (folder / "lib64" / "libvixDiskLib.so.99").touch()
    checks = _look(run, hub, folder, "--vddk-libdir", str(folder))
    assert checks["VDDK"]["verdict"] == "missing"
    assert "libvixDiskLib.so.99" in checks["VDDK"]["found"]
    assert "vmware-vix-disklib-distrib" in checks["VDDK"]["hint"]


def test_a_library_that_loads_is_told_with_its_version(run: Run, hub: Hub, folder: Path) -> None:
    _pretend(
        folder,
        "echo version=1.42.3; echo vddk_library_version=8; echo vddk_dll=/v/libvixDiskLib.so.8.0.3",
    )
    checks = _look(run, hub, folder)
    assert checks["VDDK"] | {"verdict": "ok", "found": "8.0.3"} == checks["VDDK"]


def test_without_nbdkit_its_plugins_are_not_spoken_of(
    run: Run, hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(folder))
    assert "nbdkit vddk plugin" not in _look(run, hub, folder)
