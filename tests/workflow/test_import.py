"""The catalog is lost: what the repository holds comes back by an import."""

from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa

from sendense.core.errors import Unavailable
from sendense.db.base import Base
from sendense.db.tables import (
    BackupDiskRow,
    BackupRow,
    BackupTagRow,
    ChainRow,
    JobRow,
    SourceRow,
    VmRow,
)
from sendense.hub.backups import queries as backups
from sendense.hub.jobs import queries as jobs
from sendense.hub.repositories import importing, queries, registration, root_keys, service
from sendense.hub.repositories.schemas import CreateRepository
from sendense.repository import recovery
from tests.workflow.conftest import content
from tests.workflow.world import World

# What belongs to the hub that was lost, and not to the backup.
OWN = {
    "job_id", "vm_id", "vm_disk_id", "repository_id", "imported_at", "updated_at",
    "consistency_wish", "bytes_total",
}  # fmt: skip


def _tell(world: World) -> list[list[dict[str, Any]]]:
    """Return what the catalog says of live backups, their disks and tags, and of chains."""
    with world.catalog.read() as session:
        live = sa.select(BackupRow.id).where(BackupRow.deleted_at.is_(None))
        asked: tuple[tuple[Any, Any, set[str]], ...] = (
            (BackupRow, BackupRow.id.in_(live), set()),
            (BackupDiskRow, BackupDiskRow.backup_id.in_(live), {"id"}),
            (BackupTagRow, BackupTagRow.backup_id.in_(live), {"id"}),
            (ChainRow, sa.true(), {"id", "created_at"}),
        )
        return [
            sorted(
                (
                    {
                        column.name: getattr(row, column.name)
                        for column in table.__table__.columns
                        if column.name not in OWN | more
                    }
                    for row in session.scalars(sa.select(table).where(condition))
                ),
                key=str,
            )
            for table, condition, more in asked
        ]


def _delete(world: World, backup_id: str) -> None:
    with world.catalog.read() as session:
        row = queries.get_repository(session, world.repository_id)
    service.delete_backup(world.hub, row, backup_id, who="test")
    with world.catalog.write() as session:
        backups.delete_backup(session, backup_id, now=world.hub.clock.now())


def _lose_catalog(world: World) -> str:
    """Empty every table but the worker's own and the schema's; return the recovery key."""
    with world.catalog.read() as session:
        row = queries.get_repository(session, world.repository_id)
    root_key = root_keys.find(world.hub, row)
    assert root_key is not None
    with world.catalog.write() as session:
        for table in reversed(Base.metadata.sorted_tables):
            if table.name not in {"workers", "hub"}:
                session.execute(sa.delete(table))
    return recovery.to_text(root_key)


def _register(world: World, recovery_key: str) -> None:
    path = str(world.settings.data_dir / "backups" / "one")
    config = {"path": path, "recovery_key": recovery_key}
    body = {"name": "found", "type": "local", "config": config}
    wanted = CreateRepository.model_validate(body)
    opened = registration.open_or_make(world.hub, wanted)
    with world.catalog.write() as session:
        world.repository_id = registration.create(session, world.hub, wanted, opened).id


def _import(world: World) -> JobRow:
    with world.catalog.write() as session:
        job_id = service.start_import(session, world.hub, world.repository_id).job_id
    return world.wait(world.start(job_id))


@dataclass
class Lost:
    """A world without a catalog.

    Attributes:
        told: what the catalog said before. made: the ids of the backups of `web`, in order.
    """

    world: World
    told: list[list[dict[str, Any]]]
    made: list[str]


@pytest.fixture
def lost(world: World, seed: int, monkeypatch: pytest.MonkeyPatch) -> Lost:
    """A repository with two VMs' backups, one of them deleted, and an empty catalog."""
    monkeypatch.setattr("sendense.workflows.import_repository.BATCH", 2)
    made = []
    for number in range(4):
        done = world.back_up("web", tags={"turn": str(number)})
        assert done.status == "completed", done.error
        made.append(done.id)
        with world.lab.disk("web").open("r+b") as disk:
            disk.write(content(seed + 10 + number, 65536))
    world.back_up("db")
    _delete(world, made[2])
    told = _tell(world)
    _register(world, _lose_catalog(world))
    return Lost(world, told, made)


def test_an_import_brings_back_what_the_catalog_knew(lost: Lost, seed: int) -> None:
    assert _tell(lost.world) == [[], [], [], []]

    job = _import(lost.world)

    assert (job.status, job.error) == ("completed", None)
    assert job.result == {
        "backups_found": 4,
        "backups_added": 4,
        "backups_known": 0,
        "backups_elsewhere": 0,
        "backups_deleted": 0,
        "objects_damaged": 0,
    }
    told, was = _tell(lost.world), lost.told
    # The one built on the deleted backup no longer names it: the catalog never heard of that.
    for table in was[:2]:
        for row in table:
            if row["parent_backup_id"] == lost.made[2]:
                row["parent_backup_id"] = None
    assert [sorted(table, key=str) for table in was] == told
    first = lost.made[0]
    assert lost.world.restore(first) == content(seed)
    with lost.world.catalog.read() as session:
        assert {row.name for row in session.scalars(sa.select(VmRow))} == {"web", "db"}
        assert all(row.gone_at for row in session.scalars(sa.select(VmRow)))
        (source,) = session.scalars(sa.select(SourceRow)).all()
    assert (source.id, source.name, source.config) == ("source-lab", "lab", {})
    assert source.trouble == importing.SOURCE_TROUBLE


def test_after_an_import_the_next_backup_is_incremental(lost: Lost) -> None:
    assert _import(lost.world).status == "completed"
    assert lost.world.discover().status == "completed"

    done = lost.world.back_up("web")

    assert (done.status, done.backup_type, done.parent_backup_id) == (
        "completed",
        "incremental",
        lost.made[3],
    )
    assert lost.world.restore(done.id) == lost.world.lab.disk("web").read_bytes()
    with lost.world.catalog.read() as session:
        chains = session.scalars(sa.select(ChainRow).order_by(ChainRow.key)).all()
        assert [one.total_backups for one in chains] == [4, 4, 1] or len(chains) == 3
        assert session.get_one(BackupRow, done.id).imported_at is None


def test_a_second_import_changes_nothing(lost: Lost) -> None:
    assert _import(lost.world).status == "completed"
    before = _tell(lost.world)

    job = _import(lost.world)

    assert job.result is not None
    assert (job.result["backups_added"], job.result["backups_known"]) == (0, 4)
    assert _tell(lost.world) == before


def test_an_import_that_was_cut_off_goes_on(lost: Lost) -> None:
    real = importing.write
    calls = []

    def fail_once(*arguments: Any, **named: Any) -> importing.Imported:
        calls.append(1)
        if len(calls) == 2:
            raise Unavailable("the database is away", kind="catalog-unavailable")
        return real(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importing, "write", fail_once)
        job = _import(lost.world)

    assert (job.status, len(calls)) == ("completed", 4)
    assert job.result is not None
    assert (job.result["backups_added"], job.result["backups_known"]) == (2, 2)
    assert len(_tell(lost.world)[0]) == 4


def test_damage_is_told_and_costs_no_other_backup(lost: Lost) -> None:
    with lost.world.repository() as repository:
        manifests = repository.list_backups()
        victim = manifests[0]
        for name in (victim.name, f"outcomes/{victim.session_id}"):
            repository.storage.delete(name)
            repository.storage.put_if_absent(name, b"junk")

    job = _import(lost.world)

    assert job.status == "completed"
    assert job.result is not None
    assert (job.result["backups_added"], job.result["objects_damaged"]) == (3, 1)
    with lost.world.catalog.read() as session:
        log = jobs.get_job(session, job.id).log
    assert [line["message"] for line in log if victim.name in line["message"]]


def test_a_backup_known_from_another_repository_and_a_name_that_is_taken(lost: Lost) -> None:
    now = lost.world.hub.clock.now()
    with lost.world.catalog.write() as session:
        session.add(
            SourceRow(
                id="other", uuid="other", name="lab", type="qemu", config={}, trouble="",
                created_at=now, updated_at=now,
            )
        )  # fmt: skip
    assert _import(lost.world).status == "completed"
    with lost.world.catalog.read() as session:
        names = set(session.scalars(sa.select(SourceRow.name)))
        home = queries.get_repository(session, lost.world.repository_id)
        manifests_known = session.scalar(sa.select(sa.func.count()).select_from(BackupRow))
    assert names == {"lab", "lab-2"}
    assert manifests_known == 4
    with lost.world.repository() as repository:
        found = repository.list_backups()
    home.id = "another-repository"
    with lost.world.catalog.write() as session:
        done = importing.write(session, home, found, ids=lost.world.hub.ids, now=now)
    assert (done.added, done.known, len(done.elsewhere)) == (0, 0, 4)


def test_an_import_of_a_repository_that_is_away_says_so(lost: Lost) -> None:
    place = lost.world.settings.data_dir / "backups" / "one"
    place.rename(place.with_name("away"))

    job = _import(lost.world)

    assert job.status == "failed"
    assert job.error is not None
    assert job.error["kind"] == "repository-missing"
