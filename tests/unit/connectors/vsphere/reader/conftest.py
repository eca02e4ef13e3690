"""A reader over the double of VDDK under nbdkit's real plugin, and one over raw files."""

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sendense.connectors.vsphere.reader.base import ReadTask
from sendense.connectors.vsphere.reader.limits import Slots
from sendense.connectors.vsphere.reader.vddk import VddkReader
from sendense.core.clock import ManualClock
from sendense.core.units import MIB
from tests.vddk import double
from tests.vddk.double import Vddk

PASSWORD = "p<ss & w%rd-7f1c"  # noqa: S105 - of nothing
SIZE_BYTES = 4 * MIB
TASK = ReadTask(
    vm_moref="vm-16",
    snapshot_moref="snapshot-21",
    disk_path="[datastore 1] web/web 1.vmdk",
    key=2000,
    size_bytes=SIZE_BYTES,
    server="vc1.example",
    thumbprint=":".join(["AB"] * 20),
    username="backup@vsphere.local",
    password=PASSWORD,
    host_moref="host-3",
)


@pytest.fixture(scope="session")
def plugin() -> str:
    """The vddk plugin that nbdkit loads here."""
    try:
        return double.find_plugin()
    except double.Missing as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the double, compiled once."""
    folder = tmp_path_factory.mktemp("vddk") / "libdir"
    double.build(folder)
    return folder


@pytest.fixture
def disk(tmp_path: Path, seed: int) -> Path:
    """The content of the snapshot's disk."""
    path = tmp_path / "disk.raw"
    path.write_bytes(random.Random(seed).randbytes(SIZE_BYTES))
    return path


@pytest.fixture
def vddk(plugin: str, library: Path, tmp_path: Path, disk: Path) -> Vddk:
    """A VDDK that knows one disk and wants the right credentials."""
    assert plugin
    libdir = tmp_path / "libdir"
    shutil.copytree(library, libdir)
    made = Vddk(libdir)
    made.set(user=TASK.username, password=TASK.password, thumbprint=TASK.thumbprint)
    made.add_disk(TASK.vm_moref, TASK.snapshot_moref, TASK.disk_path, disk)
    return made


@pytest.fixture
def clock() -> ManualClock:
    """Time that passes only in waits."""
    return ManualClock()


@pytest.fixture
def make_reader(plugin: str, tmp_path: Path, clock: ManualClock) -> Callable[[Path], VddkReader]:
    """Make a reader over a libdir."""

    def make(libdir: Path) -> VddkReader:
        slots = Slots(tmp_path / "slots", clock, random.Random(1))
        return VddkReader(libdir, slots, clock, random.Random(1), plugin=plugin)

    return make


@pytest.fixture
def reader(make_reader: Callable[[Path], VddkReader], vddk: Vddk) -> VddkReader:
    """A reader over the double."""
    return make_reader(vddk.libdir)


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a shell script in the place of nbdkit."""

    def put(script: str) -> None:
        program = tmp_path / "bin" / "nbdkit"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return put


@pytest.fixture
def bare_reader(tmp_path: Path, clock: ManualClock) -> VddkReader:
    """A reader that needs no plugin: for machines without, and for pretended ones."""
    slots = Slots(tmp_path / "slots", clock, random.Random(1))
    return replace(VddkReader(tmp_path, slots, clock, random.Random(1)), plugin="vddk")
