"""Where the simulator is built, started and ended: no process outlives who started it."""

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from demo import golang
from demo.golang import ROOT, Broken, CannotFetch
from demo.vcenter import simulator
from demo.vcenter.lab import Vcenter
from demo.vcenter.simulator import Simulator
from tests.servers.process import wait_until
from tests.vcsim.client import Client
from tests.vcsim.fixtures import require_simulator

SECONDS_MAX = 30.0
MODULE = "module sendense.example/vcsim\n\ngo 1.25.0\n"
STARTS = """
import sys
from demo import golang
from demo.golang import ROOT, Broken, CannotFetch
from demo.vcenter import simulator
print(simulator.Simulator(simulator.build(), "secret").pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another launcher than ours, built elsewhere, offline."""
    require_simulator()  # there is a Go
    folder = tmp_path / "launcher"
    folder.mkdir()
    (folder / "go.mod").write_text(MODULE)
    (folder / "go.sum").touch()
    monkeypatch.setattr(simulator, "LAUNCHER", folder)
    monkeypatch.setattr(golang, "CACHE", tmp_path / "cache")
    monkeypatch.setenv("GOPROXY", "off")
    return folder


def test_modules_that_cannot_be_fetched_are_a_reason_to_skip(launcher: Path) -> None:
    (launcher / "go.mod").write_text(f"{MODULE}\nrequire sendense.example/missing v1.0.0\n")
    (launcher / "main.go").write_text("package main\n\nfunc main() {}\n")
    with pytest.raises(CannotFetch, match="cannot be built"):
        simulator.build()


def test_a_launcher_that_does_not_compile_is_none(launcher: Path) -> None:
    (launcher / "main.go").write_text("package main\n\nfunc main() { nonsense() }\n")
    with pytest.raises(Broken, match="nonsense"):
        simulator.build()


def test_a_launcher_that_ends_at_once_says_why(launcher: Path) -> None:
    (launcher / "main.go").write_text('package main\n\nfunc main() { panic("out of luck") }\n')
    with pytest.raises(Broken, match="out of luck"):
        Simulator(simulator.build(), "")


def test_the_same_launcher_is_built_once(launcher: Path) -> None:
    (launcher / "main.go").write_text("package main\n\nfunc main() {}\n")
    first = simulator.build()
    built = first.stat().st_mtime_ns
    assert simulator.build() == first
    assert first.stat().st_mtime_ns == built
    (launcher / "main.go").write_text("package main\n\n// Changed.\nfunc main() {}\n")
    assert simulator.build() != first


def test_it_ends_with_who_started_it_however_that_ends() -> None:
    require_simulator()
    parent = subprocess.Popen(
        [sys.executable, "-c", STARTS],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        process = psutil.Process(int(parent.stdout.readline()))
        assert process.is_running()
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not process.is_running(), SECONDS_MAX, "vcsim to end")


def test_the_password_is_on_no_command_line(tmp_path: Path) -> None:
    require_simulator()
    with Vcenter(tmp_path, password="shibboleth-4711") as lab:  # noqa: S106 - of a simulator
        assert "shibboleth-4711" not in " ".join(psutil.Process(lab.pid).cmdline())
        with closing(Client(lab)) as client:
            assert client.content.sessionManager.currentSession.userName == lab.username


def test_a_dead_simulator_is_noticed(tmp_path: Path) -> None:
    require_simulator()
    with Vcenter(tmp_path) as lab:
        assert lab.is_running
        os.kill(lab.pid, signal.SIGQUIT)
        wait_until(lambda: not lab.is_running, SECONDS_MAX, "vcsim to end")
        assert "goroutine" in lab.read_log()
