import random
import threading
from datetime import datetime

from sendense.core.errors import Unavailable
from sendense.db.tables import VmRow
from sendense.hub.backups import service
from sendense.hub.backups.schemas import StartBackup
from tests.workflow import world as worlds
from tests.workflow.conftest import content
from tests.workflow.world import World

SECONDS_MAX = 60.0  # a deadline for a test that hangs, not a time it takes


def _change(world: World, vm: str, offset: int, data: bytes) -> None:
    with world.lab.disk(vm).open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_a_full_an_incremental_and_both_restored_bit_for_bit(world: World) -> None:
    first = [world.lab.disk("web", index).read_bytes() for index in (0, 1)]
    full = world.back_up()
    _change(world, "web", 1_000_000, b"changed")
    second = world.lab.disk("web").read_bytes()
    incremental = world.back_up()

    assert (full.status, full.backup_type, full.consistency) == ("completed", "full", "filesystem")
    assert (incremental.status, incremental.backup_type) == ("completed", "incremental")
    assert incremental.parent_backup_id == full.id
    assert 0 < incremental.bytes_new <= 2 * 512 * 1024
    assert [world.restore(full.id, index) for index in (0, 1)] == first
    assert world.restore(incremental.id, 0) == second
    assert {chain.latest_backup_id for chain in world.chains()} == {incremental.id}


def test_nothing_is_left_behind_but_the_newest_change_ids(world: World) -> None:
    world.back_up()
    backup_id, job_id = world.start_backup()
    job = world.wait(job_id)

    assert world.backup(backup_id).status == "completed"
    assert job.vm_slot is None
    assert world.lab.snapshots == []
    assert len(world.lab.change_ids) == 2  # one for each disk, of the second backup
    assert world.outcome(job_id) == "committed"
    assert world.open_sessions() == []


def test_each_thing_is_durable_before_the_next_one_refers_to_it(world: World) -> None:
    seen: dict[str, object] = {}
    backup_id, job_id = "", ""

    def look(step: str) -> None:
        job = world.job(job_id)
        with world.repository() as repository:
            known = [one.backup_id for one in repository.list_backups()]
        seen[step] = (
            job.status,
            world.backup(backup_id).status,
            backup_id in known,
            len(world.chains()),
            len(world.lab.snapshots),
        )

    with world.catalog.write() as session:
        wanted = StartBackup(vm_name="web", repository_id=world.repository_id)
        accepted = service.start(session, world.hub, wanted)
    backup_id, job_id = accepted.backup_id, accepted.job_id
    for step in ("plan", "take_snapshot", "commit", "record", "remove_snapshot", "finish"):
        world.spy.calls[step] = lambda step=step: look(step)  # type: ignore[misc]
    world.wait(world.start(job_id))

    assert seen == {
        "plan": ("pending", "pending", False, 0, 0),
        "take_snapshot": ("running", "running", False, 0, 0),
        "commit": ("running", "running", False, 0, 1),
        "record": ("running", "running", True, 0, 1),
        "remove_snapshot": ("running", "completed", True, 2, 1),
        "finish": ("running", "completed", True, 2, 0),
    }


def test_two_vms_are_backed_up_at_once(world: World) -> None:
    ids = [world.start_backup(vm) for vm in ("web", "db")]
    jobs = [world.wait(job_id) for _, job_id in ids]

    assert [job.status for job in jobs] == ["completed", "completed"]
    assert world.restore(ids[1][0]) == world.lab.disk("db").read_bytes()


def test_a_restore_runs_beside_a_backup(world: World) -> None:
    first = world.back_up("db")
    released = threading.Event()
    world.spy.calls["transfer"] = lambda: _assert_set(released)
    backup_id, job_id = world.start_backup("web")
    world.until(lambda: world.job(job_id).current_phase == "transferring")

    data = world.restore(first.id)

    assert world.job(job_id).status == "running"
    released.set()
    assert data == world.lab.disk("db").read_bytes()
    assert world.wait(job_id).status == "completed"
    assert world.backup(backup_id).status == "completed"


def test_a_lost_change_id_is_a_full_read_that_says_why(world: World) -> None:
    world.back_up("db")
    for path in (world.lab.folder / "changes").glob("*.raw"):
        path.unlink()

    backup = world.back_up("db", backup_type="incremental")

    assert (backup.status, backup.backup_type) == ("completed", "full")
    assert "the bitmap is gone" in str(backup.type_reason)


def test_tracking_lost_while_reading_goes_on_as_a_full_read(world: World) -> None:
    world.back_up("db")
    (world.lab.folder / "changes" / "lost").touch()

    backup = world.back_up("db")

    assert (backup.status, backup.backup_type) == ("completed", "full")
    assert "the platform forgot" in str(backup.type_reason)


def test_tracking_caught_lying_goes_on_as_a_full_read_with_a_warning(world: World) -> None:
    world.back_up("db")
    data = random.Random(1).randbytes(1024 * 1024)
    world.lab.disk("db").write_bytes(data)
    for path in (world.lab.folder / "changes").glob("*.raw"):
        path.write_bytes(data)  # nothing has changed, says the platform

    backup = world.back_up("db")

    assert (backup.status, backup.backup_type) == ("completed", "full")
    assert "change tracking is wrong" in str(backup.type_reason)
    assert any("change tracking is wrong" in warning for warning in backup.warnings)
    assert world.restore(backup.id) == data


def test_a_grown_disk_is_read_in_full_and_says_why(world: World) -> None:
    world.back_up("db")
    grown = world.lab.disk("db").read_bytes() + content(9, 512 * 1024)
    world.lab.disk("db").write_bytes(grown)

    backup = world.back_up("db")

    assert backup.status == "completed"
    assert "grew" in str(backup.type_reason)
    assert world.restore(backup.id) == grown


def test_after_the_parent_was_deleted_the_next_backup_finds_its_base(world: World) -> None:
    first = world.back_up("db")
    with world.repository() as repository:
        repository.delete_backup(first.id, who="test", why="to see")

    second = world.back_up("db")

    assert (second.status, second.backup_type) == ("completed", "full")
    assert world.restore(second.id) == world.lab.disk("db").read_bytes()


def test_a_repository_that_cannot_be_read_keeps_its_change_ids(world: World) -> None:
    world.back_up("db")
    before = world.lab.change_ids
    place = world.settings.data_dir / "backups" / "one"
    other = world.settings.data_dir / "backups" / "two"
    second = worlds.add_repository(world, "second", other)
    place.rename(place.with_name("away"))

    backup = world.back_up("db", repository_id=second)

    assert backup.status == "completed"
    assert before < world.lab.change_ids
    place.with_name("away").rename(place)


def test_a_source_that_does_not_answer_fails_discovery_and_changes_nothing(world: World) -> None:
    with world.catalog.read() as session:
        before: list[tuple[str, datetime]] = [
            (row.id, row.seen_at) for row in session.query(VmRow).all()
        ]
    world.lab.silent = True

    job = world.discover()

    assert job.status == "failed"
    assert job.error is not None
    assert job.error["message"] == "the lab does not answer"
    assert job.error["hint"] == "switch it on"
    with world.catalog.read() as session:
        assert [(row.id, row.seen_at) for row in session.query(VmRow).all()] == before


def test_a_source_that_comes_back_costs_a_pause_not_the_backup(world: World) -> None:
    world.spy.faults["transfer"] = [Unavailable("away"), Unavailable("away")]

    backup = world.back_up("db")

    assert backup.status == "completed"


def _assert_set(event: threading.Event) -> None:
    assert event.wait(SECONDS_MAX)
