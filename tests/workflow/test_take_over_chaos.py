"""Workers that die and freeze at random for a while: each job is done once, whole, and in time."""

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sendense.durable import lease_terms
from tests.workflow import crew as crews
from tests.workflow import world as worlds
from tests.workflow.conftest import content
from tests.workflow.crew import Crew, Member
from tests.workflow.world import Setting, World

MIB = 1024 * 1024
LEASE_SECONDS = 3.0
SECONDS = 20.0
SECONDS_LONG = 300.0
BLOW_SECONDS = (2.5, 4.5)  # between two blows
VMS = 4
# 1.5 leases and the time until the next sweep.
LATENCY_SECONDS_MAX = LEASE_SECONDS * (lease_terms.DEAD_SHARE + 0.25)


class Chaos:
    """Strikes workers, hires others for them, and lets those wake that were frozen far away."""

    def __init__(self, crew: Crew, chance: random.Random, machines: tuple[str, ...]) -> None:
        self._crew = crew
        self._chance = chance
        self._machines = machines
        self.victims: list[Member] = []

    def strike(self) -> None:
        ready = self._crew.list_ready()
        able = [one for one in self._crew.members if one.stopped_at is None and one.id in ready]
        if not able:
            return
        victim = self._chance.choice(able)
        if self._chance.random() < 0.5:
            victim.kill()
        else:
            victim.freeze()
        self.victims.append(victim)
        self._crew.hire(machine=self._chance.choice(self._machines))

    def wake(self) -> None:
        """Let those go on that were frozen for longer than anybody waits."""
        now = lease_terms.awake_seconds()
        for one in self.victims:
            assert one.stopped_at is not None
            old = now - one.stopped_at > 2 * LEASE_SECONDS
            if old and one.woken_at is None and one.process.poll() is None and one.is_frozen:
                one.thaw()


def _run(world: World, chaos: Chaos, seconds: float, chance: random.Random) -> list[str]:
    """Keep all VMs in backup while blows fall; return the ids of the jobs."""
    jobs: list[str] = []
    running: dict[str, str] = {}
    began = lease_terms.awake_seconds()
    next_blow = began + chance.uniform(*BLOW_SECONDS)
    while (now := lease_terms.awake_seconds()) < began + seconds:
        for vm in (f"vm{number}" for number in range(VMS)):
            if vm not in running or world.job(running[vm]).finished_at is not None:
                _, running[vm] = world.start_backup(vm)
                jobs.append(running[vm])
        if now > next_blow:
            chaos.strike()
            next_blow = now + chance.uniform(*BLOW_SECONDS)
        chaos.wake()
        threading.Event().wait(0.2)
    for job_id in jobs:
        world.wait(job_id)
    return jobs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "workers", "machines"),
    [("sqlite", 2, ("",)), ("postgresql", 3, ("", "far"))],
    ids=["sqlite-two-workers", "postgresql-three-workers-two-machines"],
)
def test_jobs_are_done_once_whatever_happens_to_workers(
    kind: str,
    workers: int,
    machines: tuple[str, ...],
    tmp_path: Path,
    database_url: Callable[[str], str],
    seed: int,
    *,
    long_run: bool,
) -> None:
    chance = random.Random(seed)
    url = database_url(kind) if kind != "sqlite" else ""
    setting = Setting("the-test", lease_seconds=LEASE_SECONDS, catalog_url=url)
    world = worlds.build(tmp_path, setting)
    worlds.register(world)
    for number in range(VMS):
        world.lab.add_vm(f"vm{number}", content(seed + number, 8 * MIB))
    base = Setting(lease_seconds=LEASE_SECONDS, catalog_url=url, bytes_per_second=4 * MIB)
    with crews.gathered(world, base) as crew:
        for number in range(workers):
            crew.hire(machine=machines[number % len(machines)])
        assert world.discover().status == "completed"
        crew.wait_ready()
        chaos = Chaos(crew, chance, machines)

        jobs = _run(world, chaos, SECONDS_LONG if long_run else SECONDS, chance)

        _check(world, crew, jobs, killed=len(chaos.victims))
        latencies = [found for one in chaos.victims if (found := crew.latency(one)) is not None]
        limit = LATENCY_SECONDS_MAX + crew.slack_seconds()
        assert max(latencies, default=0.0) < limit, f"{latencies}, seed {seed}"
    world.client.close()
    world.catalog.close()


def _check(world: World, crew: Crew, jobs: list[str], *, killed: int) -> None:
    """Hold that each job was done once, and that nothing is left behind."""
    done = {job_id: world.job(job_id) for job_id in jobs}
    assert {job.status for job in done.values()} == {"completed"}, [
        (job.id, job.error, job.log) for job in done.values() if job.status != "completed"
    ]
    world.until(lambda: world.lab.snapshots == [])
    assert set(crew.snapshots().values()) == {1}
    # Who was killed between a deed and its line in the book left one out.
    assert 2 * len(jobs) - killed <= len(crew.snapshots()) <= 2 * len(jobs)
    assert crew.find_overlaps() == []
    assert crew.find_deeds_of_the_woken() == []
    assert len(world.lab.change_ids) == VMS
    with world.repository() as repository:
        kept = {one.backup_id for one in repository.list_backups()}
    assert kept == {str(job.subject["backup_id"]) for job in done.values()}
    for number in range(VMS):
        newest = max(one for one in kept if one.startswith(f"backup-vm{number}-"))
        assert world.restore(newest) == world.lab.disk(f"vm{number}").read_bytes()
