"""A platform in a folder: VMs are raw files, snapshots are copies, change ids are old copies.

All of its state lies in files, so that several worker processes see the same platform, and a test
can look at what was left behind.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sendense.connectors.base import (
    DISK_KEY_FIRST,
    Consistency,
    DiskDescription,
    DiskSnapshot,
    DiskView,
    Snapshot,
    SnapshotOutcome,
    SnapshotRequest,
    Tracking,
    VmDescription,
)
from sendense.core.errors import NotFound, Unavailable
from sendense.core.extent import Extent
from sendense.nbd.address import Address

BLOCK = 64 * 1024
SOCKET_SECONDS_MAX = 20.0


@dataclass(frozen=True)
class LabView:
    """A disk of a snapshot, served by nbdkit."""

    address: Address
    path: Path
    base: Path | None
    connections_max: int = 2

    @property
    def size_bytes(self) -> int:
        return self.path.stat().st_size

    def list_allocated(self) -> Iterator[Extent]:
        data = self.path.read_bytes()
        for start in range(0, len(data), BLOCK):
            block = data[start : start + BLOCK]
            yield Extent(start, len(block), zero=not any(block))

    def list_changed(self) -> Iterator[Extent]:
        assert self.base is not None, "only asked where there is a base"
        if (self.base.parent / "lost").exists():
            raise Unavailable("the platform forgot", kind="tracking-lost")
        now, then = self.path.read_bytes(), self.base.read_bytes()
        for start in range(0, len(now), BLOCK):
            if now[start : start + BLOCK] != then[start : start + BLOCK]:
                yield Extent(start, min(BLOCK, len(now) - start))


@dataclass
class Lab:
    """The platform; see connectors.base.Source."""

    folder: Path
    events: Path
    bytes_per_second: int | None = None
    silent: bool = field(default=False)

    def disk(self, vm: str, index: int = 0) -> Path:
        return self.folder / "vms" / vm / f"{index}.raw"

    def add_vm(self, name: str, *disks: bytes) -> None:
        for index, content in enumerate(disks):
            path = self.disk(name, index)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    @property
    def snapshots(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "snapshots").glob("*"))

    @property
    def change_ids(self) -> set[str]:
        return {path.stem for path in (self.folder / "changes").glob("*.raw")}

    def probe(self) -> str:
        return "a lab"

    def list_vms(self) -> list[VmDescription]:
        self._answer()
        return [
            VmDescription(
                uuid=f"uuid-{path.name}",
                name=path.name,
                power_state="on",
                disks=tuple(
                    DiskDescription(
                        key=DISK_KEY_FIRST + int(disk.stem),
                        index=int(disk.stem),
                        label=disk.name,
                        uuid=f"{path.name}-{disk.stem}",
                        capacity_bytes=disk.stat().st_size,
                        tracking=Tracking.SUPPORTED,
                    )
                    for disk in sorted(path.iterdir())
                ),
            )
            for path in sorted((self.folder / "vms").iterdir())
        ]

    def confirm_gone(self, vm_uuids: Collection[str]) -> frozenset[str]:
        return frozenset(vm_uuids)

    def take_snapshot(self, request: SnapshotRequest) -> Snapshot:
        self._answer()
        home = self.folder / "snapshots" / request.name
        changes = self.folder / "changes"
        changes.mkdir(exist_ok=True)
        vm = request.vm_uuid.removeprefix("uuid-")
        if not home.exists():
            making = Path(tempfile.mkdtemp(dir=self.folder))
            held: dict[str, Any] = {}
            for wanted in request.disks:
                content = self.disk(vm, wanted.key - DISK_KEY_FIRST)
                shutil.copy(content, making / f"{wanted.key}.raw")
                base = wanted.base_change_id
                known = base is not None and (changes / f"{base}.raw").exists()
                change_id = (
                    f"{wanted.lineage}-{hashlib.sha256(request.name.encode()).hexdigest()[:8]}"
                )
                shutil.copy(content, changes / f"{change_id}.raw")
                held[str(wanted.key)] = {
                    "change_id": change_id,
                    "base": base if known else None,
                    "lost": "the bitmap is gone" if base is not None and not known else None,
                    "uuid": f"{vm}-{wanted.key - DISK_KEY_FIRST}",
                }
            (making / "held.json").write_text(json.dumps(held))
            home.parent.mkdir(exist_ok=True)
            making.rename(home)
            self._note("taken", request.name)
        held = json.loads((home / "held.json").read_text())
        return Snapshot(
            reference={"name": request.name, "disks": held},
            moment=request.name,
            consistency=Consistency.FILESYSTEM,
            disks=tuple(
                DiskSnapshot(
                    key=int(key),
                    size_bytes=(home / f"{key}.raw").stat().st_size,
                    uuid=disk["uuid"],
                    change_id=disk["change_id"],
                    base_lost_reason=disk["lost"],
                )
                for key, disk in held.items()
            ),
        )

    @contextlib.contextmanager
    def open_disk(self, reference: dict[str, Any], key: int) -> Iterator[DiskView]:
        self._answer()
        path = self.folder / "snapshots" / reference["name"] / f"{key}.raw"
        if not path.exists():
            raise NotFound("the snapshot is gone", kind="snapshot-lost")
        base = reference["disks"][str(key)]["base"]
        with _serve(path, self.bytes_per_second) as address:
            yield LabView(address, path, self.folder / "changes" / f"{base}.raw" if base else None)

    def remove_snapshot(
        self,
        reference: dict[str, Any],
        outcome: SnapshotOutcome,
        live_change_ids: frozenset[str],
    ) -> None:
        self._answer()
        ours = {disk["change_id"] for disk in reference["disks"].values()}
        lineages = {one.rpartition("-")[0] for one in ours}
        keep = live_change_ids | (ours if outcome is SnapshotOutcome.COMMITTED else set())
        for change_id in self.change_ids - keep:
            if change_id.rpartition("-")[0] in lineages:
                (self.folder / "changes" / f"{change_id}.raw").unlink()
        home = self.folder / "snapshots" / reference["name"]
        if home.exists():
            shutil.rmtree(home)
            self._note("removed", reference["name"])

    def find_snapshot(self, vm_uuid: str, name: str) -> dict[str, Any] | None:
        del vm_uuid
        home = self.folder / "snapshots" / name
        if not home.exists():
            return None
        return {"name": name, "disks": json.loads((home / "held.json").read_text())}

    def close(self) -> None:
        pass

    def _note(self, *words: str) -> None:
        line = " ".join(("0", "lab", *words)) + "\n"
        handle = os.open(self.events, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(handle, line.encode())
        os.close(handle)

    def _answer(self) -> None:
        if self.silent:
            raise Unavailable("the lab does not answer", hint="switch it on")


@contextlib.contextmanager
def _serve(path: Path, bytes_per_second: int | None) -> Iterator[Address]:
    with tempfile.TemporaryDirectory() as folder:
        socket_path = Path(folder) / "nbd"
        slow = ["--filter=rate"] if bytes_per_second else []
        rate = [f"rate={bytes_per_second * 8}"] if bytes_per_second else []
        command = ["nbdkit", "--foreground", "--exit-with-parent", "--readonly"]
        command += ["-U", str(socket_path), *slow, "file", str(path), *rate]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as server:
            waiting = threading.Event()
            for _ in range(int(SOCKET_SECONDS_MAX / 0.01)):
                if socket_path.exists():
                    break
                assert server.poll() is None, server.stderr and server.stderr.read()
                waiting.wait(0.01)
            try:
                yield Address(socket_path=str(socket_path))
            finally:
                server.kill()
