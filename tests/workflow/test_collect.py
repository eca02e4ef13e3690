"""Garbage collection as a job, asked for or due."""

from datetime import timedelta
from typing import Any

import pytest

from sendense.db.tables import JobRow
from sendense.hub.backups import queries as backups
from sendense.hub.jobs.schemas import JobKind
from sendense.hub.repositories import queries, service
from sendense.hub.repositories.schemas import CollectGarbage
from sendense.repository.check import check
from sendense.repository.gc.verdict import Limits
from sendense.workflows import collect_garbage, schedules
from tests.workflow.conftest import content
from tests.workflow.world import World


def _collect(world: World, **wanted: Any) -> JobRow:
    asked = CollectGarbage.model_validate(wanted)
    with world.catalog.write() as session:
        job_id = service.start_gc(session, world.hub, world.repository_id, asked).job_id
    return world.wait(world.start(job_id))


def _delete(world: World, backup_id: str) -> None:
    with world.catalog.read() as session:
        row = queries.get_repository(session, world.repository_id)
    service.delete_backup(world.hub, row, backup_id, who="test")
    with world.catalog.write() as session:
        backups.delete_backup(session, backup_id, now=world.hub.clock.now())


@pytest.fixture
def made(world: World, seed: int) -> list[str]:
    """Two backups of other contents each, the first of them deleted."""
    first = world.back_up("web")
    with world.lab.disk("web").open("r+b") as disk:
        disk.write(content(seed + 1))
    second = world.back_up("web")
    assert (first.status, second.status) == ("completed", "completed")
    _delete(world, first.id)
    return [first.id, second.id]


def test_a_collection_frees_what_a_preview_promised(world: World, made: list[str]) -> None:
    preview = _collect(world, preview=True)
    assert (preview.status, preview.error) == ("completed", None)
    assert preview.result is not None
    assert preview.result["backup_count"] == 1
    assert preview.result["freed_bytes"] > 0

    done = _collect(world, now=True, confirmed=True)

    assert (done.status, done.error) == ("completed", None)
    assert done.result is not None
    assert (done.result["is_done"], done.result["backup_count"]) == (True, 1)
    assert done.result["freed_bytes"] >= preview.result["freed_bytes"]
    assert world.restore(made[1]) == world.lab.disk("web").read_bytes()
    with world.repository() as repository:
        assert check(repository, read_data=True).clean


def test_a_collection_that_would_have_to_ask_fails_and_says_how_to_confirm(
    world: World, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _delete(world, made[1])
    monkeypatch.setattr(collect_garbage, "LIMITS", Limits(condemn_bytes=0))
    refused = _collect(world, now=True)
    assert refused.status == "failed"
    assert refused.error is not None
    assert refused.error["kind"] == "gc-share-exceeded"
    assert _collect(world, now=True, confirmed=True).status == "completed"


def test_a_collection_that_waits_for_a_backup_is_cancelled(
    world: World, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    del made
    monkeypatch.setattr("sendense.repository.gc.run.POLL_SECONDS", 0.05)
    with world.repository() as repository:
        repository.begin_session("open")
    asked = CollectGarbage(now=True, confirmed=True)
    with world.catalog.write() as session:
        job_id = service.start_gc(session, world.hub, world.repository_id, asked).job_id
    world.start(job_id)
    world.until(lambda: world.job(job_id).current_phase == "waiting for backups")
    world.cancel(job_id)
    assert world.wait(job_id).status == "cancelled"

    with world.repository() as repository:
        repository.abort("open", "the test is over")
    done = _collect(world, now=True, confirmed=True)
    assert (done.status, (done.result or {})["backup_count"]) == ("completed", 1)


def test_what_is_due_once_a_day_is_started_once_a_day(world: World) -> None:
    daily, _ = schedules.plan(gc_every=timedelta(days=1), export_every=timedelta(days=1))
    hub = world.hub

    def due(after: timedelta) -> list[str]:
        with world.catalog.write() as session:
            now = hub.clock.now() + after
            return schedules.create_due_jobs(session, daily, now=now, ids=hub.ids)

    assert due(timedelta(hours=1)) == []
    (job_id,) = due(timedelta(hours=25))
    assert due(timedelta(hours=26)) == []
    assert world.wait(world.start(job_id)).status == "completed"
    assert world.job(job_id).kind == JobKind.GC
    (second,) = due(timedelta(hours=50))
    with world.catalog.write() as session:
        queries.get_repository(session, world.repository_id).enabled = False
    assert due(timedelta(hours=100)) == []
    assert second != job_id


def test_a_worker_starts_what_is_due(world: World) -> None:
    world.worker.housekeeping.schedules = (
        schedules.Schedule(JobKind.GC, timedelta(0), CollectGarbage().model_dump()),
    )

    def ended() -> bool:
        world.worker.housekeeping.run()
        with world.catalog.read() as session:
            return any(
                job.kind == JobKind.GC and job.status == "completed"
                for job in session.query(JobRow)
            )

    world.until(ended)
