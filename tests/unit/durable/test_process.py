import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from sendense.durable import presence, process
from sendense.durable.process import Mark
from tests.unit.durable import peer

WAIT_SECONDS_MAX = 20.0


def _mark(folder: Path, worker_id: str = "one") -> Mark:
    _, mark = presence.look(presence.path_of(folder, worker_id))
    assert mark is not None
    return mark


def test_a_mark_is_read_as_it_was_written() -> None:
    mark = process.mark_self(thread=threading.get_native_id(), wake_seconds=0.5)

    assert process.parse(mark.to_bytes()) == mark
    assert mark.is_of_this_host


@pytest.mark.parametrize("text", [b"", b"[]", b'{"pid": 1}', b"\xff\xfe", b"7"])
def test_what_is_no_mark_is_none(text: bytes) -> None:
    assert process.parse(text) is None


def test_a_running_thread_wakes_and_a_stopped_one_does_not(tmp_path: Path) -> None:
    with peer.run(tmp_path, "one") as running:
        mark = _mark(tmp_path)
        first = process.count_wakes(mark)
        assert first is not None
        _until(lambda: process.count_wakes(mark) != first)

        peer.freeze(running)
        stopped = process.count_wakes(mark)
        threading.Event().wait(0.3)

        assert process.count_wakes(mark) == stopped
        assert process.count_wakes(replace(mark, thread=1)) is None


def test_the_process_that_holds_the_lock_is_ended(tmp_path: Path) -> None:
    with peer.run(tmp_path, "one") as running:
        running.send_signal(signal.SIGSTOP)

        assert process.end(_mark(tmp_path), presence.path_of(tmp_path, "one"))

        assert running.wait(timeout=WAIT_SECONDS_MAX) == -signal.SIGKILL


def test_a_process_that_has_ended_is_gone(tmp_path: Path) -> None:
    with peer.run(tmp_path, "one") as running:
        mark = _mark(tmp_path)
        running.kill()
        running.wait()

        assert process.end(mark, presence.path_of(tmp_path, "one"))
        assert process.count_wakes(mark) is None


def test_another_process_of_the_same_number_is_left_alone(tmp_path: Path) -> None:
    path = presence.path_of(tmp_path, "one")
    with peer.run(tmp_path, "one") as running:
        mark = _mark(tmp_path)

        assert not process.end(replace(mark, started=mark.started - 1), path)
        assert not process.end(replace(mark, boot="another"), path)
        assert running.poll() is None


def test_a_process_that_does_not_hold_the_lock_is_left_alone(tmp_path: Path) -> None:
    with peer.run(tmp_path, "one") as running, peer.run(tmp_path, "two") as other:
        assert not process.end(_mark(tmp_path), presence.path_of(tmp_path, "two"))
        assert not process.end(_mark(tmp_path), presence.path_of(tmp_path, "missing"))
        assert (running.poll(), other.poll()) == (None, None)


def test_a_process_that_has_the_file_open_but_no_lock_is_left_alone(tmp_path: Path) -> None:
    with peer.run(tmp_path, "one"):
        path = presence.path_of(tmp_path, "one")
        mark = process.mark_self(thread=threading.get_native_id(), wake_seconds=1.0)
        handle = os.open(path, os.O_RDONLY)
        try:
            assert not process.end(mark, path)  # or this test would have ended itself
        finally:
            os.close(handle)


def test_a_process_that_may_not_be_ended_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int, number: int) -> None:
        del handle, number
        raise PermissionError

    with peer.run(tmp_path, "one") as running:
        monkeypatch.setattr(signal, "pidfd_send_signal", refuse)  # as for another user's process

        assert not process.end(_mark(tmp_path), presence.path_of(tmp_path, "one"))
        assert running.poll() is None


def _until(condition: object) -> None:
    assert callable(condition)
    waiting = threading.Event()
    for _ in range(int(WAIT_SECONDS_MAX / 0.02)):
        if condition():
            return
        waiting.wait(0.02)
    raise AssertionError("it never happened")
