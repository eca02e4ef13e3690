"""A real guest through hub, worker and REST API; restored disks are compared byte for byte."""

import itertools
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from demo import compare
from demo.guest import disk as disks
from demo.guest.vm import Guest
from demo.hub import Hub
from tests.system.conftest import MakeGuest
from tests.system.test_qemu_pitfalls import list_bitmaps, list_ours

pytestmark = pytest.mark.guest

LEASE_SECONDS = 4
GONE_SECONDS_MAX = 30


@pytest.fixture(scope="module")
def allowed() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sendense-test-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def hub(allowed: Path) -> Iterator[Hub]:
    environment = {"SENDENSE_LEASE_SECONDS": str(LEASE_SECONDS)}
    with Hub(allowed / "hub", allowed, environment=environment) as hub:
        hub.wait_until_ready()
        yield hub


@pytest.fixture
def folder(allowed: Path) -> Path:
    """Return the folder of one test's guests, below what the hub may touch."""
    return Path(tempfile.mkdtemp(dir=allowed))


class Protected:
    """A guest known to a hub, with a repository and truths of its own."""

    def __init__(self, hub: Hub, guest: Guest, agent: Path | None = None) -> None:
        self.hub = hub
        self.guest = guest
        self._count = itertools.count()
        socket_path = str(agent or guest.agent_socket)
        vm = {"name": guest.name, "qmp": str(guest.qmp_socket), "agent": socket_path}
        name = guest.uuid
        source = hub.post("/sources", {"name": name, "type": "qemu", "config": {"vms": [vm]}})
        hub.wait_for_job(hub.post(f"/sources/{source['id']}/discover", {})["job_id"])
        config = {"path": str(guest.folder / "repository")}
        made = hub.post("/repositories", {"name": name, "type": "local", "config": config})
        self.repository_id = made["id"]

    def start(self, **more: Any) -> dict[str, Any]:
        """Ask for a backup."""
        body = {"vm_name": self.guest.name, "repository_id": self.repository_id, **more}
        answer = self.hub.post("/backups", body)
        assert isinstance(answer, dict)
        return answer

    def start_with_truth(self, **more: Any) -> dict[str, Any]:
        """Ask for a backup of a paused guest, and copy its disks past the product."""
        self.guest.pause()
        try:
            started = self.start(**more)
            self.hub.wait_for_step(started["job_id"], "take_snapshot")
            for index, disk in enumerate(self.guest.disks):
                disks.copy_truth(disk.path, self.truth(index), image_format=disk.image_format)
        finally:
            self.guest.resume()
        return started

    def finish(self, started: dict[str, Any]) -> dict[str, Any]:
        """Wait for a backup, restore it, and assert that each byte equals the truth."""
        self.hub.wait_for_job(started["job_id"])
        for index in range(len(self.guest.disks)):
            path = self.guest.folder / f"restored-{next(self._count)}.raw"
            body = {
                "backup_id": started["backup_id"],
                "disk_id": index,
                "target": {"type": "file", "path": str(path), "format": "raw"},
            }
            self.hub.wait_for_job(self.hub.post("/restores", body)["job_id"])
            assert compare.is_equal(path, self.truth(index))
        backup = self.hub.get(f"/backups/{started['backup_id']}")
        assert isinstance(backup, dict)
        return backup

    def truth(self, index: int) -> Path:
        return self.guest.folder / f"truth-{index}.raw"

    def assert_nothing_left(self) -> None:
        """Assert that neither inside nor beside QEMU anything of a snapshot remains."""
        # Scratch files lie in the hub's data directory here; QEMU's inside is looked at directly.
        deadline = time.monotonic() + GONE_SECONDS_MAX
        while list_ours(self.guest) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert list_ours(self.guest) == []
        left = (self.hub.folder / "data" / "scratch").glob("*/*")
        assert [path.name for path in left] == []


def test_what_happened_to_the_guest_in_between_is_found_out(
    make_guest: MakeGuest, hub: Hub
) -> None:
    guest = make_guest("reboots")
    guest.start()
    vm = Protected(hub, guest)
    full = vm.finish(vm.start_with_truth())
    assert full["backup_type"] == "full"
    guest.shell("dd if=/dev/urandom of=/mnt/a/one bs=64k count=4; sync")
    guest.quit()
    guest.start()
    rebooted = vm.finish(vm.start_with_truth())
    assert [disk["backup_type"] for disk in rebooted["disks"]] == ["incremental"] * 2
    guest.shell("dd if=/dev/urandom of=/mnt/a/two bs=64k count=4; sync")
    guest.kill()
    guest.start()
    killed = vm.finish(vm.start_with_truth(backup_type="incremental"))
    assert [disk["backup_type"] for disk in killed["disks"]] == ["full"] * 2
    for disk in killed["disks"]:
        assert "QEMU was killed" in disk["type_reason"]
    vm.assert_nothing_left()
    assert [len(list_bitmaps(guest, disk.name)) for disk in guest.disks] == [1, 1]


def test_a_backup_outlives_its_worker_and_leaves_nothing(make_guest: MakeGuest, hub: Hub) -> None:
    guest = make_guest("killed-worker")
    guest.start()
    guest.shell("dd if=/dev/urandom of=/mnt/a/much bs=1M count=40; sync")
    vm = Protected(hub, guest)
    started = vm.start_with_truth()
    workers = psutil.Process(hub.process_id).children()
    assert workers
    for worker in workers:
        worker.send_signal(signal.SIGKILL)
    backup = vm.finish(started)
    assert backup["status"] == "completed"
    vm.assert_nothing_left()
    guest.shell("dd if=/dev/urandom of=/mnt/a/more bs=64k count=4; sync")
    after = vm.finish(vm.start_with_truth())
    assert [disk["backup_type"] for disk in after["disks"]] == ["incremental"] * 2


def test_a_cancelled_backup_leaves_nothing_and_loses_no_changes(
    make_guest: MakeGuest, hub: Hub
) -> None:
    guest = make_guest("cancelled")
    guest.start()
    vm = Protected(hub, guest)
    vm.finish(vm.start_with_truth())
    guest.shell("dd if=/dev/urandom of=/mnt/a/one bs=64k count=4; sync")
    started = vm.start()
    hub.post(f"/jobs/{started['job_id']}/cancel", {})
    assert hub.wait_for_end(started["job_id"])["status"] in {"cancelled", "completed"}
    vm.assert_nothing_left()
    backup = vm.finish(vm.start_with_truth())
    assert [disk["backup_type"] for disk in backup["disks"]] == ["incremental"] * 2


def test_a_required_freeze_that_fails_says_so(
    make_guest: MakeGuest, hub: Hub, folder: Path
) -> None:
    guest = make_guest("frozen")
    guest.start()
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(folder / "mute"))
        mute.listen()
        vm = Protected(hub, guest, agent=folder / "mute")
        started = vm.start(consistency="require")
        job = hub.wait_for_end(started["job_id"])
    assert job["status"] == "failed"
    assert job["error"]["kind"] == "guest-agent-silent"
    vm.assert_nothing_left()
    assert list_bitmaps(guest, "disk0") == []
