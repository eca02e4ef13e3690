"""The worlds that the source suite runs in: a source, its one VM, and a hand on that VM's disks.

A new connector joins by a context manager that gives a `World`, in `EVERY` and, where it tracks
changes, in `TRACKING`.
"""

import contextlib
import functools
import json
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from demo.vcenter.lab import Vcenter
from sendense.connectors.base import SnapshotRequest, Source
from sendense.connectors.fake.source import FakePlatform
from sendense.connectors.image.source import ImageSource
from sendense.connectors.qemu.qmp import Qmp
from sendense.connectors.qemu.source import QemuSource
from sendense.connectors.vsphere import config as vsphere_config
from sendense.connectors.vsphere.source import VsphereSource
from sendense.core import units
from sendense.core.errors import Unavailable
from tests.contract import guest_agent
from tests.contract.guest_agent import GuestAgent
from tests.vcsim.fixtures import require_simulator

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
        list_leftovers: what snapshots have left on the platform, given the change ids of live
            backups: held snapshots, change tracking for nobody, a guest that stands still.
        write: writes as the guest does: key, offset, bytes.
        trim: discards as the guest does: key, offset, length.
        grow: makes a disk longer by a MiB.
        lose_tracking: what a crash of the platform does to change ids.
        spoil: ways to leave something behind, each of which `list_leftovers` must see.
    """

    source: Source
    list_leftovers: Callable[[frozenset[str]], list[str]]
    write: _Write
    trim: _Trim = _impossible
    grow: Callable[[int], None] = _impossible
    lose_tracking: Callable[[], None] = _impossible
    spoil: Mapping[str, Callable[[], object]] = field(default_factory=dict)


MakeWorld = Callable[[Path], AbstractContextManager[World]]


@contextlib.contextmanager
def make_fake(_folder: Path) -> Iterator[World]:
    platform = FakePlatform()
    disks = dict(zip(KEYS, platform.add_vm("one", SIZE, SIZE), strict=True))
    vm_uuid = platform.list_vms()[0].uuid

    def list_leftovers(live: frozenset[str]) -> list[str]:
        tracked = [change_id for disk in disks.values() for change_id in disk.tracked]
        return platform.snapshots + [change_id for change_id in tracked if change_id not in live]

    yield World(
        platform,
        list_leftovers=list_leftovers,
        write=lambda key, offset, data: disks[key].write(offset, data),
        trim=lambda key, offset, length: disks[key].trim(offset, length),
        grow=lambda key: disks[key].resize(SIZE + units.MIB),
        lose_tracking=platform.lose_tracking,
        spoil={
            "snapshot": lambda: platform.take_snapshot(SnapshotRequest(vm_uuid, "left", ())),
            "tracking": lambda: disks[KEYS[0]].tracked.update({"left": set()}),
        },
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
        list_leftovers=lambda _live: [path.name for path in set(folder.iterdir()) - before],
        write=write,
        spoil={"file": (folder / "left").touch},
    )


class _Qemu:
    """A running QEMU without an operating system; its disks are written through its devices."""

    def __init__(self, folder: Path, agent: GuestAgent) -> None:
        self.agent = agent
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
        while True:
            assert process.poll() is None, "QEMU ended at its start"
            assert time.monotonic() < deadline, "QEMU did not start"
            with contextlib.suppress(Unavailable):  # the socket is there before QEMU listens
                self._monitor = self._resources.enter_context(Qmp(self._folder / "tester.qmp"))
                return
            time.sleep(0.01)

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

    def list_leftovers(self, live: frozenset[str]) -> list[str]:
        nodes = self.execute("query-named-block-nodes", flat=True)
        found = [node["node-name"] for node in nodes if "sendense" in node["node-name"]]
        for node in nodes:
            found += [
                f"bitmap {bitmap['name']} of {node['node-name']}"
                for bitmap in node.get("dirty-bitmaps", [])
                if not any(change_id.endswith(f":{bitmap['name']}") for change_id in live)
            ]
        found += [export["id"] for export in self.execute("query-block-exports")]
        objects = self.execute("qom-list", path="/objects")
        found += [entry["name"] for entry in objects if entry["name"].startswith("sendense")]
        found += [job["id"] for job in self.execute("query-jobs")]
        if not self.execute("query-status")["running"]:
            found.append("a paused VM")
        if self.agent.frozen:
            found.append("a frozen guest")
        return found + [path.name for path in (self._folder / "scratch").glob("*/*")]

    def spoil(self) -> dict[str, Callable[[], object]]:
        disk = f"disk{KEYS[0]}"
        overlay = {"driver": "null-co", "node-name": "sendense-left"}
        add_bitmap = functools.partial(self.execute, "block-dirty-bitmap-add", node=disk)
        mark = {"qom_type": "secret", "id": "sendense-left", "data": "x"}
        return {
            "bitmap": functools.partial(add_bitmap, name="sendense-left"),
            "foreign bitmap": functools.partial(add_bitmap, name="no name of ours"),
            "node": functools.partial(self.execute, "blockdev-add", **overlay),
            "mark": functools.partial(self.execute, "object-add", **mark),
            "paused": functools.partial(self.execute, "stop"),
            "frozen": lambda: self.agent.answer({"execute": "guest-fsfreeze-freeze"}),
        }


@contextlib.contextmanager
def make_qemu(_folder: Path) -> Iterator[World]:
    # Not pytest's own folder: its path is too long for a unix socket's name.
    with (
        tempfile.TemporaryDirectory(prefix="sendense-test-") as name,
        guest_agent.serve(Path(name) / "agent.sock") as agent,
    ):
        qemu = _Qemu(Path(name), agent)
        try:
            qemu.start()
            vm = {"name": "one", "qmp": str(qemu.socket), "agent": f"{name}/agent.sock"}
            config = {"vms": [vm]}
            source = QemuSource(config, Path, Path(name) / "scratch")
            yield World(
                source,
                list_leftovers=qemu.list_leftovers,
                write=qemu.write,
                trim=qemu.trim,
                grow=qemu.grow,
                lose_tracking=qemu.crash,
                spoil=qemu.spoil(),
            )
            source.close()
        finally:
            qemu.kill()


@contextlib.contextmanager
def make_vsphere(folder: Path) -> Iterator[World]:
    require_simulator()
    with Vcenter(folder / "files") as vcenter:
        vcenter.add_vm("one", *(SIZE for _ in KEYS))
        settings = vsphere_config.parse(vcenter.describe(), vcenter.credentials, Path)
        source = VsphereSource(settings, folder / "scratch", "hub-one")

        def trim(key: int, offset: int, length: int) -> None:
            vcenter.write("one", key, offset, bytes(length))

        def lose_tracking() -> None:
            for key in KEYS:
                vcenter.reset_tracking("one", key)

        yield World(
            source,
            list_leftovers=lambda _live: vcenter.list_snapshots("one"),
            write=lambda key, offset, data: vcenter.write("one", key, offset, data),
            trim=trim,
            lose_tracking=lose_tracking,
            spoil={"snapshot": lambda: vcenter.take_snapshot("one", "left")},
        )
        source.close()


_QEMU = pytest.param(make_qemu, id="qemu", marks=pytest.mark.guest)
# Those that keep records for change ids; vCenter's are moments of which it keeps none.
STATEFUL = [pytest.param(make_fake, id="fake"), _QEMU]
TRACKING = [*STATEFUL, pytest.param(make_vsphere, id="vsphere")]
EVERY = [*TRACKING, pytest.param(make_image, id="image")]
