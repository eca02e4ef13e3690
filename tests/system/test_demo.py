"""The demonstration is a promise: it is run as users run it."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.vcsim.fixtures import require_simulator

pytestmark = [pytest.mark.guest, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]


def run_demo(*options: str) -> dict[str, Any]:
    """Run the demonstration, assert that it leaves no file, and return its figures."""
    with tempfile.TemporaryDirectory(prefix="sendense-") as folder:
        done = subprocess.run(
            [sys.executable, "-m", "demo", "--json", *options],
            cwd=ROOT,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "TMPDIR": folder},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert list(Path(folder).iterdir()) == []
    return dict(json.loads(done.stdout))


def test_the_demonstration_holds_and_cleans_up() -> None:
    figures = run_demo()
    assert figures["passed"] is True
    assert all(figures["checks"].values())
    assert len(figures["checks"]) == 11
    full, incremental = figures["backup_0"], figures["backup_1"]
    assert 0 < incremental["bytes_read"] < full["bytes_read"]
    assert figures["backup_frozen"]["consistency"] == "filesystem"


def test_the_demonstration_of_a_vcenter_holds_and_cleans_up() -> None:
    require_simulator()
    figures = run_demo("--vsphere")
    assert figures["passed"] is True
    assert len(figures["checks"]) == 20
    full, incremental = figures["backup_0"], figures["backup_3"]
    assert 0 < incremental["bytes_read"] < full["bytes_read"]
