"""Workers are killed while they back up a vCenter's VM: no snapshot of ours is left, ever."""

import random
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from demo.vcenter.lab import Vcenter
from tests.kill import blows
from tests.kill.rig import (
    BLOCK,
    MOUNTED_BYTES,
    RAW_BYTES,
    RAW_KEY,
    STILL_BYTES,
    BaseRig,
    digest_of,
)
from tests.kill.test_steps import KILLS_MAX, choose_boundaries
from tests.vcsim.fixtures import require_simulator

pytestmark = pytest.mark.timeout(600)

MOMENTS, MOMENTS_LONG = 4, 40
READ_SECONDS = 0.05  # makes reading last as long as the rest, so that moments fall into it
USERS = "before the update"


class VcenterRig(BaseRig):
    """A VM of a simulated vCenter, whose guest writes all the time; with a snapshot of its user."""

    def __init__(self, folder: Path) -> None:
        self.prepare(folder)
        self.vcenter = Vcenter(folder / "disks")
        self.vcenter.add_vm("guest", RAW_BYTES, MOUNTED_BYTES)
        self.vcenter.reconfigure("guest", changeTrackingEnabled=True)
        self.vcenter.take_snapshot("guest", USERS)
        self._offset = 0
        self._dice = random.Random(0)
        self._disk = self.vcenter.live("guest", RAW_KEY)
        self._done = threading.Event()
        self._scribbler = threading.Thread(target=self._scribble)
        self._scribbler.start()
        self.register(
            type="vsphere",
            config=self.vcenter.describe(),
            credentials=self.vcenter.credentials,
        )

    def close(self) -> None:
        """End everything that was started."""
        super().close()
        self._done.set()
        self._scribbler.join()
        self.vcenter.close()

    def write(self, *, count: int = 16) -> str:
        """Let the guest write blocks to its first disk; return the digest of what is in it."""
        content = self.vcenter.content
        content.write(self._disk, self._offset * BLOCK, self._dice.randbytes(count * BLOCK))
        self._offset = (self._offset + 17 * count) % (STILL_BYTES // BLOCK - count)
        return digest_of(self._disk)

    def list_left_in_guest(self) -> list[str]:
        """Return snapshots of ours, and readers that nobody uses."""
        left = [name for name in self.vcenter.list_snapshots("guest") if name != USERS]
        for process in psutil.process_iter(["name", "cmdline"]):
            words = " ".join(process.info["cmdline"] or ())
            if process.info["name"] == "nbdkit" and str(self.vcenter.file_dir) in words:
                left.append(f"nbdkit {process.pid}")
        return left

    def _scribble(self) -> None:
        dice = random.Random(1)
        while not self._done.wait(0.1):
            block = dice.randrange(STILL_BYTES // BLOCK, RAW_BYTES // BLOCK)
            self.vcenter.content.write(self._disk, block * BLOCK, dice.randbytes(BLOCK))


@pytest.fixture(scope="module")
def shared_rig() -> Iterator[VcenterRig]:
    require_simulator()
    with tempfile.TemporaryDirectory(prefix="sendense-kill-") as name:
        rig = VcenterRig(Path(name))
        try:
            yield rig
        finally:
            rig.close()


def test_a_worker_killed_at_each_boundary_of_steps_leaves_no_snapshot(
    rig: VcenterRig, dice: random.Random, *, long_run: bool
) -> None:
    chosen = choose_boundaries(dice, long_run=long_run)
    for first in range(0, len(chosen), KILLS_MAX):
        sides = chosen[first : first + KILLS_MAX]
        for when, step in sides:
            rig.stop_at(when, step)
        started = rig.ask(rig.write())
        for _ in sides:
            rig.wait_until_held(started.job_id)
            blows.kill_worker(rig, started, dice)
        repeats = sum(when == "after" and "transfer." not in step for when, step in sides)
        backup = rig.settle(started, repeats=repeats, kills=len(sides))
        assert backup["status"] == "completed"
        assert backup["disks"][0]["backup_type"] == "incremental", backup["disks"]
    assert rig.vcenter.list_snapshots("guest") == [USERS]


def test_a_worker_killed_at_random_moments_leaves_no_snapshot(
    rig: VcenterRig, dice: random.Random, *, long_run: bool
) -> None:
    rig.ensure_workers(2)
    with rig.slow_reads(READ_SECONDS):
        first, began = rig.ask(rig.write()), time.monotonic()
        rig.hub.wait_for_job(first.job_id)
        usual = time.monotonic() - began
        rig.settle(first)
        for number in range(MOMENTS_LONG if long_run else MOMENTS):
            delay = dice.uniform(0, usual)
            started = rig.ask(rig.write())
            threading.Event().wait(delay)
            try:
                blows.kill_worker(rig, started, dice)
                assert rig.settle(started, repeats=1)["status"] == "completed"
            except BaseException as error:
                error.add_note(f"moment {number}: killed after {delay:.3f} s")
                raise
    assert rig.vcenter.list_snapshots("guest") == [USERS]


def test_a_frozen_worker_is_replaced_and_leaves_no_snapshot(
    rig: VcenterRig, dice: random.Random
) -> None:
    rig.stop_at("before", "transfer.disk-2000")
    started = rig.ask(rig.write())
    rig.wait_until_held(started.job_id)
    blows.freeze_worker(rig, started, dice)
    assert rig.settle(started, repeats=1)["status"] == "completed"
    assert rig.vcenter.list_snapshots("guest") == [USERS]


def test_every_backup_that_was_committed_still_restores(rig: VcenterRig) -> None:
    for kept in rig.history:
        rig.assert_restores(kept)
    rig.assert_repositories_whole()
