"""The wall clock is set back an hour while the hub runs."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from sendense.core.clock import ManualClock
from sendense.db.catalog import Catalog
from sendense.hub.jobs import queries as jobs
from sendense.hub.jobs.events import Feed
from tests.api import kit

HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, migrated_urls: Callable[[str], str]
) -> Iterator[kit.Served]:
    catalog = Catalog(migrated_urls("sqlite"))
    hub, _, _ = kit.make_hub(tmp_path_factory.mktemp("hub"), catalog)
    with kit.serve(hub) as running:
        yield running
    catalog.close()


@pytest.fixture
def lab(
    tmp_path: Path, open_catalog: Callable[[str], Catalog], served: kit.Served
) -> Iterator[kit.Lab]:
    with kit.open_lab(tmp_path, open_catalog("sqlite"), served) as opened:
        yield opened


def set_clock(lab: kit.Lab, by: timedelta) -> None:
    lab.clock = ManualClock(lab.clock.now() + by)
    lab.replace_hub(clock=lab.clock)


@pytest.mark.parametrize("by", [-HOUR, HOUR], ids=["back", "forward"])
def test_chain_list_and_parent_follow_the_order_of_backups_not_of_a_clock_that_was_set(
    lab: kit.Lab, by: timedelta
) -> None:
    vm_id = lab.add_vm(disks=1)
    repository = lab.add_repository()
    made = []
    for _ in range(3):
        made.append(lab.start_backup(repository)["backup_id"])
        lab.complete(made[-1])
        set_clock(lab, by if len(made) == 1 else timedelta(minutes=1))

    chain = lab.api.get(f"/backups/{vm_id}/chain").json()
    assert [one["backup_id"] for one in chain["backups"]] == made
    assert (chain["full_backup_id"], chain["latest_backup_id"]) == (made[0], made[-1])
    listed = lab.api.get("/backups").json()["backups"]
    assert [one["backup_id"] for one in listed] == made[::-1]
    parents = [one["parent_backup_id"] for one in chain["backups"]]
    assert parents[2] in {None, made[1]}
    assert len(set(made)) == 3


def test_a_clock_that_was_years_ahead_does_not_hold_later_backups_in_the_future(
    lab: kit.Lab,
) -> None:
    lab.add_vm(disks=1)
    repository = lab.add_repository()
    set_clock(lab, timedelta(days=1000))
    lab.complete(lab.start_backup(repository)["backup_id"])
    set_clock(lab, timedelta(days=-1000))

    backup = lab.api.get(f"/backups/{lab.start_backup(repository)['backup_id']}").json()

    assert backup["created_at"].startswith(lab.clock.now().strftime("%Y-%m-%dT%H:%M"))


def test_a_listener_learns_of_changes_after_the_clock_was_set_back(lab: kit.Lab) -> None:
    lab.add_vm(disks=1)
    repository = lab.add_repository()
    lab.complete(lab.start_backup(repository)["backup_id"])
    feed = Feed(lab.hub, job_id=None, last_event_id=None)
    feed.look()
    set_clock(lab, -HOUR)
    feed = _on(feed, lab)

    started = lab.start_backup(repository)

    assert started["job_id"] in {job.job_id for job in feed.look()}


def _on(feed: Feed, lab: kit.Lab) -> Feed:
    feed._hub = lab.hub
    return feed


def test_a_job_that_waits_for_the_sweep_is_not_forgotten_when_the_clock_is_set_back(
    lab: kit.Lab,
) -> None:
    lab.add_vm(disks=1)
    repository = lab.add_repository()
    lab.starter.reachable = False
    started = lab.start_backup(repository)
    set_clock(lab, -HOUR)

    with lab.hub.catalog.read() as session:
        waiting = jobs.list_unqueued(session, before=lab.clock.now())

    assert [job.id for job in waiting] == [started["job_id"]]
