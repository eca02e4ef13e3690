"""The disk under the repository or under the databases fails in the middle of a backup."""

import errno
from pathlib import Path

import pytest

from tests.faults.conftest import FAULTS, Disk
from tests.faults.served import Answer, Served, digest, until

SLOW_MILLISECONDS = 100  # for each write: the end of a backup takes seconds, not a blink
KINDS = {
    errno.ENOSPC: {"repository-full"},
    errno.EROFS: {"repository-read-only"},
    errno.EIO: {"storage-failed", "storage-unavailable"},
}
LOOKS = 60  # at a job whose disk gives I/O errors
REFUSALS = 20  # requests that change something, while the database cannot


def _begin(hub: Served, disk: Disk, vm: str, image: Path) -> Answer:
    """Start a backup of a disk that is all new, and wait until it is in the middle."""
    hub.write(image, seed=hash(vm))
    disk.slow(hub.folder / "repository", SLOW_MILLISECONDS)
    started = hub.start_backup(vm)
    until(lambda: hub.job(started["job_id"])["bytes_done"], lambda: hub.job(started["job_id"]))
    return started


def _check_truth(hub: Served, started: Answer, content: str) -> Answer:
    """Check that job and backup say the same, and that completed means restorable."""
    job = hub.wait(started["job_id"])
    backup = hub.backup(started["backup_id"])
    assert (backup["status"], backup["error"]) == (job["status"], job["error"])
    if backup["status"] == "completed":
        hub.check_restores(started["backup_id"], content)
    return job


@pytest.mark.parametrize("number", FAULTS)
def test_a_backup_whose_repository_fails_says_why_and_the_next_one_is_made(
    hub: Served, disk: Disk, number: int
) -> None:
    vm = f"repository-{errno.errorcode[number]}"
    image = hub.add_vm(vm, seed=number)
    before = digest(image)
    earlier = hub.back_up(vm)
    started = _begin(hub, disk, vm, image)
    disk.fail(hub.folder / "repository", number)
    job: Answer = {}

    looks = 0

    def has_met_it() -> bool:
        nonlocal job, looks
        looks += 1
        job = hub.job(started["job_id"])
        # An I/O error may pass: the step tries again for a while and shows no failure yet.
        passing = number == errno.EIO and looks > LOOKS
        return passing or any(step["status"] == "failed" for step in job["steps"])

    until(has_met_it, lambda: job)
    disk.mend()

    ended = _check_truth(hub, started, digest(image))
    if ended["status"] == "failed":
        assert ended["error"]["kind"] in KINDS[number], ended
        assert ended["error"]["hint"], ended
    hub.check_restores(earlier["backup_id"], before)
    hub.check_restores(hub.back_up(vm)["backup_id"], digest(image))


@pytest.mark.parametrize("number", FAULTS)
def test_a_backup_whose_databases_fail_goes_on_when_they_work_again(
    hub: Served, disk: Disk, number: int
) -> None:
    vm = f"database-{errno.errorcode[number]}"
    image = hub.add_vm(vm, seed=number)
    before = digest(image)
    earlier = hub.back_up(vm)
    started = _begin(hub, disk, vm, image)
    disk.fail(hub.data_dir, number)
    for _ in range(REFUSALS):
        body = {"name": f"renamed {number}"}
        answer = hub.api.patch(f"/repositories/{hub.repository_id}", json=body)
        # SQLite calls a page that cannot be read damaged: it cannot know whether it will come back.
        damaged = number == errno.EIO and "catalog-damaged" in answer.text
        assert answer.status_code in {503, 507} or damaged, answer.text
        assert answer.json()["hint"], answer.text
    disk.mend()

    assert hub.api.get(f"/repositories/{hub.repository_id}").json()["name"] == "main"
    _check_truth(hub, started, digest(image))
    hub.check_restores(earlier["backup_id"], before)
    hub.check_restores(hub.back_up(vm)["backup_id"], digest(image))
