"""Verification as a job: what it finds, and how the next backup heals it."""

from typing import Any

from sendense.db.tables import JobRow
from sendense.hub.repositories import service
from sendense.hub.repositories.schemas import VerifyRepository
from tests.workflow.world import World


def _verify(world: World, **wanted: Any) -> JobRow:
    asked = VerifyRepository.model_validate(wanted)
    with world.catalog.write() as session:
        job_id = service.start_verify(session, world.hub, world.repository_id, asked).job_id
    return world.wait(world.start(job_id))


def _spoil_packs(world: World) -> int:
    """Flip a bit in the first blob of each pack of data; return how many there are."""
    with world.repository() as repository:
        names = [found.name for found in repository.storage.list_objects("packs/")]
        for name in names:
            data = bytearray(repository.storage.get(name))
            data[400] ^= 1
            repository.storage.delete(name)
            repository.storage.put_if_absent(name, bytes(data))
    return len(names)


def test_a_whole_repository_is_verified_in_parts(world: World) -> None:
    assert world.back_up("web").status == "completed"
    first = _verify(world, seconds_max=0)
    assert (first.status, first.error) == ("completed", None)
    assert first.result is not None
    assert (first.result["clean"], first.result["verified_count"]) == (True, 1)
    deep = _verify(world, level=4)
    assert deep.result is not None
    assert (deep.status, deep.result["left_count"], deep.result["check"]["error_count"]) == (
        "completed",
        0,
        0,
    )


def test_damage_fails_the_job_says_what_is_hurt_and_is_healed_by_the_next_backup(
    world: World,
) -> None:
    backup = world.back_up("web")
    bad = _spoil_packs(world)

    found = _verify(world)

    assert found.status == "failed"
    assert found.error is not None
    assert found.error["kind"] == "repository-damaged"
    assert found.result is not None
    assert len(found.result["bad"]) == found.result["quarantined_count"] == bad
    assert {one["backup_id"] for one in found.result["check"]["problems"]} >= {backup.id}

    again = world.back_up("web")

    assert (again.status, again.backup_type) == ("completed", "incremental")
    assert world.restore(again.id) == world.lab.disk("web").read_bytes()
    assert world.restore(backup.id) == world.lab.disk("web").read_bytes()
    assert _verify(world).status == "completed"


def test_a_repository_that_is_gone_fails_the_job_with_the_reason(world: World) -> None:
    asked = VerifyRepository()
    with world.catalog.write() as session:
        job_id = service.start_verify(session, world.hub, world.repository_id, asked).job_id
    path = world.settings.data_dir / "backups" / "one"
    path.rename(path.with_name("elsewhere"))
    job = world.wait(world.start(job_id))
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["kind"] == "repository-missing"
