"""Writing past the page cache: every byte in its place, whatever the file system can do."""

import contextlib
import errno
import fcntl
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sendense.core import units
from sendense.core.errors import NoSpace
from sendense.repository.storage import direct
from sendense.repository.storage.direct import ALIGNMENT, STAGE_BYTES, DirectWriter
from sendense.repository.storage.local import LocalStorage

SIZE = 3 * STAGE_BYTES + 1234


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """An empty file that can be read too."""
    handle = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    yield handle
    os.close(handle)


def _content(handle: int) -> bytes:
    return os.pread(handle, os.fstat(handle).st_size, 0)


def _is_direct(handle: int) -> bool:
    return bool(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT)


def _write(handle: int, data: bytes, *, step: int = 1 << 20, offset: int = 0) -> None:
    with DirectWriter(handle) as writer:
        for start in range(0, len(data), step):
            writer.write(offset + start, data[start : start + step])
        writer.flush()


def test_pieces_of_any_length_are_put_together(file: int) -> None:
    data = random.Random(1).randbytes(SIZE)
    _write(file, data, step=100_001)
    assert _content(file) == data


def test_runs_anywhere_keep_what_lies_between_them(file: int) -> None:
    chooser = random.Random(2)
    model = bytearray(16 * units.MIB)
    os.truncate(file, len(model))
    with DirectWriter(file) as writer:
        for _ in range(40):
            aligned = chooser.random() < 0.5
            length = chooser.randrange(1, 40) * (ALIGNMENT if aligned else 1)
            offset = chooser.randrange(0, 3000) * (ALIGNMENT if aligned else 7)
            data = chooser.randbytes(length)
            writer.write(offset, data)
            writer.flush()
            model[offset : offset + length] = data
    assert _content(file) == bytes(model)


def test_aligned_pieces_pass_the_page_cache_and_the_rest_does_not(
    file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not _can_direct(file):
        pytest.skip("this file system knows no direct writes")
    seen: list[tuple[int, bool]] = []
    real = os.pwrite

    def note(handle: int, data: memoryview, at: int) -> int:
        seen.append((len(data), _is_direct(handle)))
        return real(handle, data, at)

    monkeypatch.setattr(os, "pwrite", note)
    _write(file, bytes(SIZE))
    assert sorted(seen) == [(1234 % ALIGNMENT, False), *[(STAGE_BYTES, True)] * 3]


def _can_direct(file: int) -> bool:
    with DirectWriter(file) as writer:
        return writer._is_direct


@pytest.mark.parametrize("when", ["flag", "write"])
def test_a_file_system_that_knows_no_direct_writes_is_written_all_the_same(
    file: int, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    set_flags, write = fcntl.fcntl, os.pwrite

    def refuse_flag(handle: int, command: int, *flags: int) -> int:
        if flags and flags[0] & os.O_DIRECT:
            raise OSError(errno.EINVAL, "injected")
        return set_flags(handle, command, *flags)

    two = threading.Barrier(2)  # the first two writes are refused at once

    def refuse_write(handle: int, data: memoryview, at: int) -> int:
        if _is_direct(handle):
            with contextlib.suppress(threading.BrokenBarrierError):
                two.wait(timeout=10)
            two.abort()
            raise OSError(errno.EINVAL, "injected")
        return write(handle, data, at)

    if when == "flag":
        monkeypatch.setattr(fcntl, "fcntl", refuse_flag)
    else:
        monkeypatch.setattr(os, "pwrite", refuse_write)
    data = random.Random(3).randbytes(SIZE)
    _write(file, data)
    assert _content(file) == data


def test_a_file_that_cannot_take_the_flag_for_another_reason_is_an_error(
    file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.fcntl

    def fail(handle: int, command: int, *flags: int) -> int:
        if flags:
            raise OSError(errno.EPERM, "injected")
        return real(handle, command, *flags)

    monkeypatch.setattr(fcntl, "fcntl", fail)
    with pytest.raises(OSError, match="injected"):
        DirectWriter(file)


def test_a_write_that_is_cut_short_is_continued(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda to, data, at: real(to, data[:ALIGNMENT], at))
    data = random.Random(4).randbytes(STAGE_BYTES + ALIGNMENT + 1)
    _write(file, data)
    assert _content(file) == data


def test_the_error_of_a_write_in_flight_is_raised(
    file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "injected")

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OSError, match="injected"):
        _write(file, bytes(STAGE_BYTES))


def test_memory_of_a_closed_writer_serves_the_next_one_and_no_two_at_once(
    file: int, tmp_path: Path
) -> None:
    with DirectWriter(file) as writer:
        used = {id(stage) for stage in writer._stages}
    other = os.open(tmp_path / "other", os.O_CREAT | os.O_RDWR)
    with DirectWriter(file) as one, DirectWriter(other) as two:
        first, second = ({id(stage) for stage in writer._stages} for writer in (one, two))
        assert first == used
        assert not first & second
        for start in range(0, SIZE, STAGE_BYTES // 2 + 1):
            one.write(start, b"1" * min(STAGE_BYTES // 2 + 1, SIZE - start))
            two.write(start, b"2" * min(STAGE_BYTES // 2 + 1, SIZE - start))
        one.flush()
        two.flush()
    assert (_content(file), _content(other)) == (b"1" * SIZE, b"2" * SIZE)
    os.close(other)


def test_a_process_that_forks_gives_its_child_none_of_the_memory(file: int) -> None:
    with DirectWriter(file):
        pass
    assert direct._spare
    child = os.fork()
    if child == 0:
        os._exit(len(direct._spare))
    assert os.waitpid(child, 0)[1] == 0
    _write(file, b"1" * SIZE)
    assert _content(file) == b"1" * SIZE


def test_a_large_object_is_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path)
    data = random.Random(5).randbytes(units.MIB + 5)
    storage.put_if_absent("packs/one", [data[:70_001], b"", data[70_001:]])
    assert storage.get("packs/one") == data
    real = os.pwrite

    for failing in (0, units.MIB):

        def fail(file: int, data: memoryview, at: int, failing: int = failing) -> int:
            if at >= failing:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(file, data, at)

        monkeypatch.setattr(os, "pwrite", fail)
        with pytest.raises(NoSpace):
            storage.put_if_absent("packs/two", data)
    assert [path.name for path in (tmp_path / "packs").iterdir()] == ["one"]
