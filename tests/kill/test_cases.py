"""What else can happen to a guest, its hub and its repositories while a backup runs."""

import os
import random
import resource
import signal
from pathlib import Path

import psutil
import pytest

from sendense.connectors.qemu.qmp import Qmp
from sendense.core.units import MIB
from tests.kill import blows
from tests.kill.rig import (
    RAW_BYTES,
    RESUME_SECONDS_MAX,
    STILL_BYTES,
    Rig,
    digest_of,
    wait_for,
)

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

# Places in the life of a snapshot that lie within a step.
COMMANDS = (
    "object-add",
    "stop",
    "qom-set",
    "transaction",
    "cont",
    "object-del",
    "blockdev-add",
    "block-export-add",
    "block-export-del",
    "blockdev-del",
    "nbd-server-stop",
)


def types_of(backup: dict[str, object]) -> list[object]:
    disks = backup["disks"]
    assert isinstance(disks, list)
    return [disk["backup_type"] for disk in disks]


def test_a_scratch_place_that_fills_up_fails_the_backup_and_never_the_guest(rig: Rig) -> None:
    # QEMU may write no file behind what its image has grown to; what the guest overwrites at the
    # end of its disk cannot be saved then. It has to hold data there: zeros are saved as a hole.
    overwrite = "dd if=/dev/urandom of=/dev/vda bs=64k seek=1000 count=20 conv=notrunc; sync"
    rig.guest.shell(overwrite)
    limit = rig.guest.disks[0].path.stat().st_size + 12 * MIB
    assert limit < STILL_BYTES, "this test comes first, while the image is small"
    rig.stop_at("before", "decide")
    started = rig.ask(rig.write())
    rig.wait_until_held(started.job_id)
    qemu = psutil.Process(rig.guest.process_id)
    qemu.rlimit(psutil.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        rig.guest.shell(overwrite)
        rig.release()
        assert rig.settle(started)["status"] == "failed"
    finally:
        qemu.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    error = rig.hub.get(f"/jobs/{started.job_id}")["error"]
    assert error["kind"] == "fleecing-full"
    assert types_of(rig.back_up()) == ["incremental", "incremental"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Kill beside each command in a long run; in a quick one where the guest is held by us."""
    if "command" in metafunc.fixturenames:
        is_long = metafunc.config.option.long
        metafunc.parametrize("command", COMMANDS if is_long else ["transaction"])


def test_a_worker_killed_in_the_middle_of_a_snapshot_leaves_the_guest_free(
    rig: Rig, dice: random.Random, command: str, *, long_run: bool
) -> None:
    for when in ("before", "after") if long_run else ("before",):
        rig.stop_at(when, f"qmp.{command}")
        started = rig.ask(rig.write())
        rig.wait_until_held(started.job_id)
        blows.kill_worker(rig, started, dice)
        wait_for(
            lambda: bool(rig.guest.monitor.execute("query-status")["running"]),
            "a guest that runs",
            RESUME_SECONDS_MAX,
        )
        assert types_of(rig.settle(started, repeats=1)) == ["incremental", "incremental"]


def test_a_guest_that_its_admin_pauses_stays_paused_and_is_backed_up(rig: Rig) -> None:
    rig.stop_at("before", "transfer.disk-2000")
    started = rig.ask(rig.write())
    rig.wait_until_held(started.job_id)
    rig.guest.pause()
    rig.release()
    assert rig.wait_for_end(started)["status"] == "completed"
    assert rig.guest.monitor.execute("query-status")["status"] == "paused"
    rig.guest.resume()
    assert types_of(rig.settle(started)) == ["incremental", "incremental"]


@pytest.mark.usefixtures("only_long")
def test_a_guest_that_was_paused_before_the_backup_stays_paused(rig: Rig) -> None:
    digest = rig.write(count=0)
    rig.guest.pause()
    following = rig.ask(digest)
    assert rig.wait_for_end(following)["status"] == "completed"
    assert rig.guest.monitor.execute("query-status")["status"] == "paused"
    rig.guest.resume()
    rig.settle(following)


@pytest.mark.usefixtures("only_long")
def test_after_the_newest_backup_was_deleted_the_next_one_is_whole(rig: Rig) -> None:
    deleted = rig.back_up()
    assert rig.delete(f"/backups/{deleted['backup_id']}") == 200
    rig.history.pop()
    following = rig.back_up()
    assert types_of(following) == ["full", "full"]
    assert all(disk["type_reason"] for disk in following["disks"])
    assert types_of(rig.back_up()) == ["incremental", "incremental"]


def test_a_backup_deleted_while_an_incremental_on_it_runs_takes_nothing_away(rig: Rig) -> None:
    parent = rig.back_up()
    rig.stop_at("before", "transfer.disk-2000")
    started = rig.ask(rig.write())
    rig.wait_until_held(started.job_id)
    assert rig.delete(f"/backups/{parent['backup_id']}") == 200
    rig.history.pop()
    rig.release()
    backup = rig.settle(started)
    assert backup["status"] == "completed", rig.hub.get(f"/jobs/{started.job_id}")["error"]
    assert backup["disks"][0]["backup_type"] == "full"
    assert backup["disks"][0]["type_reason"] == "the parent backup was deleted"
    assert types_of(rig.back_up()) == ["incremental", "incremental"]


def test_two_repositories_in_alternation_keep_their_own_chains(rig: Rig, *, long_run: bool) -> None:
    other = rig.add_repository("other")
    assert types_of(rig.back_up(other)) == ["full", "full"]
    for _ in range(3 if long_run else 1):
        for place in (rig.repository, other):
            backup = rig.back_up(place)
            reasons = [disk["type_reason"] for disk in backup["disks"]]
            assert types_of(backup) == ["incremental", "incremental"], reasons


def test_a_monitor_that_is_busy_for_a_while_delays_a_backup(rig: Rig) -> None:
    with Qmp(rig.guest.qmp_socket):
        started = rig.ask(rig.write())
        rig.hub.wait_for_step(started.job_id, "plan")
    assert rig.settle(started)["status"] == "completed"


def is_failed(rig: Rig, job_id: str, step: str) -> bool:
    shown = rig.hub.get(f"/jobs/{job_id}")["steps"]
    return any(one["name"] == step and one["status"] == "failed" for one in shown)


@pytest.mark.usefixtures("only_long")
def test_a_monitor_that_stays_busy_or_is_dead_fails_the_backup_with_a_reason(
    rig: Rig,
) -> None:
    with Qmp(rig.guest.qmp_socket):
        started = rig.ask(rig.write())
        wait_for(lambda: is_failed(rig, started.job_id, "take_snapshot"), "a snapshot given up")
    # Until now nobody could look whether something was left of a snapshot.
    assert rig.wait_for_end(started)["error"]["kind"] == "qmp-busy"
    rig.settle(started)
    digest = rig.write()
    rig.guest.kill()
    started = rig.ask(digest)
    assert rig.wait_for_end(started)["error"]["kind"] == "qmp-unreachable"
    rig.start_guest()
    rig.settle(started)
    killed = rig.back_up()
    assert types_of(killed) == ["full", "full"]
    assert all(disk["type_reason"] for disk in killed["disks"])


@pytest.mark.usefixtures("only_long")
def test_a_guest_that_was_shut_down_during_a_backup_keeps_its_changes(rig: Rig) -> None:
    rig.stop_at("before", "transfer.disk-2000")
    started = rig.ask(rig.write())
    rig.wait_until_held(started.job_id)
    rig.guest.quit()
    rig.release()
    assert rig.wait_for_end(started)["status"] == "failed"
    rig.start_guest()
    following = rig.back_up()
    # The raw image cannot store its bitmap.
    assert types_of(following) == ["incremental", "full"]
    rig.settle(started)


def test_neither_source_nor_repository_goes_while_a_job_needs_it(rig: Rig) -> None:
    rig.stop_at("before", "transfer.disk-2000")
    started = rig.ask(rig.write())
    rig.wait_until_held(started.job_id)
    assert rig.delete(f"/sources/{rig.source_id}") == 409
    assert rig.delete(f"/repositories/{rig.repositories[rig.repository]}") == 409
    rig.release()
    assert rig.settle(started)["status"] == "completed"


@pytest.mark.usefixtures("only_long")
def test_a_disk_of_zeros_and_trims_are_told(rig: Rig) -> None:
    rig.guest.shell(
        f"dd if=/dev/zero of=/dev/vda bs=1M count={STILL_BYTES // MIB} conv=notrunc; sync"
    )
    zeros = rig.ask(rig.write(count=0), backup_type="full")
    backup = rig.settle(zeros)
    scribbled = RAW_BYTES - STILL_BYTES
    assert backup["disks"][0]["bytes_new"] <= scribbled
    rig.back_up()
    rig.guest.shell("blkdiscard -o 0 -l 16777216 /dev/vda; sync")
    trimmed = rig.settle(rig.ask(rig.write(count=0)))
    assert types_of(trimmed) == ["incremental", "incremental"]


@pytest.mark.usefixtures("only_long")
def test_a_hub_stopped_in_order_leaves_its_job_to_the_next(rig: Rig) -> None:
    rig.drop_spares()
    with rig.slow_reads(0.3):
        rig.stop_at("before", "transfer.disk-2000")
        started = rig.ask(rig.write(count=64))
        rig.wait_until_held(started.job_id)
        rig.release()
        rig.stop_hub()
    rig.restart_hub()
    assert rig.settle(started, repeats=1)["status"] == "completed"


@pytest.mark.parametrize("victim", ["worker", "hub"])
def test_a_restore_whose_worker_or_hub_is_killed_leaves_one_whole_file(
    rig: Rig, victim: str, *, long_run: bool
) -> None:
    if victim == "hub" and not long_run:
        pytest.skip("only in a long run")
    folder = rig.folder / f"restored-{victim}"
    folder.mkdir()
    kept = rig.history[-1]
    for when in ("before", "after"):
        target = folder / f"{when}.raw"
        rig.ensure_workers(2)
        rig.stop_at(when, "restore")
        job_id = start_restore(rig, kept.backup_id, target)
        rig.wait_until_held(job_id)
        if victim == "worker":
            os.kill(rig.find_owner(job_id), signal.SIGKILL)
            rig.release()
        else:
            rig.kill_hub()
            rig.release()
            rig.restart_hub()
        job = rig.hub.wait_for_end(job_id)
        assert job["status"] == "completed", job["error"]
        assert digest_of(target) == kept.digest
    assert sorted(path.name for path in folder.iterdir()) == ["after.raw", "before.raw"]


def start_restore(rig: Rig, backup_id: str, target: Path) -> str:
    body = {
        "backup_id": backup_id,
        "disk_id": 0,
        "target": {"type": "file", "path": str(target), "format": "raw"},
    }
    return str(rig.hub.post("/restores", body)["job_id"])
