"""The demonstration itself: one guest, three backups, four restores, every byte compared."""

import shutil
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo import compare
from demo.guest import disk as disks
from demo.guest import image
from demo.guest.vm import Disk, Guest
from demo.hub import DemoFailed, Hub
from demo.story import Story
from sendense.core.units import GIB, MIB, format_size

VM_NAME = "demo-vm"
VM_UUID = "6f1c6a52-7e0b-4d53-9a5e-3c1f0d9b2a77"
SYSTEM_BYTES = 1 * GIB
DATA_BYTES = 256 * MIB
KNOWN_FILES = 12
WRITER = (
    "n=0; while :; do n=$((n+1)); echo $n > /mnt/system/counter;"
    " dd if=/dev/urandom of=/mnt/system/busy bs=64k count=8 conv=notrunc;"
    " dd if=/dev/urandom of=/mnt/data/busy bs=64k count=4 conv=notrunc; sync; usleep 20000; done"
)


@dataclass
class Scene:
    """Everything that takes part.

    Attributes:
        folder: holds disks, truths, restores and the repository; sockets too, so its path is short.
        points: backup ids in order.
    """

    folder: Path
    guest: Guest
    hub: Hub
    story: Story
    repository_id: str = ""
    points: list[str] = field(default_factory=list)

    def truth(self, point: int, disk: int) -> Path:
        """Return where the independent copy of a disk at a point lies."""
        return self.folder / f"truth-{point}-{disk}.raw"

    def restored(self, point: int, disk: int) -> Path:
        """Return where a restored disk lies."""
        return self.folder / "restored" / f"point-{point}-disk-{disk}.raw"


def make_guest(folder: Path, story: Story) -> Guest:
    """Build the guest's kernel, initramfs and disks."""
    with story.step("build", "A guest is built from Debian packages") as told:
        made = image.build()
        files = folder / "files"
        gather_files(files)
        disks.make_partitioned(folder / "system.qcow2", SYSTEM_BYTES, files, image_format="qcow2")
        disks.make_filesystem(folder / "data.qcow2", DATA_BYTES, image_format="qcow2")
        content = sum(path.stat().st_size for path in files.rglob("*") if path.is_file())
        shutil.rmtree(files)
        told.append(
            f"disk 0: {format_size(SYSTEM_BYTES)}, partition table and ext4 with "
            f"{format_size(content)} of files; disk 1: {format_size(DATA_BYTES)}, ext4"
        )
    return Guest(
        name=VM_NAME,
        uuid=VM_UUID,
        folder=folder / "guest",
        image=made,
        disks=[
            Disk("system", folder / "system.qcow2", "qcow2"),
            Disk("data", folder / "data.qcow2", "qcow2"),
        ],
        mounts=[("/dev/vda1", "/mnt/system"), ("/dev/vdb", "/mnt/data")],
    )


def gather_files(folder: Path) -> None:
    """Fill a folder with real files: the standard library of the Python that runs this."""
    source = Path(sysconfig.get_paths()["stdlib"])
    shutil.copytree(
        source,
        folder,
        symlinks=True,
        ignore=shutil.ignore_patterns("site-packages", "dist-packages", "test", "__pycache__"),
    )


def play(scene: Scene, *, skip_control: bool = False) -> None:
    """Run the whole story. Raises SendenseError where it cannot go on."""
    _start(scene)
    _register(scene)
    _back_up(scene, "full", "A full backup, while the guest goes on writing")
    _write_known_files(scene)
    _back_up(scene, "incremental", "An incremental backup, while the guest goes on writing")
    _show_chain(scene)
    _restore(scene)
    if not skip_control:
        _control(scene)
    _back_up_frozen(scene)


def _start(scene: Scene) -> None:
    with scene.story.step("start", "Guest and hub start") as told, ThreadPoolExecutor(1) as pool:
        booting = pool.submit(scene.guest.start)
        health = scene.hub.wait_until_ready()
        seconds = booting.result()
        scene.guest.spawn(WRITER)
        told.append(f"guest up in {seconds:.1f} s, hub {health.get('version', '?')} is well")
        told.append(f"hub: {scene.hub.address}/api/v1/docs")


def _register(scene: Scene) -> None:
    hub = scene.hub
    with scene.story.step("register", "Source and repository are registered, VMs found") as told:
        config = {
            "vms": [
                {
                    "name": VM_NAME,
                    "qmp": str(scene.guest.qmp_socket),
                    "agent": str(scene.guest.agent_socket),
                }
            ]
        }
        source = hub.post("/sources", {"name": "demo", "type": "qemu", "config": config})
        job = hub.post(f"/sources/{source['id']}/discover", {})
        hub.wait_for_job(job["job_id"])
        path = str(scene.folder / "repository")
        body = {"name": "demo-repository", "type": "local", "config": {"path": path}}
        repository = hub.post("/repositories", body)
        scene.repository_id = repository.get("repository_id") or repository["id"]
        vm = hub.get("/vms")["vms"][0]
        told.append(f"VM {vm['name']}: {vm['power_state']}, {vm['disk_count']} disks")
        for disk in hub.get(f"/vms/{vm['id']}/disks")["disks"]:
            told.append(f"{disk['disk_id']} {disk['label']}: {format_size(disk['capacity_bytes'])}")
    empty = hub.get("/backups")
    scene.story.check(
        "empty_list",
        'the empty list is exactly {"backups": [], "total": 0}',
        holds=empty == {"backups": [], "total": 0},
    )


def _back_up(scene: Scene, backup_type: str, title: str) -> None:
    """Back up all disks, and copy them past the product at the same moment."""
    point = len(scene.points)
    hub = scene.hub
    with scene.story.step(f"backup_{point}", title) as told:
        scene.guest.pause()
        try:
            accepted = hub.post("/backups", _request(scene, backup_type))
            hub.wait_for_step(accepted["job_id"], "take_snapshot")
            for number, disk in enumerate(scene.guest.disks):
                disks.copy_truth(
                    disk.path, scene.truth(point, number), image_format=disk.image_format
                )
        finally:
            scene.guest.resume()
        before = _read_counter(scene)
        hub.wait_for_job(accepted["job_id"])
        written = _read_counter(scene) - before
        backup = hub.get(f"/backups/{accepted['backup_id']}")
        scene.points.append(backup["backup_id"])
        told.extend(describe_backup(backup))
        told.append(f"the guest wrote {written} rounds during the transfer")
    scene.story.figures[f"backup_{point}"] = figures_of(backup)
    scene.story.check(
        f"type_{point}",
        f"it was {backup_type}"
        + (f" (instead: {backup['type_reason']})" if backup["backup_type"] != backup_type else ""),
        holds=backup["backup_type"] == backup_type and backup["status"] == "completed",
    )


def _request(scene: Scene, backup_type: str, **more: Any) -> dict[str, Any]:
    return {
        "vm_name": VM_NAME,
        "repository_id": scene.repository_id,
        "backup_type": backup_type,
        "tags": {"story": "demo"},
        **more,
    }


def _read_counter(scene: Scene) -> int:
    return int(scene.guest.shell("cat /mnt/system/counter").strip() or 0)


def describe_backup(backup: dict[str, Any]) -> list[str]:
    """Return what there is to tell of a backup, line by line."""
    sizes = {name: format_size(backup[name]) for name in ("bytes_read", "total_bytes", "bytes_new")}
    lines = [
        "{bytes_read} of {total_bytes} read, {bytes_new} new stored; ".format(**sizes)
        + f"consistency {backup['consistency']}; {backup['backup_id']}"
    ]
    for disk in backup["disks"]:
        reason = f" ({disk['type_reason']})" if disk["type_reason"] else ""
        lines.append(
            f"{disk['disk_id']} {disk['backup_type']}{reason}: "
            f"read {format_size(disk['bytes_read'])}"
        )
    return lines


def figures_of(backup: dict[str, Any]) -> dict[str, Any]:
    """Return a backup's figures for programs."""
    names = ("backup_type", "consistency", "total_bytes", "bytes_read", "bytes_new")
    return {name: backup[name] for name in (*names, "bytes_deduplicated")}


def _write_known_files(scene: Scene) -> None:
    with scene.story.step("write", "The guest writes known files and deletes some") as told:
        lines = scene.guest.shell(
            f"for i in $(seq {KNOWN_FILES}); do for d in system data; do"
            " dd if=/dev/urandom of=/mnt/$d/known-$i bs=64k count=4 2>/dev/null; done; done;"
            " rm -rf /mnt/system/email /mnt/system/json; sync; ls /mnt/system/known-* | wc -l"
        )
        told.append(f"{int(lines) * 2} files, {format_size(KNOWN_FILES * 2 * 256 * 1024)}")


def _show_chain(scene: Scene) -> None:
    hub = scene.hub
    with scene.story.step("chain", "List and chain") as told:
        listed = hub.get("/backups", vm_name=VM_NAME)
        chains = hub.get(f"/backups/{VM_NAME}/chain")["chains"]
        for chain in chains:
            told.append(
                f"{chain['disk_id']}: {chain['total_backups']} backups, "
                f"{format_size(chain['total_size_bytes'])}"
            )
    scene.story.check(
        "chain",
        "each disk's chain begins with the full backup and ends with the incremental one",
        holds=listed["total"] == len(scene.points)
        and len(chains) == len(scene.guest.disks)
        and all(
            chain["full_backup_id"] == scene.points[0]
            and chain["latest_backup_id"] == scene.points[-1]
            and [one["backup_id"] for one in chain["backups"]] == scene.points
            for chain in chains
        ),
    )


def _restore(scene: Scene) -> None:
    hub = scene.hub
    (scene.folder / "restored").mkdir()
    with scene.story.step("restore", "Both points of each disk are restored") as told:
        started = time.monotonic()
        total = 0
        for point, backup_id in enumerate(scene.points):
            for number in range(len(scene.guest.disks)):
                path = scene.restored(point, number)
                target = {"type": "file", "path": str(path), "format": "raw"}
                body = {"backup_id": backup_id, "disk_id": number, "target": target}
                hub.wait_for_job(hub.post("/restores", body)["job_id"])
                total += path.stat().st_size
        rate = total / (time.monotonic() - started)
        told.append(f"{format_size(total)} of disks at {format_size(int(rate))}/s")
    for point in range(len(scene.points)):
        for number in range(len(scene.guest.disks)):
            restored, truth = scene.restored(point, number), scene.truth(point, number)
            size = truth.stat().st_size
            scene.story.check(
                f"equal_{point}_{number}",
                f"point {point + 1}, disk {number}: all {size:,} bytes equal the copy made past "
                "the product at that moment",
                holds=compare.is_equal(restored, truth),
            )


def _control(scene: Scene) -> None:
    for number in range(len(scene.guest.disks)):
        with scene.story.step(f"control_{number}", f"Control on disk {number}") as told:
            found = compare.run_control(
                scene.restored(0, number),
                scene.restored(1, number),
                scene.truth(1, number),
                scene.folder / "control.raw",
            )
            told.append(f"{found.changed} blocks of {format_size(compare.BLOCK)} changed")
        scene.story.check(
            f"control_{number}",
            "with one changed block skipped the comparison fails, with it applied it holds",
            holds=found.passed,
        )


def _back_up_frozen(scene: Scene) -> None:
    hub = scene.hub
    with scene.story.step("backup_frozen", "A third backup, file systems frozen") as told:
        body = _request(scene, "auto", consistency="require")
        accepted = hub.post("/backups", body)
        hub.wait_for_job(accepted["job_id"])
        backup = hub.get(f"/backups/{accepted['backup_id']}")
        told.extend(describe_backup(backup))
    scene.story.figures["backup_frozen"] = figures_of(backup)
    scene.story.check(
        "frozen",
        "the guest agent froze the file systems for the moment, and the guest writes again",
        holds=backup["consistency"] == "filesystem" and _still_writes(scene),
    )


def _still_writes(scene: Scene) -> bool:
    first = _read_counter(scene)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if _read_counter(scene) > first:
            return True
        time.sleep(0.1)
    raise DemoFailed("the guest stopped writing")
