"""The jobs of a hub whose repository lies in a real S3 server, behind a network that fails."""

import logging
import random

import pytest

from sendense.hub.jobs.schemas import JobKind
from sendense.hub.repositories import queries, registration, service
from sendense.hub.repositories.schemas import CollectGarbage, CreateRepository
from sendense.repository.storage import locations, probe
from sendense.repository.storage.base import Storage
from sendense.repository.storage.object_store import ObjectStorage
from tests.s3.fixtures import IMPATIENT, url_of
from tests.s3.proxy import Asked, Fault, Proxy
from tests.workflow.conftest import content
from tests.workflow.world import World

FAULTS = (Fault.BUSY, Fault.SLOW_DOWN, Fault.LOST, Fault.CUT)
SHARE = 0.1


@pytest.fixture
def url(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place behind the proxy, opened by a storage that hardly waits between its tries."""
    made = url_of(proxy.endpoint)

    def open_place(place: locations.Place) -> Storage:
        store = locations.connect(place, request_seconds=IMPATIENT.request_seconds)
        return ObjectStorage(store, limits=IMPATIENT)

    monkeypatch.setattr(locations, "open_place", open_place)
    monkeypatch.setattr(probe, "ROUNDS", 5)  # the whole trial: tests/system/test_object_store.py
    return made


def test_jobs_work_on_an_object_store_that_fails(
    world: World, url: str, proxy: Proxy, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    wanted = CreateRepository.model_validate(
        {"name": "offsite", "type": "s3", "config": {"url": url}}
    )
    opened = registration.open_or_make(world.hub, wanted)
    with world.catalog.write() as session:
        made = registration.create(session, world.hub, wanted, opened)
    assert made.config["trial"]["fit"] is True
    world.repository_id = made.id
    dice = random.Random(seed)

    def choose(_: Asked) -> Fault | None:
        return dice.choice(FAULTS) if dice.random() < SHARE else None

    proxy.choose = choose
    first = world.back_up("web")
    assert first.status == "completed", first.error
    with world.lab.disk("web").open("r+b") as disk:
        disk.write(content(seed + 1))
    second = world.back_up("web")
    assert second.status == "completed", second.error
    with world.catalog.read() as session:
        row = queries.get_repository(session, made.id)
    service.delete_backup(world.hub, row, first.id, who="test")

    with world.catalog.write() as session:
        asked = CollectGarbage(now=True, confirmed=True)
        collection = service.start_gc(session, world.hub, made.id, asked).job_id
    collected = world.wait(world.start(collection))
    assert (collected.status, collected.error) == ("completed", None)
    assert collected.result is not None
    assert collected.result["backup_count"] == 1
    with world.catalog.write() as session:
        check = service.start_check(session, world.hub, made.id, read_data=True).job_id
    checked = world.wait(world.start(check))
    assert checked.kind == JobKind.CHECK
    assert checked.result is not None
    assert checked.result["clean"] is True
    assert world.restore(second.id) == world.lab.disk("web").read_bytes()
    assert all(proxy.happened[fault] for fault in FAULTS)
    counted = [
        record.getMessage() for record in caplog.records if "requests" in record.getMessage()
    ]
    assert any(
        line.startswith("requests to the store of repository offsite: ") and "put" in line
        for line in counted
    )
