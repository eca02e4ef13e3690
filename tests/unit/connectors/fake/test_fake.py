"""The faults of the fake platform: each can be had, and ended."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sendense.connectors.base import DiskRequest, DiskView, Snapshot, SnapshotRequest
from sendense.connectors.fake.disk import BLOCK, FakeDisk
from sendense.connectors.fake.source import FakePlatform
from sendense.core.errors import Unavailable
from sendense.core.extent import Extent
from sendense.nbd.client import Client

SIZE = 4 * BLOCK + 512
KEY = 2000
WAIT_SECONDS = 10.0


@pytest.fixture
def platform() -> FakePlatform:
    return FakePlatform()


@pytest.fixture
def disk(platform: FakePlatform) -> FakeDisk:
    return platform.add_vm("one", SIZE)[0]


def take(platform: FakePlatform, name: str, base: str | None = None) -> Snapshot:
    request = SnapshotRequest("vm-one", name, (DiskRequest(KEY, "chain", base),))
    return platform.take_snapshot(request)


@contextmanager
def opened(platform: FakePlatform) -> Iterator[DiskView]:
    with platform.open_disk(take(platform, "job").reference, KEY) as view:
        yield view


def test_lying_tracking_leaves_out_the_first_changed_block(
    platform: FakePlatform, disk: FakeDisk
) -> None:
    base = take(platform, "job-1").disks[0].change_id
    disk.write(0, b"x")
    disk.write(2 * BLOCK, b"x")
    platform.is_lying = True
    snapshot = take(platform, "job-2", base)
    assert snapshot.disks[0].base_lost_reason is None  # a liar does not say that it lies
    with platform.open_disk(snapshot.reference, KEY) as view:
        assert list(view.list_changed()) == [Extent(2 * BLOCK, BLOCK)]


def test_a_platform_that_goes_away_answers_nothing_until_it_is_back(
    platform: FakePlatform, disk: FakeDisk
) -> None:
    disk.write(0, b"x")
    with opened(platform) as view, Client.connect(view.address) as client:
        platform.is_gone = True
        with pytest.raises(Unavailable):
            client.read(0, 512)
        for ask in (platform.probe, platform.list_vms):
            with pytest.raises(Unavailable) as caught:
                ask()
            assert caught.value.kind == "source-silent"
    platform.is_gone = False
    assert len(platform.list_vms()) == 1


def test_a_bad_place_on_a_disk_is_an_error_there_and_nowhere_else(
    platform: FakePlatform, disk: FakeDisk
) -> None:
    disk.write(0, b"x" * SIZE)

    def fail(offset: int, length: int) -> None:
        if offset <= BLOCK < offset + length:
            raise OSError(5, "input/output error")

    platform.on_read = fail
    with opened(platform) as view:
        with Client.connect(view.address) as client:
            assert bytes(client.read(0, BLOCK)) == b"x" * BLOCK
            with pytest.raises(Unavailable) as caught:
                client.read(BLOCK, 512)
        assert caught.value.kind == "nbd-read-error"
        with Client.connect(view.address) as client:
            assert bytes(client.read(2 * BLOCK, 512)) == b"x" * 512


def test_a_slow_disk_keeps_a_reader_waiting_as_long_as_it_wants(
    platform: FakePlatform, disk: FakeDisk
) -> None:
    disk.write(0, b"x" * 512)
    released = threading.Event()
    platform.on_read = lambda _offset, _length: assert_set(released)
    with opened(platform) as view:
        try:
            impatient = Client.connect(view.address, timeout_seconds=1.0)
            with impatient, pytest.raises(Unavailable) as caught:
                impatient.read(0, 512)
            assert caught.value.kind == "nbd-lost"
        finally:
            released.set()
        with Client.connect(view.address) as client:
            assert bytes(client.read(0, 512)) == b"x" * 512


def assert_set(event: threading.Event) -> None:
    assert event.wait(WAIT_SECONDS)


def test_a_disk_of_tebibytes_costs_only_what_was_written(platform: FakePlatform) -> None:
    size = 3 << 40
    platform.add_vm("one", size)[0].write(size - 512, b"x" * 512)
    with opened(platform) as view:
        listed = list(view.list_allocated())
        assert [one for one in listed if not one.zero] == [Extent(size - BLOCK, BLOCK)]
        assert sum(one.length for one in listed) == size
        with Client.connect(view.address) as client:
            assert bytes(client.read(size - 512, 512)) == b"x" * 512


def test_a_disk_that_shrinks_and_grows_again_lost_what_lay_behind_the_end(
    platform: FakePlatform, disk: FakeDisk
) -> None:
    disk.write(0, b"x" * SIZE)
    disk.resize(BLOCK + 512)
    disk.resize(SIZE)
    with opened(platform) as view, Client.connect(view.address) as client:
        assert bytes(client.read(0, BLOCK + 512)) == b"x" * (BLOCK + 512)
        assert not any(client.read(BLOCK + 512, 3 * BLOCK))


def test_a_disk_that_goes_back_to_an_older_state_lost_its_change_ids(
    platform: FakePlatform, disk: FakeDisk
) -> None:
    disk.write(0, b"x" * 512)
    kept = disk.freeze()
    base = take(platform, "job-1").disks[0].change_id
    disk.write(0, b"y" * 512)
    disk.revert(kept, size_bytes=SIZE)
    snapshot = take(platform, "job-2", base)
    assert snapshot.disks[0].base_lost_reason is not None
    opening = platform.open_disk(snapshot.reference, KEY)
    with opening as view, Client.connect(view.address) as client:
        assert bytes(client.read(0, 512)) == b"x" * 512


def test_a_disk_can_be_exchanged_and_its_changes_be_told_falsely(
    platform: FakePlatform, disk: FakeDisk
) -> None:
    base = take(platform, "job-1").disks[0].change_id
    other = FakePlatform().add_vm("other", SIZE)[0]
    assert platform.exchange_disk("one", 0, other) is disk
    assert take(platform, "job-2").disks[0].uuid == other.uuid
    assert platform.exchange_disk("one", 0, disk) is other
    disk.write(0, b"x")
    platform.tamper = lambda told: [*told, Extent(2 * BLOCK, BLOCK)]
    with platform.open_disk(take(platform, "job-3", base).reference, KEY) as view:
        assert list(view.list_changed()) == [Extent(0, BLOCK), Extent(2 * BLOCK, BLOCK)]
