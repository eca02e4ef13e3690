"""Do the units that we ship say what systemd understands, and what the program takes?"""

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sendense.cli import serve, supervisor
from sendense.workflows import worker

ROOT = Path(__file__).resolve().parent.parent
UNITS = sorted((ROOT / "packaging" / "systemd").glob("*.service"))
PROGRAM = "/opt/sendense/bin/sendense"
# Of 100: network, sockets and the machine's block devices are what a backup needs.
EXPOSURE_MAX = 25


def _read(unit: Path) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=True)
    parser.optionxform = str  # type: ignore[method-assign,assignment] # documented way to keep case
    parser.read_string(unit.read_text())
    return parser


def test_there_is_a_unit_for_hub_and_worker() -> None:
    assert [unit.name for unit in UNITS] == ["sendense-worker.service", "sendense.service"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_runs_as_its_own_user_without_rights(unit: Path) -> None:
    service = _read(unit)["Service"]
    assert service["User"] == service["Group"] == "sendense"
    assert service["CapabilityBoundingSet"] == ""
    assert service["UMask"] == "0077"
    assert service["ProtectSystem"] == "strict"
    assert service["StateDirectoryMode"] == "0700"
    assert service["ExecStart"].partition(" ")[0] == PROGRAM


def test_systemd_waits_longer_than_the_product_needs_to_stop() -> None:
    hub, other = (
        _read(ROOT / "packaging" / "systemd" / name)["Service"]
        for name in ("sendense.service", "sendense-worker.service")
    )
    assert float(hub["TimeoutStopSec"]) > serve.STOP_SECONDS + supervisor.STOP_SECONDS_MAX
    assert float(other["TimeoutStopSec"]) > worker.STOP_SECONDS
    assert float(hub["TimeoutStartSec"]) > serve.READY_SECONDS_MAX


def test_the_service_user_s_home_is_the_state_directory() -> None:
    text = (ROOT / "packaging" / "systemd" / "sendense.sysusers").read_text()
    [entry] = [line for line in text.splitlines() if not line.startswith("#")]
    assert re.fullmatch(r'u sendense - "[^"]+" /var/lib/sendense', entry)


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze, of Debian's systemd"
)
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_understands_each_unit(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace(PROGRAM, "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(copy)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    about_ours = [line for line in done.stderr.splitlines() if unit.stem in line]
    assert done.returncode == 0, done.stderr
    assert about_ours == []


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze, of Debian's systemd"
)
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_finds_each_unit_little_exposed(unit: Path) -> None:
    done = subprocess.run(
        [
            *("systemd-analyze", "security", "--offline=yes", "--no-pager"),
            f"--threshold={EXPOSURE_MAX}",
            str(unit),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
