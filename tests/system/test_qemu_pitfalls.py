"""Each known pitfall of backing up a running QEMU, provoked on a real guest."""

import hashlib
import resource
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest

from demo.guest import disk as disks
from demo.guest.vm import Guest
from sendense.connectors.base import (
    Consistency,
    ConsistencyWish,
    DiskView,
    SnapshotOutcome,
    SnapshotRequest,
)
from sendense.connectors.qemu import guard
from sendense.connectors.qemu.agent import AgentSilent
from sendense.connectors.qemu.source import QemuSource
from sendense.core.errors import Conflict, NotFound, Unavailable
from sendense.core.units import KIB, MIB
from sendense.nbd.client import Client
from tests.system.conftest import MakeGuest, open_source
from tests.system.copying import Chain, request

pytestmark = pytest.mark.guest


@pytest.fixture
def source(shared_guest: Guest) -> Iterator[QemuSource]:
    source = open_source(shared_guest)
    yield source
    assert list_ours(shared_guest) == []
    for disk in shared_guest.disks:
        for bitmap in list_bitmaps(shared_guest, disk.name):
            shared_guest.monitor.execute(
                "block-dirty-bitmap-remove", node=disk.name, name=bitmap["name"]
            )
    assert shared_guest.monitor.execute("query-status")["running"]


def list_ours(guest: Guest) -> list[str]:
    """Return everything of the connector inside and beside QEMU but bitmaps."""
    execute = guest.monitor.execute
    found = [
        node["node-name"]
        for node in execute("query-named-block-nodes", flat=True)
        if node["node-name"].startswith("sendense")
    ]
    found += [export["id"] for export in execute("query-block-exports")]
    found += [
        entry["name"]
        for entry in execute("qom-list", path="/objects")
        if entry["name"].startswith("sendense")
    ]
    return found + [path.name for path in (guest.folder / "scratch").glob("*/*")]


def list_bitmaps(guest: Guest, node: str) -> list[dict[str, Any]]:
    for found in guest.monitor.execute("query-named-block-nodes", flat=True):
        if found["node-name"] == node:
            # Filters keep nameless bitmaps of their own.
            return [b for b in found.get("dirty-bitmaps", []) if "name" in b]
    raise AssertionError(node)


def read_after(guest: Guest, script: str, disk: AbstractContextManager[DiskView]) -> None:
    """Run a script in the guest while a snapshot's disk is open, then read where it wrote."""
    with disk as view, Client.connect(view.address) as client:
        client.read(0, 4096)
        guest.shell(script)
        client.read(512 * 64 * KIB, 4096)


def test_a_full_fleecing_file_fails_the_reader_and_never_the_guest(
    make_guest: MakeGuest, folder: Path
) -> None:
    guest = make_guest()
    guest.start()
    source = open_source(guest)
    chain = Chain(source, guest, folder)
    # Old content behind 24 MiB cannot be saved; the guest's own image stays far below that.
    guest.shell("dd if=/dev/urandom of=/dev/vdb bs=64k seek=512 count=1; sync")
    snapshot = chain.take()
    limit = 24 * MIB
    psutil.Process(guest.process_id).rlimit(psutil.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    overwrite = "dd if=/dev/urandom of=/dev/vdb bs=64k seek=512 count=1; sync"
    with pytest.raises(Unavailable) as caught:
        read_after(guest, overwrite, source.open_disk(snapshot.reference, 2001))
    assert caught.value.kind == "fleecing-full"
    with pytest.raises(Unavailable) as again:
        read_after(guest, "true", source.open_disk(snapshot.reference, 2001))
    assert again.value.kind == "fleecing-full"
    assert guest.monitor.execute("query-status")["status"] == "running"
    assert guest.shell("echo alive > /mnt/b/alive; sync; cat /mnt/b/alive") == "alive\n"
    chain.settle(SnapshotOutcome.DISCARDED)
    assert list_ours(guest) == []


def test_a_guest_that_answers_is_frozen_and_thawed(shared_guest: Guest, source: QemuSource) -> None:
    wish = request(shared_guest, "frozen", {2000: None}, consistency=ConsistencyWish.REQUIRE)
    snapshot = source.take_snapshot(wish)
    assert snapshot.consistency is Consistency.FILESYSTEM
    assert snapshot.warnings == ()
    assert shared_guest.shell("echo x > /mnt/a/x; sync; cat /mnt/a/x") == "x\n"
    source.remove_snapshot(snapshot.reference, SnapshotOutcome.DISCARDED, frozenset())


def test_a_silent_agent_costs_consistency_or_fails_where_it_is_required(
    shared_guest: Guest, folder: Path
) -> None:
    # A socket on which nobody answers stands for an agent that hangs.
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(folder / "mute"))
        mute.listen()
        config = {
            "vms": [
                {"name": "g", "qmp": str(shared_guest.qmp_socket), "agent": str(folder / "mute")}
            ]
        }
        source = QemuSource(config, Path, shared_guest.folder / "scratch")
        wish = request(shared_guest, "mute", {2000: None}, consistency=ConsistencyWish.REQUIRE)
        with pytest.raises(AgentSilent) as caught:
            source.take_snapshot(wish)
        assert caught.value.kind == "guest-agent-silent"
        assert list_ours(shared_guest) == []
        assert list_bitmaps(shared_guest, "disk0") == []
        wish = request(shared_guest, "mute", {2000: None}, consistency=ConsistencyWish.PREFER)
        snapshot = source.take_snapshot(wish)
    assert snapshot.consistency is Consistency.CRASH
    assert "guest agent" in snapshot.warnings[0]
    source.remove_snapshot(snapshot.reference, SnapshotOutcome.DISCARDED, frozenset())


def test_the_agent_of_a_paused_vm_is_not_asked_and_the_vm_stays_paused(
    shared_guest: Guest, source: QemuSource
) -> None:
    shared_guest.pause()
    try:
        wish = request(shared_guest, "paused", {2000: None}, consistency=ConsistencyWish.PREFER)
        snapshot = source.take_snapshot(wish)
        assert snapshot.consistency is Consistency.CRASH
        assert "paused" in snapshot.warnings[0]
        source.remove_snapshot(snapshot.reference, SnapshotOutcome.DISCARDED, frozenset())
        assert not shared_guest.monitor.execute("query-status")["running"]
        assert source.list_vms()[0].power_state == "paused"
    finally:
        shared_guest.resume()


KILLED_WHILE = """
import os, sys
from pathlib import Path
from sendense.connectors.qemu import guard
from sendense.connectors.qemu.qmp import Qmp
from sendense.core.clock import SystemClock
qmp = Qmp(Path(sys.argv[1]))
with {body}:
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(
    "body",
    [
        "guard.paused(qmp, SystemClock(), [])",
        "guard.frozen(qmp, Path(sys.argv[2]), [])",
        "guard.frozen(qmp, Path(sys.argv[2]), []), guard.paused(qmp, SystemClock(), [])",
    ],
)
def test_a_guest_left_paused_or_frozen_by_a_killed_worker_is_freed_by_the_next(
    shared_guest: Guest, source: QemuSource, body: str
) -> None:
    program = KILLED_WHILE.format(body=body)
    arguments = [str(shared_guest.qmp_socket), str(shared_guest.agent_socket)]
    done = subprocess.run([sys.executable, "-c", program, *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    marks = {entry["name"] for entry in shared_guest.monitor.execute("qom-list", path="/objects")}
    assert marks & {guard.PAUSED, guard.FROZEN}
    source.list_vms()
    assert shared_guest.monitor.execute("query-status")["running"]
    assert shared_guest.shell("echo y > /mnt/a/y; sync; cat /mnt/a/y") == "y\n"


def test_a_snapshot_is_found_by_name_and_not_taken_twice(
    shared_guest: Guest, source: QemuSource
) -> None:
    wish = request(shared_guest, "twice", {2000: None, 2001: None})
    assert source.find_snapshot(shared_guest.uuid, "twice") is None
    first = source.take_snapshot(wish)
    other = open_source(shared_guest)
    assert other.take_snapshot(wish) == first
    reference = other.find_snapshot(shared_guest.uuid, "twice")
    assert reference == first.reference
    assert reference is not None
    for _ in range(2):
        other.remove_snapshot(reference, SnapshotOutcome.DISCARDED, frozenset())
    assert source.find_snapshot(shared_guest.uuid, "twice") is None


def test_half_a_snapshot_is_removed_and_taken_anew(shared_guest: Guest, source: QemuSource) -> None:
    wish = request(shared_guest, "half", {2000: None, 2001: None})
    first = source.take_snapshot(wish)
    export = first.reference["disks"][0]["export"]
    shared_guest.monitor.execute("block-export-del", id=export, mode="hard")
    second = source.take_snapshot(wish)
    assert second.moment != first.moment
    assert len(list_bitmaps(shared_guest, "disk0")) == 1
    source.remove_snapshot(second.reference, SnapshotOutcome.DISCARDED, frozenset())
    assert list_bitmaps(shared_guest, "disk0") == []


def test_leftovers_of_another_job_are_cleared_without_losing_its_changes(
    shared_guest: Guest, source: QemuSource, folder: Path
) -> None:
    chain = Chain(source, shared_guest, folder)
    chain.back_up()
    chain.take("never-removed")
    shared_guest.shell("dd if=/dev/urandom of=/mnt/a/between bs=64k count=4; sync")
    chain.take("next")
    assert chain.snapshot is not None
    assert any("leftovers" in warning for warning in chain.snapshot.warnings)
    assert chain.list_reasons() == [None, None]
    chain.transfer()
    chain.compare()
    chain.settle()


@pytest.mark.parametrize("outcome", SnapshotOutcome)
def test_a_late_clean_up_does_not_touch_the_snapshot_that_stands(
    shared_guest: Guest, source: QemuSource, folder: Path, outcome: SnapshotOutcome
) -> None:
    chain = Chain(source, shared_guest, folder)
    chain.back_up()
    old = chain.snapshot
    assert old is not None
    shared_guest.shell("dd if=/dev/urandom of=/mnt/a/late bs=64k count=4; sync")
    chain.take()
    live = frozenset(change_id for change_id in chain.change_ids.values() if change_id)
    source.remove_snapshot(old.reference, outcome, live)
    chain.transfer()
    chain.compare()
    chain.settle()
    shared_guest.shell("dd if=/dev/urandom of=/mnt/a/later bs=64k count=4; sync")
    chain.back_up()
    assert chain.list_reasons() == [None, None]


def test_a_missing_link_between_bitmaps_leads_to_a_full_read(
    shared_guest: Guest, source: QemuSource, folder: Path
) -> None:
    chain = Chain(source, shared_guest, folder)
    chain.back_up()
    snapshot = chain.take("crashed")
    new = snapshot.disks[0].change_id
    assert new is not None
    bitmap = new.rsplit(":", maxsplit=1)[-1]
    shared_guest.monitor.execute("block-dirty-bitmap-remove", node="disk0", name=bitmap)
    chain.settle(SnapshotOutcome.DISCARDED)
    chain.take("after")
    interrupted, kept = chain.list_reasons()
    assert interrupted is not None
    assert "interrupted" in interrupted
    assert kept is None
    chain.transfer()
    chain.compare()
    chain.settle()


def test_an_nbd_server_of_somebody_else_is_a_conflict(
    shared_guest: Guest, source: QemuSource, folder: Path
) -> None:
    address = {"type": "unix", "data": {"path": str(folder / "foreign")}}
    shared_guest.monitor.execute("nbd-server-start", addr=address)
    try:
        with pytest.raises(Conflict) as caught:
            source.take_snapshot(request(shared_guest, "busy", {2000: None}))
        assert caught.value.kind == "nbd-server-busy"
    finally:
        shared_guest.monitor.execute("nbd-server-stop")


def test_two_lineages_keep_their_own_bitmaps(shared_guest: Guest, source: QemuSource) -> None:
    changes = {}
    for lineage in ("first", "second"):
        wish = request(shared_guest, f"{lineage}-full", {2000: None}, lineage=lineage)
        snapshot = source.take_snapshot(wish)
        changes[lineage] = snapshot.disks[0].change_id
        live = frozenset(change for change in changes.values() if change)
        source.remove_snapshot(snapshot.reference, SnapshotOutcome.COMMITTED, live)
    shared_guest.shell("dd if=/dev/urandom of=/dev/vda bs=64k seek=1500 count=1; sync")
    for lineage, base in list(changes.items()):
        wish = request(shared_guest, f"{lineage}-next", {2000: base}, lineage=lineage)
        snapshot = source.take_snapshot(wish)
        assert snapshot.disks[0].base_lost_reason is None
        with source.open_disk(snapshot.reference, 2000) as view:
            assert any(extent.start == 1500 * 64 * KIB for extent in view.list_changed())
        changes[lineage] = snapshot.disks[0].change_id
        live = frozenset(change for change in changes.values() if change)
        source.remove_snapshot(snapshot.reference, SnapshotOutcome.COMMITTED, live)
    assert len(list_bitmaps(shared_guest, "disk0")) == 2


def test_a_closed_bitmap_is_what_gets_exported(shared_guest: Guest, source: QemuSource) -> None:
    # QEMU refuses to export an enabled bitmap read-only, so the old one is closed first.
    full = source.take_snapshot(request(shared_guest, "open", {2000: None}))
    base = full.disks[0].change_id
    assert base is not None
    source.remove_snapshot(full.reference, SnapshotOutcome.COMMITTED, frozenset({base}))
    snapshot = source.take_snapshot(request(shared_guest, "closed", {2000: base}))
    recording = {b["name"]: b["recording"] for b in list_bitmaps(shared_guest, "disk0")}
    assert recording[base.rsplit(":", maxsplit=1)[-1]] is False
    assert sorted(recording.values()) == [False, True]
    with source.open_disk(snapshot.reference, 2000) as view:
        list(view.list_changed())
    source.remove_snapshot(snapshot.reference, SnapshotOutcome.DISCARDED, frozenset({base}))
    assert [b["recording"] for b in list_bitmaps(shared_guest, "disk0")] == [True]


def test_many_connections_read_the_same_bytes(shared_guest: Guest, source: QemuSource) -> None:
    snapshot = source.take_snapshot(request(shared_guest, "many", {2001: None}))
    started = threading.Barrier(4)

    def digest(_: int) -> str:
        total = hashlib.sha256()
        with Client.connect(view.address) as client:
            started.wait(timeout=30)
            for start in range(0, view.size_bytes, MIB):
                total.update(client.read(start, min(MIB, view.size_bytes - start)))
        return total.hexdigest()

    with source.open_disk(snapshot.reference, 2001) as view, ThreadPoolExecutor(4) as pool:
        shared_guest.shell("dd if=/dev/urandom of=/mnt/b/meanwhile bs=64k count=16; sync")
        assert len(set(pool.map(digest, range(4)))) == 1
    source.remove_snapshot(snapshot.reference, SnapshotOutcome.DISCARDED, frozenset())


def test_an_unknown_vm_is_not_found(source: QemuSource) -> None:
    wish = SnapshotRequest(vm_uuid=str(uuid.uuid4()), name="x", disks=())
    with pytest.raises(NotFound) as caught:
        source.take_snapshot(wish)
    assert caught.value.kind == "vm-unknown"


def test_an_external_snapshot_hides_the_bitmap_and_after_a_restart_all_is_gone(
    make_guest: MakeGuest, folder: Path
) -> None:
    guest = make_guest()
    guest.start()
    chain = Chain(open_source(guest), guest, folder)
    chain.back_up()
    overlay = folder / "overlay.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", str(guest.disks[0].path),
         "-F", "qcow2", str(overlay), str(96 * MIB)],
        check=True,
    )  # fmt: skip
    guest.monitor.execute(
        "blockdev-add", driver="qcow2", node_name="overlay", backing=None,
        file={"driver": "file", "filename": str(overlay)},
    )  # fmt: skip
    guest.monitor.execute("blockdev-snapshot", node="disk0", overlay="overlay")
    guest.shell("dd if=/dev/urandom of=/mnt/a/above bs=64k count=4; sync")
    guest.pause()
    wish = request(guest, "above", chain.change_ids)
    snapshot = chain.source.take_snapshot(wish)
    disks.copy_truth(overlay, chain.truth_of(2000), image_format="qcow2")
    disks.copy_truth(guest.disks[1].path, chain.truth_of(2001), image_format="qcow2")
    guest.resume()
    chain.snapshot = snapshot
    below, other = chain.list_reasons()
    assert below is not None
    assert "external snapshot" in below
    assert other is None
    chain.transfer()
    chain.compare()
    # QEMU dies with the snapshot in place; settling it afterwards is success, twice.
    guest.kill()
    with pytest.raises(NotFound) as caught:
        chain.transfer()
    assert caught.value.kind == "snapshot-lost"
    live = frozenset(change for change in chain.change_ids.values() if change)
    for _ in range(2):
        chain.source.remove_snapshot(snapshot.reference, SnapshotOutcome.DISCARDED, live)
    assert chain.source.find_snapshot(guest.uuid, "above") is None


def test_older_ways_to_attach_disks_work_and_others_are_excluded_with_a_reason(
    make_guest: MakeGuest, folder: Path
) -> None:
    disks.make_empty(folder / "scsi.img", 8 * MIB, image_format="qcow2")
    disks.make_empty(folder / "legacy.img", 8 * MIB, image_format="qcow2")
    disks.make_empty(folder / "ide.img", 8 * MIB, image_format="qcow2")
    disks.make_empty(folder / "cd.img", 8 * MIB, image_format="qcow2")
    for name in ("thread-virtio", "thread-scsi"):
        disks.make_empty(folder / f"{name}.img", 8 * MIB, image_format="qcow2")
    guest = make_guest(
        arguments=[
            "-device", "virtio-scsi-pci,id=bus",
            "-drive", f"if=none,id=s,file={folder}/scsi.img,format=qcow2",
            "-device", "scsi-hd,bus=bus.0,drive=s,id=scsi-disk,serial=S1",
            "-drive", f"if=virtio,file={folder}/legacy.img,format=qcow2",
            "-drive", f"if=none,id=i,file={folder}/ide.img,format=qcow2",
            "-device", "ide-hd,drive=i,id=ide-disk,bus=ide.0",
            "-drive", f"if=none,id=c,media=cdrom,file={folder}/cd.img,format=qcow2,readonly=on",
            "-device",
            "ide-cd,drive=c,id=cd,bus=ide.1",
            "-object",
            "iothread,id=thread",
            "-drive",
            f"if=none,id=tv,file={folder}/thread-virtio.img,format=qcow2",
            "-device",
            "virtio-blk-pci,drive=tv,id=thread-virtio,iothread=thread",
            "-device",
            "virtio-scsi-pci,id=threaded,iothread=thread",
            "-drive",
            f"if=none,id=ts,file={folder}/thread-scsi.img,format=qcow2",
            "-device",
            "scsi-hd,bus=threaded.0,drive=ts,id=thread-scsi",
        ]
    )  # fmt: skip
    guest.start()
    source = open_source(guest)
    found = {disk.label: disk for disk in source.list_vms()[0].disks}
    assert found["ide-disk"].excluded_reason is not None
    assert found["scsi-disk"].excluded_reason is None
    for name in ("thread-virtio", "thread-scsi"):
        # QEMU 7.2 aborts when an NBD client of such a disk leaves; the guest would die with it.
        reason = found[name].excluded_reason
        assert reason is not None
        assert "iothread" in reason
    usable = [disk for disk in found.values() if disk.excluded_reason is None]
    assert len(usable) == 4
    # The letters depend on slots; the new disks are told by their size in sectors.
    fill = (
        "for d in /sys/block/*d?; do [ $(cat $d/size) = 16384 ] &&"
        " dd if=%s of=/dev/${d##*/} bs=64k count=2; done; sync"
    )
    guest.shell(fill % "/dev/urandom")
    snapshot = source.take_snapshot(request(guest, "old", {disk.key: None for disk in usable}))
    guest.shell(fill % "/dev/zero")
    for disk in usable:
        with (
            source.open_disk(snapshot.reference, disk.key) as view,
            Client.connect(view.address) as client,
        ):
            assert any(client.read(0, 128 * KIB)), disk
    source.remove_snapshot(snapshot.reference, SnapshotOutcome.DISCARDED, frozenset())
    assert list_ours(guest) == []
