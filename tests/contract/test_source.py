"""What every source promises: fake, image files, a real QEMU, and vCenter's simulator."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from sendense.connectors.base import (
    DiskRequest,
    DiskView,
    Snapshot,
    SnapshotOutcome,
    SnapshotRequest,
    Source,
    Tracking,
)
from sendense.connectors.capability import Measuring
from sendense.core import units
from sendense.core.errors import NotFound, Unavailable
from sendense.core.extent import Extent
from sendense.nbd.client import Client
from tests.contract.sources import EVERY, KEYS, SIZE, STATEFUL, TRACKING, MakeWorld, World

BLOCK = 64 * units.KIB  # no source tells changes more coarsely


def run_world(make: MakeWorld, folder: Path) -> Iterator[World]:
    with make(folder) as world:
        yield world
        # Whatever a test left, newest first: what a clean-up has is the name of the job.
        vm_uuid = world.source.list_vms()[0].uuid
        for name in ("job-3", "job-2", "job-1"):
            reference = world.source.find_snapshot(vm_uuid, name)
            if reference is not None:
                world.source.remove_snapshot(reference, SnapshotOutcome.DISCARDED, frozenset())
        # A last one, after which no backup is live.
        last = take(world.source, "job-last")
        world.source.remove_snapshot(last.reference, SnapshotOutcome.DISCARDED, frozenset())
        assert world.list_leftovers(frozenset()) == []


@pytest.fixture(params=EVERY)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    yield from run_world(request.param, tmp_path)


@pytest.fixture(params=TRACKING)
def tracking(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    yield from run_world(request.param, tmp_path)


@pytest.fixture(params=STATEFUL)
def stateful(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    yield from run_world(request.param, tmp_path)


def take(
    source: Source, name: str, *, base: Snapshot | None = None, lineage: str = "chain"
) -> Snapshot:
    bases = {} if base is None else {disk.key: disk.change_id for disk in base.disks}
    disks = tuple(DiskRequest(key, lineage, bases.get(key)) for key in KEYS)
    return source.take_snapshot(SnapshotRequest(source.list_vms()[0].uuid, name, disks))


def ids_of(*snapshots: Snapshot) -> frozenset[str]:
    return frozenset(
        disk.change_id for one in snapshots for disk in one.disks if disk.change_id is not None
    )


def commit(source: Source, snapshot: Snapshot, *live: Snapshot) -> None:
    """Settle a snapshot whose backup was committed, while these are the newest live ones."""
    source.remove_snapshot(snapshot.reference, SnapshotOutcome.COMMITTED, ids_of(snapshot, *live))


def reasons(snapshot: Snapshot) -> list[str | None]:
    return [disk.base_lost_reason for disk in snapshot.disks]


def read(source: Source, snapshot: Snapshot, key: int) -> bytes:
    with source.open_disk(snapshot.reference, key) as view:
        return read_view(view)


def read_view(view: DiskView) -> bytes:
    with Client.connect(view.address) as client:
        return bytes(client.read(0, view.size_bytes))


def changes(source: Source, snapshot: Snapshot, key: int) -> list[Extent]:
    with source.open_disk(snapshot.reference, key) as view:
        return list(view.list_changed())


def blocks(extents: list[Extent]) -> set[int]:
    """Return the numbers of all blocks that the extents touch."""
    return {n for one in extents for n in range(one.start // BLOCK, -(-one.end // BLOCK))}


# What every source promises.


def test_discovery_tells_vm_and_disks_the_same_each_time(world: World) -> None:
    (vm,) = world.source.list_vms()
    assert [(disk.key, disk.index, disk.capacity_bytes) for disk in vm.disks] == [
        (KEYS[0], 0, SIZE),
        (KEYS[1], 1, SIZE),
    ]
    assert len({disk.uuid for disk in vm.disks}) == 2
    assert world.source.list_vms() == [vm]
    assert world.source.probe()


def test_every_disk_reads_as_it_was_written(world: World, seed: int) -> None:
    chooser = random.Random(seed)
    content = {key: chooser.randbytes(SIZE) for key in KEYS}
    for key, data in content.items():
        world.write(key, 0, data)
    snapshot = take(world.source, "job-1")
    assert [(disk.key, disk.size_bytes) for disk in snapshot.disks] == [(k, SIZE) for k in KEYS]
    for key in KEYS:
        assert read(world.source, snapshot, key) == content[key]


def test_a_disk_is_the_one_that_discovery_named(world: World) -> None:
    (vm,) = world.source.list_vms()
    snapshot = take(world.source, "job-1")
    assert [disk.uuid for disk in snapshot.disks] == [disk.uuid for disk in vm.disks]
    tracked = [disk.tracking is Tracking.SUPPORTED for disk in vm.disks]
    assert [disk.change_id is not None for disk in snapshot.disks] == tracked


def test_extents_cover_the_disk_and_what_is_zero_reads_so(world: World) -> None:
    world.write(KEYS[0], 300_000, b"x" * 5000)
    snapshot = take(world.source, "job-1")
    with world.source.open_disk(snapshot.reference, KEYS[0]) as view:
        data, position = read_view(view), 0
        for one in view.list_allocated():
            assert one.start == position
            assert not (one.zero and any(data[one.start : one.end]))
            position = one.end
    assert position == SIZE


def test_as_many_connections_as_are_offered_read_at_once(world: World) -> None:
    world.write(KEYS[0], 0, b"x" * 512)
    snapshot = take(world.source, "job-1")
    with world.source.open_disk(snapshot.reference, KEYS[0]) as view:
        clients = [Client.connect(view.address) for _ in range(view.connections_max)]
        try:
            assert {bytes(client.read(0, 512)) for client in clients} == {b"x" * 512}
        finally:
            for client in clients:
                client.close()


def test_of_a_guest_that_does_not_write_nothing_is_measured(world: World) -> None:
    snapshot = take(world.source, "job-1")
    for key in KEYS:
        with world.source.open_disk(snapshot.reference, key) as view:
            if isinstance(view, Measuring):
                assert [view.measure_write_latency() for _ in range(2)] == [None, None]


def test_the_same_name_finds_the_same_moment(world: World) -> None:
    first, again = take(world.source, "job-1"), take(world.source, "job-1")
    assert first == again
    world.source.remove_snapshot(first.reference, SnapshotOutcome.DISCARDED, frozenset())
    assert take(world.source, "job-2").moment != first.moment


def test_opening_twice_and_closing_leaves_the_snapshot_alone(world: World) -> None:
    world.write(KEYS[1], 1000, b"hello")
    snapshot = take(world.source, "job-1")
    assert read(world.source, snapshot, KEYS[1]) == read(world.source, snapshot, KEYS[1])


def test_an_unknown_change_id_is_said_to_be_lost(world: World) -> None:
    disks = tuple(DiskRequest(key, "chain", "l/1/99") for key in KEYS)
    vm_uuid = world.source.list_vms()[0].uuid
    assert all(reasons(world.source.take_snapshot(SnapshotRequest(vm_uuid, "job-1", disks))))


@pytest.mark.parametrize("outcome", SnapshotOutcome)
def test_removing_twice_is_removing_once(world: World, outcome: SnapshotOutcome) -> None:
    snapshot = take(world.source, "job-1")
    for _ in range(2):
        world.source.remove_snapshot(snapshot.reference, outcome, frozenset())
        kept = ids_of(snapshot) if outcome is SnapshotOutcome.COMMITTED else frozenset()
        assert world.list_leftovers(kept) == []


def test_unknown_vms_and_disks_are_not_found_and_leave_nothing(world: World) -> None:
    vm = world.source.list_vms()[0]
    for vm_uuid, key in ((vm.uuid, 2009), (vm.uuid, 0), ("nobody", KEYS[0])):
        with pytest.raises(NotFound):
            world.source.take_snapshot(SnapshotRequest(vm_uuid, "job-1", (DiskRequest(key, "l"),)))
    assert world.list_leftovers(frozenset()) == []
    snapshot = take(world.source, "job-1")
    with pytest.raises(NotFound), world.source.open_disk(snapshot.reference, 2009):
        pass


@pytest.mark.parametrize("make", EVERY)
def test_the_suite_sees_whatever_is_left_behind(make: MakeWorld, tmp_path: Path) -> None:
    with make(tmp_path) as world:
        assert world.spoil
        for name, spoil in world.spoil.items():
            before = world.list_leftovers(frozenset())
            spoil()
            assert len(world.list_leftovers(frozenset())) > len(before), name


# What sources with snapshots and change tracking promise besides.


def test_only_the_tracking_of_live_backups_is_kept(stateful: World) -> None:
    source = stateful.source
    one = take(source, "job-1", lineage="one")
    commit(source, one)
    assert stateful.list_leftovers(ids_of(one)) == []
    assert len(stateful.list_leftovers(frozenset())) == len(KEYS), "one record for each disk"
    other = take(source, "job-2", lineage="other")
    commit(source, other, one)
    assert stateful.list_leftovers(ids_of(one, other)) == []
    newer = take(source, "job-3", base=one, lineage="one")
    commit(source, newer, other)
    assert stateful.list_leftovers(ids_of(newer, other)) == []
    failed = take(source, "job-4", base=newer, lineage="one")
    live = ids_of(newer, other)
    source.remove_snapshot(failed.reference, SnapshotOutcome.DISCARDED, live)
    assert stateful.list_leftovers(live) == []
    last = take(source, "job-5", base=newer, lineage="one")
    assert reasons(last) == [None, None]
    source.remove_snapshot(last.reference, SnapshotOutcome.DISCARDED, frozenset())
    assert stateful.list_leftovers(frozenset()) == []


def test_a_snapshot_stays_as_it_is_while_the_guest_writes(tracking: World) -> None:
    for key in KEYS:
        tracking.write(key, 0, b"old")
    snapshot = take(tracking.source, "job-1")
    for key in KEYS:
        tracking.write(key, 0, b"new")
        assert read(tracking.source, snapshot, key)[:3] == b"old"
    assert take(tracking.source, "job-1") == snapshot


def test_a_snapshot_is_found_by_its_name_until_it_is_removed(tracking: World) -> None:
    tracking.write(KEYS[0], 0, b"old")
    take(tracking.source, "job-1")
    tracking.write(KEYS[0], 0, b"new")
    vm_uuid = tracking.source.list_vms()[0].uuid
    reference = tracking.source.find_snapshot(vm_uuid, "job-1")
    assert reference is not None
    assert tracking.source.find_snapshot(vm_uuid, "job-2") is None
    tracking.source.remove_snapshot(reference, SnapshotOutcome.DISCARDED, frozenset())
    assert tracking.source.find_snapshot(vm_uuid, "job-1") is None


def test_all_changes_are_told_and_not_the_whole_disk(tracking: World, seed: int) -> None:
    full = take(tracking.source, "job-1")
    commit(tracking.source, full)
    chooser = random.Random(seed)
    # Within one block, across the edge of two, and in the odd last sector.
    for start, length in ((70_000, 100), (3 * BLOCK - 50, 100), (SIZE - 512, 512)):
        tracking.write(KEYS[0], start, chooser.randbytes(length))
    second = take(tracking.source, "job-2", base=full)
    assert reasons(second) == [None, None]
    told = changes(tracking.source, second, KEYS[0])
    assert blocks(told) == {1, 2, 3, SIZE // BLOCK}
    assert told == sorted(told, key=lambda one: one.start)
    assert told[-1].end <= SIZE
    assert changes(tracking.source, second, KEYS[1]) == []


def test_what_is_written_after_the_moment_belongs_to_the_next_backup(tracking: World) -> None:
    full = take(tracking.source, "job-1")
    tracking.write(KEYS[0], 5 * BLOCK, b"while it is read")
    commit(tracking.source, full)
    second = take(tracking.source, "job-2", base=full)
    tracking.write(KEYS[0], 7 * BLOCK, b"later")
    assert blocks(changes(tracking.source, second, KEYS[0])) == {5}


def test_a_trim_is_a_change_and_reads_as_zeros(tracking: World) -> None:
    tracking.write(KEYS[0], 2 * BLOCK, b"x" * BLOCK)
    full = take(tracking.source, "job-1")
    commit(tracking.source, full)
    tracking.trim(KEYS[0], 2 * BLOCK, BLOCK)
    second = take(tracking.source, "job-2", base=full)
    assert blocks(changes(tracking.source, second, KEYS[0])) == {2}
    assert read(tracking.source, second, KEYS[0])[2 * BLOCK :][:BLOCK] == bytes(BLOCK)


def test_a_discarded_backup_gives_its_changes_back(tracking: World) -> None:
    full = take(tracking.source, "job-1")
    commit(tracking.source, full)
    tracking.write(KEYS[0], BLOCK, b"before the failed one")
    failed = take(tracking.source, "job-2", base=full)
    tracking.write(KEYS[0], 4 * BLOCK, b"while it ran")
    tracking.source.remove_snapshot(failed.reference, SnapshotOutcome.DISCARDED, ids_of(full))
    tracking.write(KEYS[0], 9 * BLOCK, b"after it")
    third = take(tracking.source, "job-3", base=full)
    assert reasons(third) == [None, None]
    assert blocks(changes(tracking.source, third, KEYS[0])) == {1, 4, 9}


def test_chains_of_two_repositories_do_not_take_changes_from_each_other(tracking: World) -> None:
    one = take(tracking.source, "job-1", lineage="one")
    commit(tracking.source, one)
    tracking.write(KEYS[0], BLOCK, b"only new to one")
    other = take(tracking.source, "job-2", lineage="other")
    commit(tracking.source, other, one)
    tracking.write(KEYS[0], 2 * BLOCK, b"new to both")
    for base, lineage, expected in ((one, "one", {1, 2}), (other, "other", {2})):
        snapshot = take(tracking.source, "job-3", base=base, lineage=lineage)
        assert reasons(snapshot) == [None, None]
        assert blocks(changes(tracking.source, snapshot, KEYS[0])) == expected
        live = ids_of(one, other)
        tracking.source.remove_snapshot(snapshot.reference, SnapshotOutcome.DISCARDED, live)


def test_a_change_id_that_nobody_names_any_more_is_forgotten(stateful: World) -> None:
    first = take(stateful.source, "job-1")
    commit(stateful.source, first)
    second = take(stateful.source, "job-2", base=first)
    commit(stateful.source, second)
    assert all(reasons(take(stateful.source, "job-3", base=first)))


def test_a_grown_disk_is_read_in_full_and_only_that_one(stateful: World) -> None:
    full = take(stateful.source, "job-1")
    commit(stateful.source, full)
    stateful.grow(KEYS[1])
    second = take(stateful.source, "job-2", base=full)
    assert [disk.size_bytes for disk in second.disks] == [SIZE, SIZE + units.MIB]
    kept, lost = reasons(second)
    assert kept is None
    assert lost


def test_tracking_lost_in_a_crash_is_said(tracking: World) -> None:
    full = take(tracking.source, "job-1")
    commit(tracking.source, full)
    tracking.lose_tracking()
    second = take(tracking.source, "job-2", base=full)
    assert all(reasons(second))
    assert read(tracking.source, second, KEYS[0]) == bytes(SIZE)


def test_a_source_without_tracking_never_pretends_to_know_changes(world: World) -> None:
    (vm,) = world.source.list_vms()
    if vm.disks[0].tracking is Tracking.SUPPORTED:
        return
    snapshot = take(world.source, "job-1")
    with (
        world.source.open_disk(snapshot.reference, KEYS[0]) as view,
        pytest.raises(Unavailable) as caught,
    ):
        list(view.list_changed())
    assert caught.value.kind == "tracking-lost"
