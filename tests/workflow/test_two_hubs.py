"""Another hub uses the repository too: nothing of either is lost, and this one says so."""

import pytest

from sendense.hub.repositories import queries, service
from sendense.hub.repositories.schemas import CollectGarbage
from sendense.repository.check import check
from sendense.repository.chunk import Codec
from sendense.repository.manifest import DiskTotals, Mode
from tests import repository_kit as kit
from tests.workflow.world import World


def _run(world: World, job_id: str) -> None:
    done = world.wait(world.start(job_id))
    assert done.status == "completed", done.error


def _collect(world: World) -> None:
    asked = CollectGarbage(now=True, confirmed=True)
    with world.catalog.write() as session:
        job_id = service.start_gc(session, world.hub, world.repository_id, asked).job_id
    _run(world, job_id)


def _check(world: World) -> None:
    with world.catalog.write() as session:
        job_id = service.start_check(session, world.hub, world.repository_id, read_data=True).job_id
    _run(world, job_id)


def _import(world: World) -> None:
    with world.catalog.write() as session:
        job_id = service.start_import(session, world.hub, world.repository_id).job_id
    _run(world, job_id)


def _warnings(world: World) -> list[str]:
    with world.catalog.read() as session:
        row = queries.get_repository(session, world.repository_id)
        return service.show(session, [row])[0].warnings


@pytest.mark.parametrize("look", [_collect, _check])
def test_backups_of_another_hub_are_kept_and_told_of(world: World, look: object) -> None:
    ours = world.back_up("web")
    with world.repository() as repository:
        size = repository.chunk_size
        data = bytes(range(256)) * (3 * size // 256)
        repository.begin_session("theirs")
        identity = kit.identity(len(data))
        with repository.open_disk_writer("theirs", identity, moment="m") as writer:
            for number in range(3):
                plain = data[number * size : (number + 1) * size]
                writer.put_chunk(number, repository.identify(plain), Codec.RAW, plain, size)
            writer.finish(DiskTotals(Mode.FULL))
        repository.commit("theirs", kit.draft(repository, "theirs", "m"))
    assert _warnings(world) == []

    look(world)  # type: ignore[operator]

    (warning,) = _warnings(world)
    assert "1 of its backups are not in this server's list" in warning
    assert world.restore(ours.id) == world.lab.disk("web").read_bytes()
    with world.repository() as repository:
        assert kit.restore(repository, "theirs") == data
        assert check(repository, read_data=True).clean
    _import(world)
    assert _warnings(world) == []
