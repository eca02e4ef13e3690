"""The demonstration is a promise: it is run as users run it."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.guest, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]


def test_the_demonstration_holds_and_cleans_up() -> None:
    with tempfile.TemporaryDirectory(prefix="sendense-") as folder:
        done = subprocess.run(
            [sys.executable, "-m", "demo", "--json"],
            cwd=ROOT,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "TMPDIR": folder},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert list(Path(folder).iterdir()) == []
    figures = json.loads(done.stdout)
    assert figures["passed"] is True
    assert all(figures["checks"].values())
    assert len(figures["checks"]) == 11
    full, incremental = figures["backup_0"], figures["backup_1"]
    assert 0 < incremental["bytes_read"] < full["bytes_read"]
    assert figures["backup_frozen"]["consistency"] == "filesystem"
