"""What can happen to the parts of a rig, each with what must follow at once.

A blow is struck while a job runs, perhaps while its worker holds at a stop; it lets go of that, and
returns when everything runs again but the job.
"""

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable

import psutil

from demo.hub import DemoFailed
from tests.kill.rig import (
    LEASE_SECONDS,
    RESUME_SECONDS_MAX,
    BaseRig,
    Rig,
    Started,
    is_running,
    wait_for,
)

LOCKED_SECONDS = 1.0  # a hub that sleeps may hold a lock: workers have to bear that for a while

Blow = Callable[[Rig, Started, random.Random], None]


def kill_worker(rig: BaseRig, started: Started, _dice: random.Random) -> None:
    """Kill the worker that has the job: another one has to go on in time."""
    rig.ensure_workers(2)
    pid, since = rig.find_owner(started.job_id), time.time()
    os.kill(pid, signal.SIGKILL)
    rig.release()
    rig.replace_worker(pid)  # for the next time; it need not be there yet
    rig.wait_for_successor(started.job_id, pid, since)


def freeze_worker(rig: BaseRig, started: Started, _dice: random.Random) -> None:
    """Freeze the worker for good: it is ended, and another one goes on in time."""
    rig.ensure_workers(2)
    pid = rig.find_owner(started.job_id)
    psutil.Process(pid).suspend()
    since = time.time()
    rig.release()
    rig.replace_worker(pid)
    rig.wait_for_successor(started.job_id, pid, since)
    wait_for(lambda: not is_running(pid), "the end of a frozen worker", RESUME_SECONDS_MAX)
    late = [one for one in rig.journal_of(started.job_id) if one.pid == pid and one.at > since]
    assert late == []


def nap_worker(rig: BaseRig, started: Started, dice: random.Random) -> None:
    """Freeze the worker and wake it: it goes on itself, or it was ended and changes nothing."""
    sleeper = psutil.Process(rig.find_owner(started.job_id))
    sleeper.suspend()
    rig.release()
    threading.Event().wait(dice.uniform(0, LEASE_SECONDS))
    with contextlib.suppress(psutil.NoSuchProcess):
        sleeper.resume()


def kill_hub(rig: Rig, started: Started, _dice: random.Random) -> None:
    """Kill the hub: its worker goes on, and the next hub finds it."""
    # One that has just begun holds no file yet; one whose hub was killed before may have ended.
    wait_for(lambda: rig.has_owner(started.job_id), "a worker that has the job", RESUME_SECONDS_MAX)
    before = set(rig.list_workers().values())
    since = time.time()
    rig.kill_hub()
    rig.release()
    rig.restart_hub()
    wait_for(lambda: rig.is_over(started.job_id), f"the end of {started.job_id}")
    done = [one for one in rig.journal_of(started.job_id) if one.at > since]
    assert {one.pid for one in done} <= before, done


def nap_hub(rig: Rig, _started: Started, _dice: random.Random) -> None:
    """Freeze the hub for a while: workers go on, and it answers when it wakes."""
    hub = psutil.Process(rig.hub.process_id)
    hub.suspend()
    rig.release()
    threading.Event().wait(LOCKED_SECONDS)
    hub.resume()


def kill_guest(rig: Rig, started: Started, dice: random.Random) -> None:
    """Kill QEMU and start it again, at once or when the job has ended."""
    rig.guest.kill()
    rig.release()
    if dice.random() < 0.5:
        wait_for(lambda: rig.is_over(started.job_id), f"the end of {started.job_id}")
    rig.start_guest()


def nap_guest(rig: Rig, _started: Started, _dice: random.Random) -> None:
    """Freeze QEMU for a while: the job waits for it."""
    qemu = psutil.Process(rig.guest.process_id)
    qemu.suspend()
    rig.release()
    threading.Event().wait(LOCKED_SECONDS)
    qemu.resume()


def cancel(rig: Rig, started: Started, _dice: random.Random) -> None:
    """Cancel the job: it ends, and nothing it saw changed is lost."""
    try:
        rig.hub.post(f"/jobs/{started.job_id}/cancel", {})
    except DemoFailed as error:  # it had ended just before
        if "job-ended" not in error.message:
            raise
    rig.release()
    job = rig.wait_for_end(started)
    assert job["status"] in {"cancelled", "completed"}, job


KINDS: dict[str, tuple[Blow, ...]] = {
    "worker": (kill_worker, freeze_worker, nap_worker),
    "hub": (kill_hub, nap_hub),
    "guest": (kill_guest, nap_guest),
    "person": (cancel,),
}


def strike(rig: Rig, blow: Blow, started: Started, dice: random.Random) -> None:
    """Strike, and assert that the job ends well or with a reason, and that all goes on after it."""
    blow(rig, started, dice)
    backup = rig.settle(started, repeats=1)
    if blow not in {kill_guest, cancel}:
        assert backup["status"] == "completed", rig.hub.get(f"/jobs/{started.job_id}")["error"]
    following = rig.back_up()
    for disk in following["disks"]:
        if blow is kill_guest:
            assert disk["backup_type"] == "incremental" or disk["type_reason"], disk
        else:
            assert disk["backup_type"] == "incremental", disk
    rig.assert_restores(dice.choice(rig.history))
