"""The demonstration on vSphere: a VM of a simulated vCenter, whose disks never stop changing."""

import contextlib
import random
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo.guest import disk as disks
from demo.hub import Hub
from demo.scenario import describe_backup, figures_of, gather_files
from demo.story import Story
from demo.vcenter import content
from demo.vcenter.lab import Vcenter
from sendense.core.units import GIB, KIB, MIB, format_size

VM_NAME = "pgtest1"
SIZES = {2000: 1 * GIB, 2001: 256 * MIB}
BUSY_BYTES = 16 * MIB  # at the end of each disk, where the guest writes all the time
WRITE_BYTES = 64 * KIB
USERS_SNAPSHOT = "before the update"


@dataclass
class Scene:
    """Everything that takes part.

    Attributes:
        points: for each backup its id and the snapshot that it read.
    """

    folder: Path
    vcenter: Vcenter
    hub: Hub
    story: Story
    source_id: str = ""
    repository_id: str = ""
    points: list[tuple[str, str]] = field(default_factory=list)


@contextlib.contextmanager
def start(folder: Path, story: Story) -> Iterator[Vcenter]:
    """Start a vCenter with one VM, whose disks hold partitions, file systems and real files."""
    with contextlib.ExitStack() as stack:
        with story.step("build", "A vCenter is simulated, with one VM") as told:
            vcenter = stack.enter_context(Vcenter(folder / "disks"))
            vcenter.add_vm(VM_NAME, *SIZES.values())
            files = folder / "files"
            gather_files(files)
            raw = folder / "content.raw"
            disks.make_partitioned(raw, SIZES[2000] - BUSY_BYTES, files, image_format="raw")
            shutil.rmtree(files)
            content.copy_sparse(raw, vcenter.live(VM_NAME, 2000))
            raw.unlink()
            told.append("vcsim (govmomi) with change tracking and disk content put in front of it")
            told.append("the disks are files: reader `file`, as production has VMware's VDDK")
        yield vcenter


def play(scene: Scene) -> None:
    """Run the whole story. Raises SendenseError where it cannot go on."""
    with scene.story.step("start", "The hub starts") as told:
        health = scene.hub.wait_until_ready()
        told.append(f"hub {health.get('version', '?')}: {scene.hub.address}/api/v1/docs")
    _register(scene)
    with _busy(scene.vcenter):
        _back_up(scene, "full", "A full backup, while both disks are written")
        for number in range(1, 4):
            _back_up(scene, "incremental", f"Incremental backup {number}, while both are written")
            if number == 1:
                scene.vcenter.take_snapshot(VM_NAME, USERS_SNAPSHOT)
    _show_chain(scene)
    _restore(scene)
    _control(scene)
    _lose_tracking(scene)
    left = scene.vcenter.list_snapshots(VM_NAME)
    scene.story.check(
        "snapshots",
        "no snapshot of ours is left, and the one that a person took still stands",
        holds=left == [USERS_SNAPSHOT],
    )


@contextlib.contextmanager
def _busy(vcenter: Vcenter) -> Iterator[None]:
    """Let something write to the ends of both disks all the time."""
    dice, done = random.Random(1), threading.Event()
    files = [vcenter.live(VM_NAME, key) for key in SIZES]

    def write() -> None:
        while not done.wait(0.01):
            path = dice.choice(files)
            block = dice.randrange(1, BUSY_BYTES // WRITE_BYTES)
            offset = path.stat().st_size - block * WRITE_BYTES
            vcenter.content.write(path, offset, dice.randbytes(WRITE_BYTES))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _register(scene: Scene) -> None:
    hub, vcenter = scene.hub, scene.vcenter
    with scene.story.step("register", "The vCenter is tried, registered and discovered") as told:
        unpinned = {**vcenter.describe(), "certificate_pem": None}
        body = {"name": "vc1", "type": "vsphere", "config": unpinned}
        seen = hub.post("/sources/test", {"type": "vsphere", "config": unpinned})["certificate"]
        told.append(f"its certificate: {'; '.join(seen['problems'])}; SHA-256 {seen['sha256']}")
        pinned = {**unpinned, "certificate_pem": seen["pem"]}
        body = {**body, "config": pinned, "credentials": vcenter.credentials}
        source = hub.post("/sources", body)
        scene.source_id = source["id"]
        told.extend(source["warnings"])
        hub.wait_for_job(hub.post(f"/sources/{source['id']}/discover", {})["job_id"])
        config = {"path": str(scene.folder / "repository")}
        made = hub.post("/repositories", {"name": "vc", "type": "local", "config": config})
        scene.repository_id = made["id"]
        vm = hub.get("/vms", name=VM_NAME)["vms"][0]
        told.append(f"VM {vm['path']}: {vm['power_state']}, {vm['disk_count']} disks")
        found = hub.get(f"/vms/{vm['id']}/disks")["disks"]
        for disk in found:
            told.append(f"{disk['disk_id']} {disk['label']}: {format_size(disk['capacity_bytes'])}")
    scene.story.check(
        "disks",
        "disk-2000 and disk-2001 are in the catalog before any backup, without a job",
        holds=[(one["disk_id"], one["job_id"]) for one in found]
        == [("disk-2000", None), ("disk-2001", None)],
    )


def _back_up(scene: Scene, backup_type: str, title: str) -> dict[str, Any]:
    point = len(scene.points)
    before = len(scene.vcenter.content.snapshots)
    with scene.story.step(f"backup_{point}", title) as told:
        body = {"vm_name": VM_NAME, "repository_id": scene.repository_id, "backup_type": "auto"}
        accepted = scene.hub.post("/backups", body)
        scene.hub.wait_for_job(accepted["job_id"])
        backup = scene.hub.get(f"/backups/{accepted['backup_id']}")
        told.extend(describe_backup(backup))
    scene.points.append((backup["backup_id"], scene.vcenter.content.snapshots[before]))
    scene.story.figures[f"backup_{point}"] = figures_of(backup)
    scene.story.check(
        f"type_{point}",
        f"it was {backup_type}",
        holds=backup["backup_type"] == backup_type and backup["status"] == "completed",
    )
    return dict(backup)


def _show_chain(scene: Scene) -> None:
    with scene.story.step("chain", "List and chain") as told:
        chains = scene.hub.get(f"/backups/{VM_NAME}/chain")["chains"]
        for chain in chains:
            told.append(
                f"{chain['disk_id']}: {chain['total_backups']} backups, "
                f"{format_size(chain['total_size_bytes'])}"
            )
    wanted = [backup_id for backup_id, _ in scene.points]
    scene.story.check(
        "chain",
        "each disk's chain holds the full backup and the three incremental ones, in order",
        holds=all([one["backup_id"] for one in chain["backups"]] == wanted for chain in chains)
        and len(chains) == len(SIZES),
    )


def _restore(scene: Scene) -> None:
    with scene.story.step("restore", "Every point of each disk is restored and compared"):
        equal = {
            (number, key): _is_equal(scene, number, key)
            for number in range(len(scene.points))
            for key in SIZES
        }
    for (number, key), holds in equal.items():
        scene.story.check(
            f"equal_{number}_{key}",
            f"point {number + 1}, disk-{key}: all {SIZES[key]:,} bytes equal what vCenter's"
            " snapshot held",
            holds=holds,
        )


def _is_equal(scene: Scene, number: int, key: int) -> bool:
    backup_id, snapshot = scene.points[number]
    path = scene.folder / "restored.raw"
    target = {"type": "file", "path": str(path), "format": "raw"}
    body = {"backup_id": backup_id, "disk_id": f"disk-{key}", "target": target}
    scene.hub.wait_for_job(scene.hub.post("/restores", body)["job_id"])
    try:
        return content.is_equal(path, scene.vcenter.snapshot_content(snapshot, key))
    finally:
        path.unlink()


def _control(scene: Scene) -> None:
    """Let vCenter hide an area that changed: the comparison has to fail."""
    vcenter = scene.vcenter
    for offset in (400 * MIB, 500 * MIB, 600 * MIB):
        vcenter.write(VM_NAME, 2000, offset, b"hidden" * 10_000)
    vcenter.content.skipped = {2000: 1}
    backup = _back_up(scene, "incremental", "Control: vCenter does not tell of one changed area")
    number = len(scene.points) - 1
    scene.story.check(
        "control",
        "with one changed area skipped the comparison fails",
        holds=backup["backup_type"] == "incremental" and not _is_equal(scene, number, 2000),
    )


def _lose_tracking(scene: Scene) -> None:
    for key in SIZES:
        scene.vcenter.reset_tracking(VM_NAME, key)
    backup = _back_up(scene, "full", "The change tracking was reset: everything is read")
    reasons = [disk["type_reason"] for disk in backup["disks"]]
    scene.story.check(
        "reset",
        f"the reason is told: {reasons[0]}",
        holds=all("change tracking was reset" in reason for reason in reasons),
    )
    number = len(scene.points) - 1
    scene.story.check(
        "equal_again",
        "and it restores bit for bit, though the backup before was lied to",
        holds=all(_is_equal(scene, number, key) for key in SIZES),
    )
