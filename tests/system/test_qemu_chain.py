"""Backups of real guests, one after the other: equal bytes, or a reason for reading everything."""

import filecmp
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from demo.guest import disk as disks
from demo.guest.vm import Disk
from sendense.connectors.base import DiskView, SnapshotOutcome
from sendense.core.units import KIB, MIB, SECTOR
from sendense.nbd.client import Client
from tests.system.conftest import DISK_BYTES, SECOND_BYTES, MakeGuest, open_source
from tests.system.copying import Chain, copy, request

pytestmark = pytest.mark.guest

WRITER = (
    "while :; do for d in a b; do dd if=/dev/urandom of=/mnt/$d/busy bs=64k count=8 conv=notrunc;"
    " sync; done; done"
)


def test_increments_equal_the_truth_while_the_guest_writes(
    make_guest: MakeGuest, folder: Path
) -> None:
    guest = make_guest()
    guest.start()
    guest.spawn(WRITER)
    chain = Chain(open_source(guest), guest, folder)
    chain.back_up()
    for _ in range(3):
        # The writer alone may not get round to both disks in time.
        guest.shell(
            "for d in a b; do dd if=/dev/urandom of=/mnt/$d/known bs=64k count=8; done; sync"
        )
        read = chain.back_up()
        assert chain.list_reasons() == [None, None]
        assert 0 < read[2000] < DISK_BYTES / 4
        assert 0 < read[2001] < SECOND_BYTES / 4
    # A run that fails gives back what its bitmap recorded: the next one misses nothing.
    chain.take()
    guest.shell("dd if=/dev/urandom of=/mnt/b/during bs=64k count=4; sync")
    chain.settle(SnapshotOutcome.DISCARDED)
    chain.back_up()
    assert chain.list_reasons() == [None, None]


COUNTER = (
    "n=0; while :; do n=$((n+1)); printf '%-512d' $n > /tmp/n;"
    " dd if=/tmp/n of=/dev/vda bs=512 seek=1000 conv=notrunc,fsync;"
    " dd if=/tmp/n of=/dev/vdb bs=512 conv=notrunc,fsync; done"
)


def read_counter(view: DiskView, sector: int) -> int:
    with Client.connect(view.address) as client:
        return int(client.read(sector * SECTOR, SECTOR))


def test_disks_and_bitmaps_share_one_moment_although_nobody_else_pauses_the_guest(
    make_guest: MakeGuest, folder: Path
) -> None:
    guest = make_guest()
    guest.start()
    guest.shell("echo 0 > /tmp/n; dd if=/tmp/n of=/dev/vda bs=512 seek=1000 conv=notrunc,sync")
    guest.spawn(COUNTER)
    guest.spawn(WRITER)
    source = open_source(guest)
    copies = {2000: folder / "copy0", 2001: folder / "copy1"}
    bases: dict[int, str | None] = dict.fromkeys(copies)
    counters = []
    for round_number in range(6):
        snapshot = source.take_snapshot(request(guest, f"round-{round_number}", bases))
        seen = {}
        for key, path in copies.items():
            with source.open_disk(snapshot.reference, key) as view:
                extents = view.list_changed() if bases[key] else view.list_allocated()
                copy(view, extents, path)
                whole = folder / "whole"
                whole.unlink(missing_ok=True)
                copy(view, view.list_allocated(), whole)
                assert filecmp.cmp(path, whole, shallow=False), f"round {round_number}, {key}"
                seen[key] = read_counter(view, 1000 if key == 2000 else 0)
        # The guest writes n to the first disk, then to the second.
        assert seen[2001] in {seen[2000], seen[2000] - 1}
        assert snapshot.reference["paused_seconds"] > 0
        counters.append(seen[2000])
        bases = {disk.key: disk.change_id for disk in snapshot.disks}
        live = frozenset(base for base in bases.values() if base)
        source.remove_snapshot(snapshot.reference, SnapshotOutcome.COMMITTED, live)
    assert counters == sorted(set(counters)), "the guest did not write between the rounds"


def test_the_comparison_fails_when_one_changed_extent_is_skipped(
    make_guest: MakeGuest, folder: Path
) -> None:
    guest = make_guest()
    guest.start()
    chain = Chain(open_source(guest), guest, folder)
    chain.back_up()
    last = SECOND_BYTES // (64 * KIB) - 1
    guest.shell(f"dd if=/dev/urandom of=/dev/vdb bs=64k seek={last} count=1")
    guest.shell("dd if=/dev/urandom of=/mnt/b/known bs=64k count=4; sync")
    snapshot = chain.take()
    skipped = folder / "skipped.raw"
    shutil.copyfile(chain.copy_of(2001), skipped)
    with chain.source.open_disk(snapshot.reference, 2001) as view:
        extents = list(view.list_changed())
        copy(view, extents[:-1], skipped)
    chain.transfer()
    chain.compare()
    assert len(extents) > 1
    assert not filecmp.cmp(skipped, chain.truth_of(2001), shallow=False)


def test_a_clean_reboot_keeps_the_tracking_of_qcow2_and_loses_that_of_raw(
    make_guest: MakeGuest, folder: Path
) -> None:
    guest = make_guest(second="raw")
    guest.start()
    chain = Chain(open_source(guest), guest, folder)
    chain.back_up()
    guest.shell("dd if=/dev/urandom of=/mnt/b/raw bs=64k count=4; sync")
    assert chain.back_up()[2001] < SECOND_BYTES / 4
    assert chain.list_reasons() == [None, None]
    guest.shell("dd if=/dev/urandom of=/mnt/a/before bs=64k count=4; sync")
    guest.quit()
    guest.start()
    guest.shell("dd if=/dev/urandom of=/mnt/a/after bs=64k count=4; sync")
    chain.back_up()
    kept, lost = chain.list_reasons()
    assert kept is None
    assert lost is not None
    assert "format raw cannot store" in lost


def test_after_sigkill_everything_is_read_and_inconsistent_bitmaps_go(
    make_guest: MakeGuest, folder: Path
) -> None:
    guest = make_guest()
    guest.start()
    chain = Chain(open_source(guest), guest, folder)
    chain.back_up()
    guest.quit()  # stores the bitmaps, so that the next kill finds stored ones in use
    guest.start()
    chain.back_up()
    assert chain.list_reasons() == [None, None]
    guest.kill()
    guest.start()
    guest.shell("dd if=/dev/urandom of=/mnt/a/after bs=64k count=4; sync")
    chain.back_up()
    for reason in chain.list_reasons():
        assert reason is not None
        assert "QEMU was killed" in reason
    nodes = guest.monitor.execute("query-named-block-nodes", flat=True)
    bitmaps = [bitmap for node in nodes for bitmap in node.get("dirty-bitmaps", [])]
    assert len(bitmaps) == 2
    assert not any(bitmap.get("inconsistent") for bitmap in bitmaps)
    chain.back_up()
    assert chain.list_reasons() == [None, None]


def test_a_grown_disk_is_read_in_full(make_guest: MakeGuest, folder: Path) -> None:
    guest = make_guest()
    guest.start()
    chain = Chain(open_source(guest), guest, folder)
    chain.back_up()
    guest.monitor.execute("block_resize", node_name="disk0", size=DISK_BYTES + 16 * MIB)
    place = (DISK_BYTES + 8 * MIB) // (64 * KIB)
    guest.shell(f"dd if=/dev/urandom of=/dev/vda bs=64k seek={place} count=2; sync")
    chain.back_up()
    grown, other = chain.list_reasons()
    assert grown is not None
    assert "resized from 96.0 MiB to 112.0 MiB" in grown
    assert other is None
    chain.back_up()
    assert chain.list_reasons() == [None, None]


def test_a_disk_plugged_in_later_is_read_in_full_and_then_tracked(
    make_guest: MakeGuest, folder: Path
) -> None:
    guest = make_guest()
    guest.start()
    chain = Chain(open_source(guest), guest, folder)
    chain.back_up()
    disks.make_empty(folder / "2.img", 8 * MIB, image_format="qcow2")
    guest.plug(Disk("plugged", folder / "2.img", "qcow2"))
    guest.shell(
        "for _ in $(seq 100); do [ -b /dev/vdc ] && break; sleep 0.1; done;"
        "dd if=/dev/urandom of=/dev/vdc bs=64k count=3; sync"
    )
    chain.change_ids[2002] = None
    read = chain.back_up()
    assert read[2002] == 3 * 64 * KIB
    assert chain.list_reasons() == [None, None, None]
    guest.shell("dd if=/dev/urandom of=/dev/vdc bs=64k seek=10 count=1; sync")
    assert chain.back_up()[2002] == 64 * KIB


def test_trims_are_changes_that_need_no_reading(make_guest: MakeGuest, folder: Path) -> None:
    guest = make_guest()
    guest.start()
    chain = Chain(open_source(guest), guest, folder)
    guest.shell("dd if=/dev/urandom of=/mnt/b/big bs=1M count=16; sync")
    chain.back_up()
    guest.shell("rm /mnt/b/big; sync; fstrim /mnt/b; sync")
    snapshot = chain.take()
    with chain.source.open_disk(snapshot.reference, 2001) as view:
        zeros = sum(extent.length for extent in view.list_changed() if extent.zero)
    assert zeros >= 15 * MIB
    assert chain.transfer()[2001] < 4 * MIB
    chain.compare()


def test_two_vms_are_backed_up_at_once(make_guest: MakeGuest, folder: Path) -> None:
    guests = [make_guest(name) for name in ("one", "two")]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda guest: guest.start(), guests))
        source = open_source(*guests)
        chains = []
        for guest in guests:
            guest.spawn(WRITER)
            (folder / f"copies-{guest.name}").mkdir()
            chains.append(Chain(source, guest, folder / f"copies-{guest.name}"))
        for _ in range(2):
            list(pool.map(lambda chain: chain.back_up(), chains))
    assert [chain.list_reasons() for chain in chains] == [[None, None], [None, None]]
