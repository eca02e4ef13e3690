"""A vCenter's VMs through hub, worker and REST API; restored disks are compared byte for byte."""

import contextlib
import itertools
import random
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from demo.hub import Hub
from demo.vcenter import content
from demo.vcenter.lab import Vcenter
from sendense.core.units import GIB, KIB, MIB, TIB
from tests.vcsim.fixtures import require_simulator

pytestmark = pytest.mark.timeout(300)

LEASE_SECONDS = 4
WRITE_BYTES = 64 * KIB


@pytest.fixture(scope="module")
def allowed() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sendense-test-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def vcenter(allowed: Path) -> Iterator[Vcenter]:
    require_simulator()
    with Vcenter(allowed / "disks") as lab:
        yield lab


@pytest.fixture(scope="module")
def hub(allowed: Path, vcenter: Vcenter) -> Iterator[Hub]:
    environment = {"SENDENSE_LEASE_SECONDS": str(LEASE_SECONDS)}
    with Hub(allowed / "hub", allowed, environment=environment) as hub:
        hub.wait_until_ready()
        body = {"name": "vc", "type": "vsphere", "config": vcenter.describe()}
        hub.post("/sources", {**body, "credentials": vcenter.credentials})
        yield hub


class Protected:
    """A VM of the vCenter with a repository of its own."""

    def __init__(self, hub: Hub, vcenter: Vcenter, name: str, *sizes: int) -> None:
        self.hub, self.vcenter, self.name = hub, vcenter, name
        self._count = itertools.count()
        vcenter.add_vm(name, *sizes)
        self.discover()
        place = hub.folder.parent / f"repository-{name}"
        made = hub.post(
            "/repositories", {"name": name, "type": "local", "config": {"path": str(place)}}
        )
        self.repository_id = made["id"]

    @property
    def id(self) -> str:
        """Its id in the catalog."""
        (vm,) = self.hub.get("/vms", name=self.name)["vms"]
        return str(vm["id"])

    def discover(self) -> dict[str, Any]:
        """Discover the vCenter and return the job."""
        (source,) = self.hub.get("/sources")["sources"]
        started = self.hub.post(f"/sources/{source['id']}/discover", {})
        return self.hub.wait_for_job(started["job_id"])

    def write(self, key: int, offset: int, data: bytes) -> None:
        """Write as the guest does."""
        self.vcenter.write(self.name, key, offset, data)

    @contextlib.contextmanager
    def busy(self, seed: int) -> Iterator[None]:
        """Let the guest write all the time, to the last 8 MiB of its disks."""
        dice, done = random.Random(seed), threading.Event()
        files = {key: self.vcenter.live(self.name, key) for key in (2000, 2001)}

        def scribble() -> None:
            while not done.wait(0.01):
                path = files[dice.choice(list(files))]
                offset = path.stat().st_size - dice.randrange(1, 128) * WRITE_BYTES
                self.vcenter.content.write(path, offset, dice.randbytes(WRITE_BYTES))

        thread = threading.Thread(target=scribble)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def back_up(self, **more: Any) -> dict[str, Any]:
        """Back up, and return the backup with the reference of the snapshot that it read."""
        before = len(self.vcenter.content.snapshots)
        body = {"vm_name": self.name, "repository_id": self.repository_id, **more}
        started = self.hub.post("/backups", body)
        self.hub.wait_for_job(started["job_id"])
        (snapshot,) = self.vcenter.content.snapshots[before:]
        assert self.vcenter.list_snapshots(self.name) == []
        return {**self.hub.get(f"/backups/{started['backup_id']}"), "snapshot": snapshot}

    def restore(self, backup: dict[str, Any], key: int) -> Path:
        """Restore a disk into a file."""
        path = self.hub.folder.parent / f"{self.name}-{next(self._count)}.raw"
        target = {"type": "file", "path": str(path), "format": "raw"}
        body = {"backup_id": backup["backup_id"], "disk_id": f"disk-{key}", "target": target}
        self.hub.wait_for_job(self.hub.post("/restores", body)["job_id"])
        return path

    def holds(self, backup: dict[str, Any], key: int) -> bool:
        """Whether a restored disk equals what the backup's snapshot held."""
        truth = self.vcenter.snapshot_content(backup["snapshot"], key)
        path = self.restore(backup, key)
        try:
            return content.is_equal(path, truth)
        finally:
            path.unlink()


def types_of(backup: dict[str, Any]) -> list[str]:
    return [disk["backup_type"] for disk in backup["disks"]]


def test_a_full_and_three_incrementals_of_a_busy_vm_restore_each_moment(
    hub: Hub, vcenter: Vcenter, seed: int
) -> None:
    vm = Protected(hub, vcenter, "busy", 96 * MIB, 48 * MIB)
    dice = random.Random(seed)
    vm.write(2000, 8 * MIB, dice.randbytes(64 * MIB))
    with vm.busy(seed):
        backups = [vm.back_up() for _ in range(4)]
    assert [types_of(one) for one in backups] == [["full"] * 2, *[["incremental"] * 2] * 3]
    for backup in backups:
        assert vm.holds(backup, 2000)
        assert vm.holds(backup, 2001)
    first, *others = backups
    # What changed, and the chunks that are sampled: at least ten of each disk.
    assert all(one["bytes_read"] < first["bytes_read"] * 0.75 for one in others)
    warnings = " ".join(first["warnings"])
    assert "reader 'file' is for development only" in warnings


def test_a_tracking_that_hides_one_area_makes_the_comparison_fail(
    hub: Hub, vcenter: Vcenter, seed: int
) -> None:
    vm = Protected(hub, vcenter, "control", GIB)
    dice = random.Random(seed)
    vm.back_up()
    for attempt in range(5):  # a sampled chunk may find it out by chance, once in a hundred times
        vm.write(2000, 600 * MIB, dice.randbytes(WRITE_BYTES))
        vm.write(2000, (700 + attempt) * MIB, dice.randbytes(WRITE_BYTES))
        vcenter.content.skipped = {2000: 1}
        lied = vm.back_up()
        if types_of(lied) == ["incremental"]:
            assert not vm.holds(lied, 2000)
            return
    pytest.fail("each of five lies was found out by sampling")


def test_a_reset_tracking_means_a_full_read_with_the_reason(hub: Hub, vcenter: Vcenter) -> None:
    vm = Protected(hub, vcenter, "reset", 8 * MIB, 8 * MIB)
    vm.back_up()
    vcenter.reset_tracking("reset", 2001)
    vm.write(2000, MIB, b"one")
    vm.write(2001, MIB, b"other")
    backup = vm.back_up()
    assert types_of(backup) == ["incremental", "full"]
    assert "change tracking was reset" in backup["disks"][1]["type_reason"]
    assert vm.holds(backup, 2000)
    assert vm.holds(backup, 2001)


def test_a_change_id_that_vcenter_forgot_means_a_full_read_with_its_words(
    hub: Hub, vcenter: Vcenter
) -> None:
    vm = Protected(hub, vcenter, "forgotten", 8 * MIB)
    vm.back_up()
    vm.write(2000, MIB, b"one")
    vcenter.inject("QueryChangedDiskAreas", "FileFault", file="disk-ctk.vmdk", times=3)
    backup = vm.back_up()
    vcenter.clear_trouble()
    assert types_of(backup) == ["full"]
    assert "FileFault" in backup["disks"][0]["type_reason"]
    assert vm.holds(backup, 2000)


def test_a_grown_disk_is_read_in_full(hub: Hub, vcenter: Vcenter) -> None:
    vm = Protected(hub, vcenter, "grown", 8 * MIB, 8 * MIB)
    vm.write(2000, 0, b"start")
    vm.back_up()
    vcenter.grow_disk("grown", 2000, 16 * MIB)
    vm.write(2000, 12 * MIB, b"behind the old end")
    backup = vm.back_up()
    assert types_of(backup) == ["full", "incremental"]
    assert "grew" in backup["disks"][0]["type_reason"]
    assert vm.holds(backup, 2000)


def test_more_changes_than_a_page_holds_are_all_read(hub: Hub, vcenter: Vcenter) -> None:
    vm = Protected(hub, vcenter, "pages", 512 * MIB)
    vm.back_up()
    with vcenter.live("pages", 2000).open("r+b") as file:
        for number in range(2500):
            file.seek(number * 2 * content.BLOCK)
            file.write(b"changed")
    before = vcenter.calls["QueryChangedDiskAreas"]
    backup = vm.back_up()
    assert vcenter.calls["QueryChangedDiskAreas"] - before == 2
    assert types_of(backup) == ["incremental"]
    assert vm.holds(backup, 2000)


def test_a_sparse_disk_of_two_tib_costs_what_is_in_it(hub: Hub, vcenter: Vcenter) -> None:
    vm = Protected(hub, vcenter, "huge", 2 * TIB)
    vm.write(2000, TIB, b"x" * MIB)
    full = vm.back_up()
    vm.write(2000, 2 * TIB - MIB, b"y" * MIB)
    incremental = vm.back_up()
    assert types_of(incremental) == ["incremental"]
    assert max(full["bytes_read"], incremental["bytes_read"]) < 64 * MIB
    assert vm.holds(incremental, 2000)


def test_snapshots_of_the_user_s_are_never_touched(hub: Hub, vcenter: Vcenter) -> None:
    vm = Protected(hub, vcenter, "users", 8 * MIB)
    vm.back_up()  # switches tracking on
    vcenter.take_snapshot("users", "before the update")
    body = {"vm_name": "users", "repository_id": vm.repository_id}
    with held_back(vcenter, "QueryChangedDiskAreas"):
        started = hub.post("/backups", body)
        hub.wait_for_step(started["job_id"], "take_snapshot")
        names = vcenter.list_snapshots("users")
        assert names[0] == "before the update"
        assert names[1].startswith("sendense hub-")
        assert len(names) == 2
    hub.wait_for_job(started["job_id"])
    assert vcenter.list_snapshots("users") == ["before the update"]
    vcenter.take_snapshot("users", "after the update")
    hub.wait_for_job(hub.post("/backups", body)["job_id"])
    vm.discover()
    assert vcenter.list_snapshots("users") == ["after the update", "before the update"]


@contextlib.contextmanager
def held_back(vcenter: Vcenter, method: str) -> Iterator[None]:
    """Let a method take its time."""
    vcenter.trouble.delays[method] = 3.0
    try:
        yield
    finally:
        vcenter.trouble.delays.clear()


def test_the_existing_client_s_five_requests(hub: Hub, vcenter: Vcenter) -> None:
    vm = Protected(hub, vcenter, "pgtest1", 8 * MIB, 4 * MIB)
    disks = hub.get(f"/vms/{vm.id}/disks")["disks"]
    assert [(one["disk_id"], one["capacity_bytes"], one["job_id"]) for one in disks] == [
        ("disk-2000", 8 * MIB, None),
        ("disk-2001", 4 * MIB, None),
    ]
    started = hub.post(
        "/backups",
        {"vm_name": "pgtest1", "backup_type": "full", "repository_id": vm.repository_id},
    )
    hub.wait_for_job(started["job_id"])
    assert hub.get(f"/backups/{started['backup_id']}")["status"] == "completed"
    assert [one["backup_id"] for one in hub.get("/backups", vm_name="pgtest1")["backups"]] == [
        started["backup_id"]
    ]
    for index in ("0", "1"):
        chain = hub.get("/backups/pgtest1/chain", disk_id=index)
        assert [one["backup_id"] for one in chain["backups"]] == [started["backup_id"]]
    answer = httpx.delete(f"{hub.address}/api/v1/backups/{started['backup_id']}", trust_env=False)
    assert answer.status_code == httpx.codes.OK
    assert hub.get("/backups", vm_name="pgtest1")["backups"] == []


def test_two_disks_of_which_one_cannot_be_backed_up_are_a_backup_that_says_so(
    hub: Hub, vcenter: Vcenter
) -> None:
    vm = Protected(hub, vcenter, "partial", 8 * MIB, 8 * MIB)
    vcenter.edit_disk("partial", 2001, diskMode="independent_persistent")
    vm.discover()
    ready = hub.get(f"/vms/{vm.id}/readiness")
    assert ready["backup_possible"]
    assert any("independent_persistent" in reason for reason in ready["reasons"])
    backup = vm.back_up()
    assert [disk["disk_id"] for disk in backup["disks"]] == ["disk-2000"]
    assert any("independent_persistent" in one["reason"] for one in backup["skipped"])
    assert vm.holds(backup, 2000)


def test_what_a_dead_job_left_goes_with_the_next_discovery(hub: Hub, vcenter: Vcenter) -> None:
    vm = Protected(hub, vcenter, "left", 8 * MIB)
    backup = vm.back_up()
    prefix = vcenter.snapshot_names[-1].rpartition(" ")[0]
    vcenter.take_snapshot("left", f"{prefix} sendense-{backup['job_id']}")
    vcenter.take_snapshot("left", "sendense hub-somebodyelse0000 sendense-job-0000000000000000")
    job = vm.discover()
    assert vcenter.list_snapshots("left") == [
        "sendense hub-somebodyelse0000 sendense-job-0000000000000000"
    ]
    assert any("was left behind; it was removed" in line["message"] for line in job["log"])


def test_a_disk_goes_back_into_a_vm_that_is_off(hub: Hub, vcenter: Vcenter, seed: int) -> None:
    vm = Protected(hub, vcenter, "returned", 16 * MIB, 8 * MIB)
    dice = random.Random(seed)
    vm.write(2000, MIB, dice.randbytes(4 * MIB))
    backup = vm.back_up()
    truth = vcenter.snapshot_content(backup["snapshot"], 2000)
    vm.write(2000, 0, dice.randbytes(16 * MIB))
    body = {
        "backup_id": backup["backup_id"],
        "disk_id": "disk-2000",
        "target": {"type": "vm", "vm_id": vm.id},
    }
    refused = httpx.post(f"{hub.address}/api/v1/restores", json=body, trust_env=False)
    assert refused.status_code == httpx.codes.CONFLICT
    assert "would be overwritten" in refused.json()["detail"]
    started = hub.post("/restores", {**body, "overwrite": True})
    hub.wait_for_job(started["job_id"])
    assert content.is_equal(vcenter.live("returned", 2000), truth)
    shown = hub.get(f"/restores/{started['restore_id']}")
    assert shown["target"]["disk_id"] == "disk-2000"
    again = vm.back_up()
    assert types_of(again) == ["full", "full"]
    assert "was reset" in again["disks"][0]["type_reason"]
    assert vm.holds(again, 2000)


def test_a_disk_does_not_go_into_a_vm_that_runs(hub: Hub, vcenter: Vcenter) -> None:
    vm = Protected(hub, vcenter, "running", 8 * MIB)
    vm.write(2000, 0, b"before")
    backup = vm.back_up()
    vm.write(2000, 0, b"after!")
    vcenter.power("running", on=True)
    body = {
        "backup_id": backup["backup_id"],
        "target": {"type": "vm", "vm_id": vm.id, "disk_id": "disk-2000"},
        "overwrite": True,
    }
    job = hub.wait_for_end(hub.post("/restores", body)["job_id"])
    assert job["status"] == "failed"
    assert job["error"]["kind"] == "vm-not-off"
    assert vcenter.live("running", 2000).read_bytes()[:6] == b"after!"
