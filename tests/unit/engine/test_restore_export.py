"""A disk of a backup overwrites what an NBD server serves, holes and all."""

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from sendense.connectors.vsphere.reader.base import ReadTask
from sendense.connectors.vsphere.reader.file import FileReader
from sendense.core.errors import Cancelled, Conflict
from sendense.engine import restore
from sendense.nbd.address import Address
from tests.engine_kit import CHUNK, KEY, Lab, SparseDisk

SIZE = 40 * CHUNK


@contextlib.contextmanager
def serve(folder: Path, content: bytes | None, size_bytes: int = SIZE) -> Iterator[Address]:
    """Serve a file for writing: these bytes, or a hole."""
    path = folder / "vm-1" / f"{KEY}.raw"
    path.parent.mkdir()
    with path.open("wb") as file:
        file.truncate(size_bytes)
        file.write(content or b"")
    task = ReadTask("vm-1", None, "", KEY, size_bytes, "", "", "", "", writable=True)
    with FileReader(folder).open(task) as address:
        yield address


def back_up(lab: Lab) -> tuple[str, SparseDisk]:
    disk, chooser = SparseDisk(SIZE), random.Random(5)
    for index in range(0, 40, 3):
        disk.fill(index * CHUNK, CHUNK, content=chooser.randbytes)
    return lab.back_up(disk)[0], disk


def write(lab: Lab, backup_id: str, address: Address) -> int:
    with lab.repository.open_disk_reader(backup_id, KEY) as reader:
        return restore.restore_disk_to_export(
            reader, address, control=lab.control, progress=lab.progress
        )


@pytest.mark.parametrize("is_empty", [False, True])
def test_every_byte_of_the_target_is_that_of_the_backup(tmp_path: Path, *, is_empty: bool) -> None:
    lab = Lab()
    backup_id, disk = back_up(lab)
    old = None if is_empty else random.Random(6).randbytes(SIZE)
    with serve(tmp_path, old) as address:
        assert write(lab, backup_id, address) == 14 * CHUNK
    assert (tmp_path / "vm-1" / f"{KEY}.raw").read_bytes() == disk.read(0, SIZE)


def test_another_size_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    lab = Lab()
    backup_id, _ = back_up(lab)
    old = random.Random(6).randbytes(SIZE)
    with (
        serve(tmp_path, old, SIZE + CHUNK) as address,
        pytest.raises(Conflict) as caught,
    ):
        write(lab, backup_id, address)
    assert caught.value.kind == "target-size-differs"
    assert (tmp_path / "vm-1" / f"{KEY}.raw").read_bytes()[:SIZE] == old


def test_who_cancels_is_heard_while_zeros_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab()
    backup_id, _ = back_up(lab)
    monkeypatch.setattr(restore, "CLEAR_BYTES", CHUNK // 2)
    with serve(tmp_path, bytes(random.Random(6).randbytes(SIZE))) as address:
        checks: list[None] = []

        def check() -> None:
            checks.append(None)
            if len(checks) > 20:
                raise Cancelled("enough")

        monkeypatch.setattr(lab.control, "check", check)
        with pytest.raises(Cancelled):
            write(lab, backup_id, address)
