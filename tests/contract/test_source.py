"""What every source promises, for the fake platform and for image files."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sendense.connectors.base import (
    DiskRequest,
    DiskView,
    Snapshot,
    SnapshotOutcome,
    SnapshotRequest,
    Source,
)
from sendense.connectors.fake.disk import FakeDisk
from sendense.connectors.fake.source import FakePlatform
from sendense.connectors.image.source import ImageSource
from sendense.core import units
from sendense.core.errors import NotFound, SendenseError, Unavailable
from sendense.core.extent import Extent
from sendense.nbd.client import Client

SIZE = units.MIB + 512
KEYS = (2000, 2001)


@dataclass
class World:
    """A source with one VM of two disks, and how to write to them."""

    source: Source
    write: Callable[[int, int, bytes], None]


def make_fake(_folder: Path) -> World:
    platform = FakePlatform()
    disks = platform.add_vm("one", SIZE, SIZE)
    return World(platform, lambda key, offset, data: disks[key - 2000].write(offset, data))


def make_image(folder: Path) -> World:
    paths = [folder / "a.raw", folder / "b.raw"]
    for path in paths:
        path.write_bytes(bytes(SIZE))
    config = {"vms": [{"name": "one", "disks": [str(path) for path in paths]}]}

    def write(key: int, offset: int, data: bytes) -> None:
        with paths[key - 2000].open("r+b") as file:
            file.seek(offset)
            file.write(data)

    return World(ImageSource(config, Path), write)


@pytest.fixture(params=[make_fake, make_image])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    made: World = request.param(tmp_path)
    return made


def take(source: Source, name: str, *, base: str | None = None, lineage: str = "l") -> Snapshot:
    disks = tuple(DiskRequest(key, lineage, base) for key in KEYS)
    return source.take_snapshot(SnapshotRequest(source.list_vms()[0].uuid, name, disks))


def read(view: DiskView) -> bytes:
    with Client.connect(view.address) as client:
        return bytes(client.read(0, view.size_bytes))


def test_every_disk_reads_as_it_was_written(world: World) -> None:
    content = {key: random.Random(key).randbytes(SIZE) for key in KEYS}
    for key, data in content.items():
        world.write(key, 0, data)
    snapshot = take(world.source, "job-1")
    assert [one.size_bytes for one in snapshot.disks] == [SIZE, SIZE]
    for key in KEYS:
        with world.source.open_disk(snapshot.reference, key) as view:
            assert read(view) == content[key]


def test_extents_cover_the_disk_and_what_is_zero_reads_so(world: World) -> None:
    world.write(2000, 300_000, b"x" * 5000)
    snapshot = take(world.source, "job-1")
    with world.source.open_disk(snapshot.reference, 2000) as view:
        data, position = read(view), 0
        for one in view.list_allocated():
            assert one.start == position
            assert not (one.zero and any(data[one.start : one.end]))
            position = one.end
    assert position == SIZE


def test_the_same_name_finds_the_same_moment(world: World) -> None:
    first, again = take(world.source, "job-1"), take(world.source, "job-1")
    assert first == again
    assert take(world.source, "job-2").moment != first.moment


def test_an_unknown_change_id_is_said_to_be_lost(world: World) -> None:
    snapshot = take(world.source, "job-1", base="l/1/99")
    assert all(one.base_lost_reason for one in snapshot.disks)


def test_removing_twice_is_removing_once(world: World) -> None:
    snapshot = take(world.source, "job-1")
    for _ in range(2):
        world.source.remove_snapshot(snapshot.reference, SnapshotOutcome.COMMITTED, frozenset())
    vm = world.source.list_vms()[0]
    assert world.source.find_snapshot(vm.uuid, "job-1") is None


def test_unknown_vms_and_disks_are_not_found(world: World) -> None:
    vm = world.source.list_vms()[0]
    for uuid, key in ((vm.uuid, 2009), (vm.uuid, 0), ("nobody", 2000)):
        with pytest.raises(NotFound):
            world.source.take_snapshot(SnapshotRequest(uuid, "j", (DiskRequest(key, "l"),)))
    snapshot = take(world.source, "job-1")
    with pytest.raises(NotFound), world.source.open_disk(snapshot.reference, 2009):
        pass


# What only platforms with snapshots and change tracking promise.


@pytest.fixture
def platform() -> FakePlatform:
    return FakePlatform()


@pytest.fixture
def disks(platform: FakePlatform) -> list[FakeDisk]:
    return platform.add_vm("one", SIZE, SIZE)


def changes(platform: FakePlatform, snapshot: Snapshot) -> list[Extent]:
    with platform.open_disk(snapshot.reference, 2000) as view:
        return list(view.list_changed())


def id_of(snapshot: Snapshot) -> str:
    change_id = snapshot.disks[0].change_id
    assert change_id is not None
    return change_id


def test_a_snapshot_stays_as_it_is_while_the_guest_writes(
    platform: FakePlatform, disks: list[FakeDisk]
) -> None:
    disks[0].write(0, b"old")
    snapshot = take(platform, "job-1")
    with platform.open_disk(snapshot.reference, 2000) as view:
        disks[0].write(0, b"new")
        assert read(view).startswith(b"old")


def test_changes_are_told_until_discarded_ones_are_given_back(
    platform: FakePlatform, disks: list[FakeDisk]
) -> None:
    base = id_of(take(platform, "job-1"))
    disks[0].write(70_000, b"x")
    second = take(platform, "job-2", base=base)
    assert changes(platform, second) == [Extent(65536, 65536)]
    platform.remove_snapshot(second.reference, SnapshotOutcome.DISCARDED, frozenset({base}))
    disks[0].write(0, b"y")
    disks[0].trim(65536, 65536)
    third = take(platform, "job-3", base=base)
    assert changes(platform, third) == [Extent(0, 65536), Extent(65536, 65536, zero=True)]


def test_a_committed_snapshot_forgets_what_nobody_names(
    platform: FakePlatform, disks: list[FakeDisk]
) -> None:
    base, other = take(platform, "job-1"), take(platform, "job-2", lineage="other")
    second = take(platform, "job-3", base=id_of(base))
    platform.remove_snapshot(second.reference, SnapshotOutcome.COMMITTED, frozenset({id_of(other)}))
    assert disks[0].tracked.keys() == {id_of(second), id_of(other)}


def test_the_faults_of_platforms_can_be_had(platform: FakePlatform, disks: list[FakeDisk]) -> None:
    base = id_of(take(platform, "job-1"))
    disks[0].write(0, b"x")
    platform.is_lying = True
    assert changes(platform, take(platform, "job-2", base=base)) == []
    disks[0].resize(SIZE + 512)
    assert take(platform, "job-3", base=base).disks[0].base_lost_reason == "the disk has grown"
    platform.lose_tracking()
    snapshot = take(platform, "job-4", base=base)
    assert snapshot.disks[1].base_lost_reason
    with platform.open_disk(snapshot.reference, 2000) as view:
        platform.is_gone = True
        with pytest.raises(SendenseError):
            read(view)
    with pytest.raises(Unavailable):
        platform.list_vms()
