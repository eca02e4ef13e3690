"""The hub's database is lost: an export brings back what no repository tells."""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from sendense import app
from sendense.core.clock import SystemClock
from sendense.core.errors import Conflict, Corrupt, SendenseError
from sendense.core.ids import SystemIds
from sendense.db.catalog import Catalog
from sendense.db.tables import HubRow, JobRow, RepositoryRow, RestoreRow, SourceRow
from sendense.hub.backups import queries as backups
from sendense.hub.exports import keys, service
from sendense.hub.jobs.schemas import JobKind
from sendense.hub.repositories import queries as repositories
from sendense.hub.repositories import service as repository_service
from sendense.hub.sealing import Belonging
from sendense.repository import hub_exports
from sendense.repository.keyed import KeyedStorage
from sendense.repository.storage.local import LocalStorage
from sendense.workflows import schedules
from tests.workflow import world as worlds
from tests.workflow.conftest import content
from tests.workflow.world import World

CREDENTIALS = {"username": "backup", "password": "correct horse"}


def _export(world: World, repository_id: str = "") -> JobRow:
    with world.catalog.write() as session:
        job_id = repository_service.start_hub_export(
            session, world.hub, repository_id or world.repository_id
        ).job_id
    job = world.wait(world.start(job_id))
    assert job.status == "completed", job.error
    return job


def _root_key(world: World) -> bytes:
    return keys.get_or_make(world.catalog, world.hub.vault, world.hub.ids)[1]


def _give_credentials(world: World) -> None:
    belonging = Belonging("source-lab", "host")
    with world.catalog.write() as session:
        row = session.get(SourceRow, "source-lab")
        assert row is not None
        row.credentials = world.hub.vault.seal(CREDENTIALS, belonging, may_make_key=False)


def _delete(world: World, backup_id: str) -> None:
    with world.catalog.read() as session:
        row = repositories.get_repository(session, world.repository_id)
    repository_service.delete_backup(world.hub, row, backup_id, who="test")
    with world.catalog.write() as session:
        backups.delete_backup(session, backup_id, now=world.hub.clock.now())


@contextmanager
def _place(folder: Path, root_key: bytes) -> Iterator[KeyedStorage]:
    storage = LocalStorage(folder / "data" / "backups" / "one")
    yield hub_exports.open_place(storage, root_key)
    storage.close()


def _lose(world: World) -> None:
    """Lose all of the data directory but the backups and the lab's disks."""
    world.stop.set()
    world.catalog.close()
    data = world.settings.data_dir
    for path in data.iterdir():
        if path.name != "backups":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _restore(folder: Path, root_key: bytes) -> service.Restored:
    settings = worlds.settings_of(folder, worlds.Setting())
    settings.data_dir.mkdir(exist_ok=True)
    catalog = Catalog(settings.catalog_url)
    ids = SystemIds()
    try:
        with _place(folder, root_key) as place:
            found, damaged = hub_exports.scan(place)
            assert damaged == []
            return service.restore(
                catalog,
                app.create_key_places(settings, ids),
                place,
                found[-1],
                now=SystemClock().now(),
                ids=ids,
            )
    finally:
        catalog.close()


@contextmanager
def _running(world: World) -> Iterator[World]:
    thread = threading.Thread(target=world.worker.run, args=(world.stop,))
    thread.start()
    try:
        yield world
    finally:
        world.stop.set()
        thread.join()


def _rows(world: World, kind: type[Any]) -> list[Any]:
    with world.catalog.read() as session:
        return list(session.scalars(sa.select(kind)).all())


@pytest.fixture
def gone(tmp_path: Path, seed: int) -> tuple[Path, bytes, dict[str, Any]]:
    """A busy hub was exported, went on for a while, and lost its data directory."""
    world = worlds.build(tmp_path, worlds.Setting())
    worlds.register(world)
    world.lab.add_vm("web", content(seed), content(seed + 1, 512 * 1024))
    with _running(world):
        assert world.discover().status == "completed"
        first, second = world.back_up("web", tags={"a": "b"}), world.back_up("web")
        _, restored = world.start_restore(first.id, "x.raw", disk_id=0)
        assert world.wait(restored).status == "completed"
        _give_credentials(world)
        with world.catalog.write() as session:  # asked for, and never handed to the engine
            asked = repository_service.start_check(
                session, world.hub, world.repository_id, read_data=False
            ).job_id
        before = {one.id for one in _rows(world, JobRow) if one.finished_at}
        export = _export(world)
        assert service.NOT_SHOWN in (export.result or {})["warnings"]
        third = world.back_up("web")
        _delete(world, second.id)
        told = {
            "ids": [first.id, second.id, third.id],
            "asked": asked,
            "export": export.id,
            "sources": _rows(world, SourceRow)[0].uuid,
            "hub": _rows(world, HubRow)[0].name,
            "restores": [one.id for one in _rows(world, RestoreRow)],
            "jobs": before,
        }
        root_key = _root_key(world)
    _lose(world)
    return tmp_path, root_key, told


def test_a_new_hub_goes_on_where_the_lost_one_stopped(
    gone: tuple[Path, bytes, dict[str, Any]],
) -> None:
    folder, root_key, told = gone
    done = _restore(folder, root_key)
    assert done.repositories == ("local",)
    assert done.jobs_unfinished == 2  # the check, and the export itself
    assert done.settings["gc_every_hours"] == 24.0
    assert "data_dir" not in done.settings

    first, second, third = told["ids"]
    with _running(worlds.build(folder, worlds.Setting())) as world:
        with world.catalog.read() as session:
            world.repository_id = session.scalars(sa.select(RepositoryRow.id)).one()
        world.source_id = "source-lab"

        def is_over() -> bool:
            world.worker.housekeeping.run()
            return all(one.finished_at for one in _rows(world, JobRow))

        world.until(is_over, lambda: [vars(one) for one in _rows(world, JobRow)])
        # What the export holds: who we are, what we log in with, what was done.
        assert [one.name for one in _rows(world, HubRow)] == [told["hub"]]
        (source,) = _rows(world, SourceRow)
        assert source.uuid == told["sources"]
        opened = world.hub.vault.open(source.credentials, Belonging("source-lab", "host"))
        assert opened == CREDENTIALS
        assert [one.id for one in _rows(world, RestoreRow)] == told["restores"]
        assert told["jobs"] <= {one.id for one in _rows(world, JobRow)}
        for unfinished in (told["asked"], told["export"]):
            assert world.job(unfinished).status == "failed"
            assert (world.job(unfinished).error or {})["kind"] == "job-lost"
        # What came and went since, by the repository.
        assert world.backup(third).imported_at is not None
        assert world.backup(second).deleted_at is not None
        assert world.backup(first).tags == {"a": "b"}
        assert [one.total_backups for one in world.chains()] == [2, 2]
        # And it goes on.
        assert world.discover().status == "completed"
        fourth = world.back_up("web")
        assert (fourth.status, fourth.backup_type) == ("completed", "incremental")
        assert world.restore(first)
        assert world.restore(third)
        assert world.restore(fourth.id)
        assert _root_key(world) == root_key


def test_what_a_restore_refuses_changes_nothing(
    gone: tuple[Path, bytes, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, root_key, _ = gone
    path = folder / "data" / "credentials.key"
    path.write_text("ab" * 32)
    path.chmod(0o600)
    _refuse(folder, root_key, Conflict, "credentials-key-differs")
    path.unlink()

    real = hub_exports.read

    def read(place: KeyedStorage, export: hub_exports.Export) -> Iterator[hub_exports.Row]:
        rows = list(real(place, export))
        yield from rows[:-1]

    with monkeypatch.context() as patch:
        patch.setattr(hub_exports, "read", read)
        _refuse(folder, root_key, Corrupt, "hub-export-damaged")
    assert _restore(folder, root_key).rows > 0
    _refuse(folder, root_key, Conflict, "catalog-not-empty")


def _refuse(folder: Path, root_key: bytes, error: type[SendenseError], kind: str) -> None:
    with pytest.raises(error) as caught:
        _restore(folder, root_key)
    assert caught.value.kind == kind


def test_without_the_key_of_the_credentials_an_export_says_so(world: World) -> None:
    exporter = app.create_exporter(world.settings, world.hub)
    _root_key(world)
    gathered = service.gather(exporter)
    assert json.loads(json.dumps(dict(gathered.about.more)))["credentials_key"]
    assert len(gathered.warnings) == 1
    keys.note_shown(world.catalog, now=world.hub.clock.now())
    assert service.gather(exporter).warnings == ()


def test_an_export_is_due_once_a_day(world: World) -> None:
    world.worker.housekeeping.schedules = (schedules.Schedule(JobKind.HUB_EXPORT, timedelta(0)),)
    world.worker.housekeeping.run()
    (job,) = [one for one in _rows(world, JobRow) if one.kind == JobKind.HUB_EXPORT]
    assert world.wait(world.start(job.id)).status == "completed"


def test_what_is_neither_there_nor_deleted_is_told_and_left(world: World) -> None:
    made = world.back_up("web")
    for name in ("backups", "outcomes"):
        for path in (world.settings.data_dir / "backups" / "one" / name).iterdir():
            path.unlink()
    with world.catalog.write() as session:
        job_id = repository_service.start_import(session, world.hub, world.repository_id).job_id
    job = world.wait(world.start(job_id))
    assert (job.result or {})["backups_deleted"] == 0
    assert any("is not in the repository, and was not deleted" in one["message"] for one in job.log)
    assert world.backup(made.id).deleted_at is None
