"""Commands on a repository's path, against a repository made by the real writer."""

import json
import os
import signal
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sendense.cli import standalone, standalone_gc
from sendense.cli.command import Session
from sendense.cli.output import Output
from sendense.core.clock import ManualClock
from sendense.core.extent import Extent
from sendense.core.ids import SeededIds
from sendense.engine.restore import RestoreRequest
from sendense.repository import chunk
from sendense.repository.descriptor import RepositorySettings
from sendense.repository.gc import run as gc_run
from sendense.repository.gc.protocol import Collector
from sendense.repository.gc.verdict import Limits
from sendense.repository.manifest import DiskIdentity, DiskTotals, ManifestDraft, Mode, VmRecord
from sendense.repository.pack import BLOB, HEADER
from sendense.repository.repository import NO_RESERVE, Repository
from sendense.repository.storage.local import LocalStorage
from tests.unit.cli.conftest import Run

SIZE = 3 * chunk.SIZE_DEFAULT + 512
CONTENT = (
    bytes(range(256)) * (chunk.SIZE_DEFAULT // 256)
    + bytes(chunk.SIZE_DEFAULT)
    + os.urandom(chunk.SIZE_DEFAULT)
)
DISK = CONTENT + b"tail" + bytes(508)
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def _back_up(repository: Repository, backup_id: str, disk: bytes) -> None:
    session = f"session-{backup_id}"
    repository.begin_session(session)
    identity = DiskIdentity(key=2000, index=0, label="sda", uuid="d", size_bytes=len(disk))
    with repository.open_disk_writer(session, identity, moment="m") as writer:
        for index in range(writer.chunk_count):
            plain = disk[index * writer.chunk_size :][: writer.chunk_size]
            if chunk.is_zero(plain):
                writer.put_zero(index)
                continue
            chunk_id = repository.identify(plain)
            if writer.find_known([chunk_id])[0]:
                writer.put_known(index, chunk_id)
            else:
                codec, stored = chunk.encode(plain, level=1)
                writer.put_chunk(index, chunk_id, codec, stored, len(plain))
        writer.finish(DiskTotals(mode=Mode.FULL, bytes_read=len(disk), bytes_new=len(disk)))
    repository.commit(
        session,
        ManifestDraft(
            backup_id=backup_id,
            vm=VmRecord("image", "lab", "", "vm-uuid", "web\x1b[2J1"),
            disk_keys=(2000,),
            moment="m",
            consistency="crash",
            requested_type="full",
            created_at=START,
            started_at=START,
        ),
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    folder.mkdir()
    repository = Repository.create(
        LocalStorage(folder),
        RepositorySettings(),
        clock=ManualClock(START),
        ids=SeededIds(1),
        reserve=NO_RESERVE,
    )
    _back_up(repository, "backup-1", DISK)
    repository.close()
    return folder


def test_the_backups_inside_are_listed(run: Run, place: Path) -> None:
    result = run("repository", "list", str(place))
    assert result.code == 0, result.err
    assert "backup-1" in result.out
    assert "web\\x1b[2J1" in result.out
    listed = json.loads(run("repository", "list", str(place), "--json").out)
    assert listed["total"] == 1
    assert listed["backups"][0]["disks"][0]["capacity_bytes"] == SIZE


@pytest.mark.parametrize("file_format", ["raw", "qcow2"])
def test_a_disk_is_restored_bit_for_bit(
    run: Run, place: Path, tmp_path: Path, file_format: str
) -> None:
    target = tmp_path / "disk"
    arguments = ["--backup", "backup-1", "--disk", "0", "--to", str(target)]
    result = run("repository", "restore", str(place), *arguments, "--format", file_format)
    assert result.code == 0, result.err
    if file_format == "raw":
        assert target.read_bytes() == DISK
    else:
        assert target.read_bytes()[:4] == b"QFI\xfb"
    assert "disk 0 of backup-1 restored" in result.out


def test_a_file_that_exists_stays_unless_overwritten(run: Run, place: Path, tmp_path: Path) -> None:
    target = tmp_path / "disk.raw"
    target.write_bytes(b"precious")
    arguments = ["repository", "restore", str(place), "--backup", "backup-1", "--disk", "0"]
    assert run(*arguments, "--to", str(target)).code == 4
    assert target.read_bytes() == b"precious"
    assert run(*arguments, "--to", str(target), "--overwrite", "--json").code == 0
    assert target.read_bytes() == DISK


def test_what_is_not_there_is_not_found_and_leaves_no_file(
    run: Run, place: Path, tmp_path: Path
) -> None:
    target = tmp_path / "disk.raw"
    for backup, disk in (("backup-2", "0"), ("backup-1", "1")):
        arguments = ["--backup", backup, "--disk", disk, "--to", str(target)]
        assert run("repository", "restore", str(place), *arguments).code == 3
    assert not target.exists()
    for path in (tmp_path, tmp_path / "missing"):
        result = run("repository", "list", str(path))
        assert result.code == 3
        assert str(path) in result.err


def test_damaged_data_is_corrupt_and_leaves_no_file(run: Run, place: Path, tmp_path: Path) -> None:
    for pack in (file for file in place.rglob("*") if file.is_file() and "pack" in str(file)):
        content = bytearray(pack.read_bytes())
        content[len(content) // 2] ^= 1
        pack.chmod(0o600)
        pack.write_bytes(content)
    target = tmp_path / "disk.raw"
    arguments = ["--backup", "backup-1", "--disk", "0", "--to", str(target)]
    result = run("repository", "restore", str(place), *arguments)
    assert result.code == 7, result.err
    assert list(tmp_path.iterdir()) == [place]


def test_a_damaged_manifest_does_not_hide_the_other_backups(run: Run, place: Path) -> None:
    [manifest] = (place / "backups").iterdir()
    broken = manifest.with_name("0" * 32)
    broken.write_bytes(b"\0" * 100)
    result = run("repository", "list", str(place))
    assert result.code == 7
    assert "backup-1" in result.out


def test_figures_are_counted(run: Run, place: Path) -> None:
    assert "Backups" in run("repository", "stats", str(place)).out
    assert json.loads(run("repository", "stats", str(place), "--json").out)["backup_count"] == 1


def test_a_whole_repository_passes_its_check(run: Run, place: Path) -> None:
    for extra in ([], ["--read-data"]):
        result = run("repository", "check", str(place), *extra)
        assert result.code == 0, result.err


def test_a_missing_pack_fails_the_check_with_7(run: Run, place: Path) -> None:
    next(file for file in (place / "packs").rglob("*") if file.is_file()).unlink()
    result = run("repository", "check", str(place))
    assert result.code == 7
    assert run("repository", "check", str(place), "--json").code == 7


class _Endless:
    """A reader that interrupts the program at its first chunk and then never ends by itself."""

    size_bytes = 1 << 30

    def list_extents(self) -> Iterator[Extent]:
        yield Extent(0, self.size_bytes)

    def read_chunks(self, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
        assert list(extents)
        os.kill(os.getpid(), signal.SIGINT)
        while True:
            yield 0, b"x" * 4096


def test_ctrl_c_stops_a_restore_and_leaves_no_half_file(tmp_path: Path) -> None:
    session = Session(Output(as_json=True))
    request = RestoreRequest(path=tmp_path / "disk.raw")
    with pytest.raises(KeyboardInterrupt):
        standalone._run(session, _Endless(), request)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def deleted(place: Path) -> Path:
    """A repository whose only backup was deleted."""
    repository = Repository.open(LocalStorage(place), clock=ManualClock(), ids=SeededIds(7))
    repository.delete_backup("backup-1", who="tester", why="test")
    repository.close()
    return place


def test_the_space_of_a_deleted_backup_comes_back(run: Run, deleted: Path) -> None:
    result = run("repository", "gc", str(deleted), "--preview")
    assert "Deleted backups" in result.out, result.err
    found = json.loads(run("repository", "gc", str(deleted), "--preview", "--json").out)
    assert (found["backup_count"], found["waits_for"]) == (1, [])
    assert found["freed_bytes"] == found["total_bytes"] > 0

    assert run("repository", "gc", str(deleted), "--now").code == 2  # nobody is there to ask
    result = run("repository", "gc", str(deleted), "--now", "--yes")
    assert result.code == 0, result.err
    assert "freed: 2 packs, 1 deleted backup" in result.out
    again = json.loads(run("repository", "gc", str(deleted), "--now", "--yes", "--json").out)
    assert (again["is_done"], again["pack_count"]) == (True, 0)
    assert run("repository", "check", str(deleted)).code == 0


def test_without_now_a_day_lies_between_condemning_and_deleting(run: Run, deleted: Path) -> None:
    result = run("repository", "gc", str(deleted))
    assert result.code == 0, result.err
    assert "0 B freed" in result.out
    assert "in 1 d 00 h" in result.out or "in 23 h 59 min" in result.out
    assert list((deleted / "packs").rglob("*/*")) != []


def test_who_would_delete_much_is_asked(
    run: Run, deleted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standalone_gc, "LIMITS", Limits(condemn_bytes=0))
    result = run("repository", "gc", str(deleted))
    assert result.code == 2
    assert "Go on?" in result.err
    assert list((deleted / "packs").rglob("*/*")) != []


def test_a_session_that_is_waited_for_is_named(
    run: Run, deleted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Repository.open(LocalStorage(deleted), clock=ManualClock(), ids=SeededIds(8))
    repository.begin_session("open")
    monkeypatch.setattr(gc_run, "POLL_SECONDS", 0.01)
    looks = iter(range(3))
    is_drained = Collector._is_drained

    def end_at_last(self: Collector, number: int) -> bool:
        if next(looks) == 2:
            repository.abort("open", "cancelled")
        return is_drained(self, number)

    monkeypatch.setattr(Collector, "_is_drained", end_at_last)
    result = run("repository", "gc", str(deleted), "--now", "--yes")
    assert result.code == 0, result.err
    assert "waiting for 1 session" in result.err


def _spoil(place: Path) -> Path:
    """Flip a bit in the first blob of the only pack of data; return the pack."""
    (victim,) = (place / "packs").rglob("*/*")
    data = bytearray(victim.read_bytes())
    data[HEADER.size + BLOB.size + 3] ^= 1
    victim.chmod(0o600)
    victim.write_bytes(data)
    return victim


@pytest.mark.parametrize("level", ["v0", "v2", "v4"])
def test_a_whole_repository_is_verified(run: Run, place: Path, level: str) -> None:
    result = run("repository", "verify", str(place), "--level", level)
    assert result.code == 0, result.err
    assert "0 left for the next run" in result.out
    found = json.loads(run("repository", "verify", str(place), "--budget", "1B", "--json").out)
    assert (found["clean"], found["verified_count"], found["left_count"]) == (True, 1, 1)
    assert run("repository", "verify", str(place), "--budget", "much").code == 2


def test_damage_is_found_named_and_salvaged_around(run: Run, place: Path, tmp_path: Path) -> None:
    victim = _spoil(place)
    result = run("repository", "verify", str(place))
    assert result.code == 7
    assert f"bad: packs/{victim.parent.name}/{victim.name}" in result.out
    assert "disk 2000 of backup backup-1" in result.out
    found = json.loads(run("repository", "verify", str(place), "--json").out)
    assert (found["clean"], found["quarantined_count"]) == (False, 1)

    target = tmp_path / "disk.raw"
    arguments = ["--backup", "backup-1", "--to", str(target)]
    assert run("repository", "restore", str(place), *arguments).code == 7
    assert not target.exists()
    result = run("repository", "restore", str(place), *arguments, "--salvage")
    assert result.code == 7
    assert "are lost, and zeros there" in result.err
    (lost,) = json.loads((tmp_path / "disk.raw.lost.json").read_text())
    expected = bytearray(DISK)
    expected[lost["start"] : lost["start"] + lost["length"]] = bytes(lost["length"])
    assert target.read_bytes() == bytes(expected)
    assert lost["reason"]
    told = json.loads(
        run(
            "repository", "restore", str(place), *arguments, "--salvage", "--overwrite", "--json"
        ).out
    )
    assert told["lost"] == [lost]


def test_a_salvage_of_a_whole_backup_is_a_restore(run: Run, place: Path, tmp_path: Path) -> None:
    target = tmp_path / "disk.raw"
    arguments = ["--backup", "backup-1", "--to", str(target), "--salvage"]
    assert run("repository", "restore", str(place), *arguments).code == 0
    assert target.read_bytes() == DISK
    assert not (tmp_path / "disk.raw.lost.json").exists()
