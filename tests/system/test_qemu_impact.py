"""What a backup may cost a real guest: its limit slows the backup down, or ends it, cleanly."""

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from demo.guest.image import GuestImage
from demo.guest.vm import Guest
from sendense.connectors.base import Source
from sendense.connectors.qemu.source import QemuSource
from sendense.core.units import MIB
from sendense.db.tables import SourceRow
from sendense.engine import throttle
from tests.system.conftest import create_guest
from tests.system.test_qemu_pitfalls import list_bitmaps, list_ours
from tests.workflow import world as worlds
from tests.workflow.world import World

pytestmark = pytest.mark.guest

# Each write waits for the disk, as a database's do.
WRITER = "while :; do dd if=/dev/zero of=/mnt/{}/busy bs=4k count=20 conv=notrunc,fsync; done"
NEVER_MET_MS = 0.001  # no emulated disk writes in a microsecond
RATE = 4 * MIB  # or the small disks are read before it has looked often enough
MUCH_BYTES = 12 * MIB


@pytest.fixture(scope="module")
def guest(guest_image: GuestImage) -> Iterator[Guest]:
    """A guest that writes to both disks all the time."""
    with (
        tempfile.TemporaryDirectory(prefix="sendense-test-") as name,
        create_guest(Path(name) / "busy", guest_image) as guest,
    ):
        guest.start()
        guest.shell(
            f"yes | dd iflag=fullblock of=/mnt/a/much bs=1M count={MUCH_BYTES // MIB}; sync"
        )
        for mount in ("a", "b"):
            guest.spawn(WRITER.format(mount))
        yield guest


@pytest.fixture
def world(guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A worker that knows the guest and looks at it more often."""
    monkeypatch.setattr(throttle, "POLL_SECONDS", 0.3)
    monkeypatch.setattr(throttle, "GIVE_UP_SECONDS", 1.5)
    made = worlds.build(tmp_path, worlds.Setting())
    worlds.register(made)

    @contextmanager
    def open_source(row: SourceRow) -> Iterator[Source]:
        yield QemuSource(row.config, Path, guest.folder / "scratch")

    engine: Any = made.worker.engine
    engine._context = replace(engine._context, open_source=open_source)
    thread = threading.Thread(target=made.worker.run, args=(made.stop,))
    thread.start()
    try:
        yield made
    finally:
        made.stop.set()
        thread.join()


def limit(world: World, guest: Guest, **config: Any) -> None:
    vm = {"name": guest.name, "qmp": str(guest.qmp_socket), "agent": None}
    with world.catalog.write() as session:
        session.get_one(SourceRow, world.source_id).config = {
            "vms": [vm],
            "write_latency_ms_max": NEVER_MET_MS,
            "read_bytes_per_second_max": RATE,
            **config,
        }
    assert world.discover().status == "completed"


def test_a_limit_that_is_surely_exceeded_slows_the_backup_down(world: World, guest: Guest) -> None:
    limit(world, guest)

    backup = world.back_up(guest.name, consistency="off")

    assert backup.status == "completed"
    (warning,) = [
        one for one in backup.warnings if one.startswith("disk-2000") and "read slower for" in one
    ]
    assert "the limit is 0.001 ms" in warning
    began, ended = backup.started_at, backup.completed_at
    assert began is not None
    assert ended is not None
    assert (ended - began).total_seconds() > MUCH_BYTES / RATE
    assert list_ours(guest) == []


def test_a_backup_that_shall_give_up_does_and_nothing_of_it_stays(
    world: World, guest: Guest
) -> None:
    limit(world, guest, on_write_latency="give_up")

    _, job_id = world.start_backup(guest.name, consistency="off")
    job = world.wait(job_id)

    assert (job.status, job.error and job.error["kind"]) == ("failed", "write-latency-exceeded")
    assert list_ours(guest) == []
    assert [list_bitmaps(guest, disk.name) for disk in guest.disks] == [[], []]
