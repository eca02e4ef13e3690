"""The worlds that the source suite runs in: a source, its one VM, and a hand on that VM's disks.

A new connector joins by a context manager that gives a `World`, in `EVERY` and, where it tracks
changes, in `TRACKING`.
"""

import contextlib
import json
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sendense.connectors.base import Source
from sendense.connectors.fake.source import FakePlatform
from sendense.connectors.image.source import ImageSource
from sendense.connectors.qemu.qmp import Qmp
from sendense.connectors.qemu.source import QemuSource
from sendense.core import units

SIZE = units.MIB + 512
KEYS = (2000, 2001)
WAIT_SECONDS = 30.0
_Write = Callable[[int, int, bytes], None]
_Trim = Callable[[int, int, int], None]


def _impossible(*_: object) -> None:
    raise AssertionError("this source tracks no changes")


@dataclass(frozen=True)
class World:
    """A source with one VM of two empty disks of SIZE bytes, with the keys KEYS.

    Attributes:
        list_leftovers: what snapshots have left on the platform, apart from change tracking.
        write: writes as the guest does: key, offset, bytes.
        trim: discards as the guest does: key, offset, length.
        grow: makes a disk longer by a MiB.
        lose_tracking: what a crash of the platform does to change ids.
    """

    source: Source
    list_leftovers: Callable[[], list[str]]
    write: _Write
    trim: _Trim = _impossible
    grow: Callable[[int], None] = _impossible
    lose_tracking: Callable[[], None] = _impossible


MakeWorld = Callable[[Path], AbstractContextManager[World]]


@contextlib.contextmanager
def make_fake(_folder: Path) -> Iterator[World]:
    platform = FakePlatform()
    disks = dict(zip(KEYS, platform.add_vm("one", SIZE, SIZE), strict=True))
    yield World(
        platform,
        list_leftovers=lambda: platform.snapshots,
        write=lambda key, offset, data: disks[key].write(offset, data),
        trim=lambda key, offset, length: disks[key].trim(offset, length),
        grow=lambda key: disks[key].resize(SIZE + units.MIB),
        lose_tracking=platform.lose_tracking,
    )


def _make_files(folder: Path) -> dict[int, Path]:
    paths = {key: folder / f"{key}.raw" for key in KEYS}
    for path in paths.values():
        path.write_bytes(bytes(SIZE))
    return paths


@contextlib.contextmanager
def make_image(folder: Path) -> Iterator[World]:
    paths = _make_files(folder)
    config = {"vms": [{"name": "one", "disks": [str(path) for path in paths.values()]}]}
    before = set(folder.iterdir())

    def write(key: int, offset: int, data: bytes) -> None:
        with paths[key].open("r+b") as file:
            file.seek(offset)
            file.write(data)

    yield World(
        ImageSource(config, Path),
        list_leftovers=lambda: [path.name for path in set(folder.iterdir()) - before],
        write=write,
    )


class _Qemu:
    """A running QEMU without an operating system; its disks are written through its devices."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths = _make_files(folder)
        self._uuid = str(uuid.uuid4())
        self._monitor: Qmp | None = None
        self._resources = ExitStack()

    @property
    def socket(self) -> Path:
        return self._folder / "hub.qmp"

    def start(self) -> None:
        command = ["qemu-system-x86_64", "-accel", "tcg", "-machine", "q35", "-m", "64"]
        command += ["-display", "none", "-nodefaults", "-no-user-config", "-uuid", self._uuid]
        for path in (self.socket, self._folder / "tester.qmp"):
            path.unlink(missing_ok=True)
            command += ["-qmp", f"unix:{path},server=on,wait=off"]
        for key, path in self._paths.items():
            file = {"driver": "file", "filename": str(path), "discard": "unmap"}
            node = {"driver": "raw", "node-name": f"disk{key}", "discard": "unmap", "file": file}
            command += ["-blockdev", json.dumps(node)]
            command += ["-device", f"virtio-blk-pci,id=device{key},drive=disk{key}"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self._resources.callback(process.wait, WAIT_SECONDS)
        self._resources.callback(process.kill)
        deadline = time.monotonic() + WAIT_SECONDS
        while not (self._folder / "tester.qmp").exists():
            assert process.poll() is None, "QEMU ended at its start"
            assert time.monotonic() < deadline, "QEMU did not start"
            time.sleep(0.01)
        self._monitor = self._resources.enter_context(Qmp(self._folder / "tester.qmp"))

    def kill(self) -> None:
        """End QEMU as a crash would."""
        self._resources.close()

    def crash(self) -> None:
        self.kill()
        self.start()

    def execute(self, command: str, **arguments: Any) -> Any:
        assert self._monitor is not None, "QEMU does not run"
        return self._monitor.execute(command, **arguments)

    def write(self, key: int, offset: int, data: bytes) -> None:
        pattern = self._folder / "pattern"
        pattern.write_bytes(data)
        self._request(key, f"write -s {pattern} {offset} {len(data)}")

    def trim(self, key: int, offset: int, length: int) -> None:
        self._request(key, f"discard {offset} {length}")

    def grow(self, key: int) -> None:
        self.execute("block_resize", node_name=f"disk{key}", size=SIZE + units.MIB)

    def _request(self, key: int, request: str) -> None:
        """Let a device make a request, below which filters see it as they see a guest's."""
        device = f"/machine/peripheral/device{key}/virtio-backend"
        line = f'qemu-io -d {device} "{request}"'
        said = self.execute("human-monitor-command", command_line=line)
        assert said == "", said

    def list_leftovers(self) -> list[str]:
        nodes = self.execute("query-named-block-nodes", flat=True)
        found = [node["node-name"] for node in nodes if "sendense" in node["node-name"]]
        found += [export["id"] for export in self.execute("query-block-exports")]
        return found + [path.name for path in (self._folder / "scratch").glob("*/*")]


@contextlib.contextmanager
def make_qemu(_folder: Path) -> Iterator[World]:
    # Not pytest's own folder: its path is too long for a unix socket's name.
    with tempfile.TemporaryDirectory(prefix="sendense-test-") as name:
        qemu = _Qemu(Path(name))
        try:
            qemu.start()
            config = {"vms": [{"name": "one", "qmp": str(qemu.socket)}]}
            source = QemuSource(config, Path, Path(name) / "scratch")
            yield World(
                source,
                list_leftovers=qemu.list_leftovers,
                write=qemu.write,
                trim=qemu.trim,
                grow=qemu.grow,
                lose_tracking=qemu.crash,
            )
            source.close()
        finally:
            qemu.kill()


_QEMU = pytest.param(make_qemu, id="qemu", marks=pytest.mark.guest)
TRACKING = [pytest.param(make_fake, id="fake"), _QEMU]
EVERY = [*TRACKING, pytest.param(make_image, id="image")]
