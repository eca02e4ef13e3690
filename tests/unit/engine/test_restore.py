import os
import queue
import random
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sendense.core import units
from sendense.core.errors import Cancelled, Corrupt, Exists, Invalid, NoSpace, NotFound, Unavailable
from sendense.core.extent import Extent
from sendense.engine import restore
from sendense.engine.control import Control
from sendense.engine.progress import Phase, Progress
from sendense.engine.qcow2 import Qcow2File
from sendense.engine.rawfile import RawFile
from sendense.engine.restore import Format, Restored, RestoreRequest
from tests.engine_kit import CHUNK, KEY, PAGE, WAIT_SECONDS, Lab, SparseDisk

CANCEL_SECONDS_MAX = 5.0  # below what the reader waits; 1.3 on an idle machine


def disk_with_holes(*, size: int = 40 * CHUNK + 512) -> SparseDisk:
    disk = SparseDisk(size)
    chooser = random.Random(2)
    for index in range(0, 40, 3):
        disk.fill(index * CHUNK, CHUNK, content=chooser.randbytes)
    disk.write_page(size // PAGE, b"end")
    return disk


def restore_latest(lab: Lab, backup_id: str, request: RestoreRequest) -> Restored:
    with lab.repository.open_disk_reader(backup_id, KEY) as reader:
        return restore.restore_disk_to_file(
            reader, request, control=lab.control, progress=lab.progress
        )


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_raw_file_has_every_byte_and_its_holes(tmp_path: Path) -> None:
    disk, lab = disk_with_holes(), Lab()
    backup_id, _ = lab.back_up(disk)
    path = tmp_path / "disk.raw"
    done = restore_latest(lab, backup_id, RestoreRequest(path))
    assert path.read_bytes() == disk.read(0, disk.size_bytes)
    assert done == Restored(path, disk.size_bytes, 14 * CHUNK + 512)
    assert path.stat().st_blocks * units.SECTOR <= 15 * CHUNK
    assert path.stat().st_mode & 0o777 == 0o600
    assert names_in(tmp_path) == ["disk.raw"]
    shown = lab.progress.snapshot()
    assert (shown.phase, shown.fraction) == (Phase.FINISHING, 1.0)


def test_an_attempt_finds_what_the_one_before_had_finished(tmp_path: Path) -> None:
    disk, lab = disk_with_holes(), Lab()
    backup_id, _ = lab.back_up(disk)
    path = tmp_path / "disk.raw"
    restore_latest(lab, backup_id, RestoreRequest(path, tag="job-1"))
    again = restore_latest(lab, backup_id, RestoreRequest(path, tag="job-1"))
    assert again == Restored(path, disk.size_bytes, 0)
    with pytest.raises(Exists):
        restore_latest(lab, backup_id, RestoreRequest(path, tag="job-2"))
    assert path.read_bytes() == disk.read(0, disk.size_bytes)


@pytest.mark.parametrize("size", [512, CHUNK, 5 * CHUNK])
def test_a_disk_of_zeros_becomes_a_file_without_blocks(size: int, tmp_path: Path) -> None:
    lab = Lab()
    backup_id, _ = lab.back_up(SparseDisk(size))
    path = tmp_path / "disk.raw"
    restore_latest(lab, backup_id, RestoreRequest(path))
    assert (path.stat().st_size, path.stat().st_blocks) == (size, 0)


def test_a_sparse_disk_of_over_2_tib_is_restored_at_once(tmp_path: Path) -> None:
    disk = SparseDisk(3 * units.TIB)
    disk.write_page(2 * units.TIB // PAGE, b"far away")
    lab = Lab()
    backup_id, _ = lab.back_up(disk)
    path = tmp_path / "disk.raw"
    restore_latest(lab, backup_id, RestoreRequest(path))
    with path.open("rb") as file:
        file.seek(2 * units.TIB)
        assert file.read(8) == b"far away"
    assert path.stat().st_size == disk.size_bytes


def test_a_qcow2_file_holds_the_same_disk_and_only_its_data(tmp_path: Path) -> None:
    disk, lab = disk_with_holes(), Lab()
    backup_id, _ = lab.back_up(disk)
    path, plain = tmp_path / "disk.qcow2", tmp_path / "plain.raw"
    restore_latest(lab, backup_id, RestoreRequest(path, format=Format.QCOW2))
    convert = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(path), str(plain)]
    subprocess.run(convert, check=True)
    assert plain.read_bytes() == disk.read(0, disk.size_bytes)
    assert path.stat().st_size < 16 * CHUNK + units.MIB
    assert path.stat().st_mode & 0o777 == 0o600
    check = subprocess.run(["qemu-img", "check", str(path)], check=False, capture_output=True)
    assert check.returncode == 0, check.stdout


def test_qcow2_refuses_what_is_not_whole_sectors(tmp_path: Path) -> None:
    lab = Lab()
    backup_id, _ = lab.back_up(SparseDisk(1000))
    with pytest.raises(Invalid, match="whole sectors"):
        restore_latest(lab, backup_id, RestoreRequest(tmp_path / "d", format=Format.QCOW2))
    assert names_in(tmp_path) == []


def test_without_qemu_img_a_qcow2_restore_says_so_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab()
    backup_id, _ = lab.back_up(SparseDisk(CHUNK))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable) as caught:
        restore_latest(lab, backup_id, RestoreRequest(tmp_path / "d", format=Format.QCOW2))
    assert caught.value.kind == "program-missing"
    assert names_in(tmp_path) == []


def test_an_existing_file_stays_unless_it_may_be_overwritten(tmp_path: Path) -> None:
    disk, lab = disk_with_holes(), Lab()
    backup_id, _ = lab.back_up(disk)
    path = tmp_path / "disk.raw"
    path.write_bytes(b"precious")
    with pytest.raises(Exists) as caught:
        restore_latest(lab, backup_id, RestoreRequest(path))
    assert caught.value.kind == "target-exists"
    assert path.read_bytes() == b"precious"
    restore_latest(lab, backup_id, RestoreRequest(path, overwrite=True))
    assert path.read_bytes() == disk.read(0, disk.size_bytes)


def test_a_folder_that_is_missing_is_not_made(tmp_path: Path) -> None:
    lab = Lab()
    backup_id, _ = lab.back_up(SparseDisk(CHUNK))
    with pytest.raises(NotFound):
        restore_latest(lab, backup_id, RestoreRequest(tmp_path / "missing" / "disk.raw"))
    assert names_in(tmp_path) == []


@dataclass
class FaultyReader:
    """A reader that gives one good chunk and then does something else."""

    size_bytes: int = 4 * CHUNK
    error: Exception | None = None
    entered: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)

    def list_extents(self) -> Iterator[Extent]:
        return iter([Extent(0, self.size_bytes)])

    def read_chunks(self, extents: Iterable[Extent] | None = None) -> Iterator[tuple[int, bytes]]:
        assert extents is not None
        yield 0, b"x" * CHUNK
        if self.error is not None:
            raise self.error
        self.entered.set()
        self.release.wait(WAIT_SECONDS)
        yield CHUNK, b"x" * CHUNK


@pytest.mark.parametrize("kind", list(Format))
def test_a_damaged_chunk_leaves_no_file(kind: Format, tmp_path: Path) -> None:
    reader = FaultyReader(error=Corrupt("chunk 1 is damaged"))
    with pytest.raises(Corrupt, match="chunk 1"):
        restore.restore_disk_to_file(
            reader,
            RestoreRequest(tmp_path / "disk", format=kind),
            control=Control(),
            progress=Progress(),
        )
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("kind", list(Format))
def test_cancelling_removes_what_was_written(kind: Format, tmp_path: Path) -> None:
    reader, control = FaultyReader(), Control()

    cancelled: list[float] = []

    def cancel() -> None:
        assert reader.entered.wait(WAIT_SECONDS)
        cancelled.append(time.monotonic())
        control.cancel()

    threading.Thread(target=cancel).start()
    with pytest.raises(Cancelled):
        restore.restore_disk_to_file(
            reader,
            RestoreRequest(tmp_path / "disk", format=kind),
            control=control,
            progress=Progress(),
        )
    assert time.monotonic() - cancelled[0] < CANCEL_SECONDS_MAX
    reader.release.set()
    assert names_in(tmp_path) == []


def test_a_disk_that_cannot_fit_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    with pytest.raises(NoSpace):
        restore.restore_disk_to_file(
            FaultyReader(size_bytes=1 << 60),
            RestoreRequest(tmp_path / "disk"),
            control=Control(),
            progress=Progress(),
        )
    assert names_in(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_place_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    target = RawFile(tmp_path / "disk", size_bytes=CHUNK)
    os.dup2(os.open("/dev/full", os.O_WRONLY), target.fileno())
    target.write(0, b"x" * CHUNK)
    with pytest.raises(OSError, match="No space left"):
        target.finish(Control())
    target.close()


@pytest.mark.parametrize("kind", list(Format))
def test_a_file_of_another_length_than_the_disk_is_not_called_restored(
    kind: Format, tmp_path: Path
) -> None:
    path = tmp_path / "disk"
    target: RawFile | Qcow2File
    if kind is Format.RAW:
        target = RawFile(path, size_bytes=CHUNK)
        os.truncate(target.fileno(), 1)
    else:
        target = Qcow2File(path, size_bytes=CHUNK)
        target._size_bytes += units.SECTOR  # qemu-nbd holds the file: nothing can shorten it
    with closing(target), pytest.raises(Unavailable, match="after the restore") as caught:
        target.finish(Control())
    assert caught.value.kind == "target-failed"


def test_what_qemu_img_says_when_it_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="qemu-img cannot create") as caught:
        Qcow2File(tmp_path / "disk", size_bytes=1 << 62)
    assert caught.value.kind == "target-failed"


def test_a_slow_reader_and_a_slow_target_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Watched(queue.Queue[object]):
        full_seen = threading.Event()

        def put(self, item: object, block: bool = True, timeout: float | None = None) -> None:  # noqa: FBT001, FBT002
            try:
                super().put(item, block, timeout)
            except queue.Full:
                self.full_seen.set()
                raise

    class ManyChunks(FaultyReader):
        def read_chunks(
            self, extents: Iterable[Extent] | None = None
        ) -> Iterator[tuple[int, bytes]]:
            assert extents is not None
            for index in range(count_of_chunks):
                yield index, b"x"
            assert self.release.wait(WAIT_SECONDS)

    count_of_chunks = 2 * restore.AHEAD_HANDFULS
    checks = 0

    def count() -> None:
        nonlocal checks
        checks += 1
        if checks > count_of_chunks + 2:  # it asked again though nothing came
            reader.release.set()

    monkeypatch.setattr(queue, "Queue", Watched)
    monkeypatch.setattr(restore, "HANDFUL_BYTES", 1)
    reader = ManyChunks()
    ahead = restore._ReadAhead(reader)
    assert Watched.full_seen.wait(WAIT_SECONDS)
    found = [offset for offset, _ in ahead.take(Control(count))]
    ahead.stop()
    assert found == list(range(count_of_chunks))


def test_a_reader_that_runs_ahead_stops_where_nobody_writes_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Endless(FaultyReader):
        def read_chunks(
            self, extents: Iterable[Extent] | None = None
        ) -> Iterator[tuple[int, bytes]]:
            assert extents is not None
            while True:
                yield 0, b"x"

    monkeypatch.setattr(restore, "HANDFUL_BYTES", 1)
    ahead = restore._ReadAhead(Endless())
    ahead.stop()
    assert not ahead._thread.is_alive()


def test_a_file_that_cannot_get_its_length_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[int] = []
    real = os.close

    def close(handle: int) -> None:
        closed.append(handle)
        real(handle)

    def refuse(*_: object) -> None:
        raise OSError(27, "File too large")

    monkeypatch.setattr(os, "truncate", refuse)
    monkeypatch.setattr(os, "close", close)
    with pytest.raises(OSError, match="too large"):
        RawFile(tmp_path / "disk", size_bytes=CHUNK)
    assert len(closed) == 1


def test_a_file_is_not_closed_under_a_sync_that_was_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last bytes would go into whatever file got the same descriptor."""
    entered, release = threading.Event(), threading.Event()
    done: list[str] = []
    real = os.pwrite

    def write(handle: int, data: memoryview, at: int) -> int:
        entered.set()
        assert release.wait(WAIT_SECONDS)
        done.append("written")
        return real(handle, data, at)

    monkeypatch.setattr(os, "pwrite", write)
    control = Control()
    target = RawFile(tmp_path / "disk", size_bytes=512)
    target.write(0, b"x" * 512)

    def cancel() -> None:
        assert entered.wait(WAIT_SECONDS)
        control.cancel()

    threading.Thread(target=cancel).start()
    with pytest.raises(Cancelled):
        target.finish(control)
    threading.Timer(0.1, release.set).start()
    target.close()
    assert done == ["written"]


def test_cancelling_asks_between_the_chunks_of_a_handful(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, lab = disk_with_holes(), Lab()
    backup_id, _ = lab.back_up(disk)
    written = 0

    def count(self: RawFile, offset: int, data: bytes) -> None:
        nonlocal written
        del self, offset, data
        written += 1
        lab.control.cancel()

    monkeypatch.setattr(RawFile, "write", count)
    with pytest.raises(Cancelled):
        restore_latest(lab, backup_id, RestoreRequest(tmp_path / "disk.raw"))
    assert written == 1
