import signal
import threading
from pathlib import Path

import pytest

from sendense.durable import lease_terms, presence, process
from sendense.durable.reaper import Reaper
from tests.unit.durable import peer

WAKE_SECONDS = 0.02
WAIT_SECONDS_MAX = 20.0


def _look(reaper: Reaper, times: int, *, wait_seconds: float = WAKE_SECONDS * 1.5) -> list[str]:
    ended: list[str] = []
    for _ in range(times):
        threading.Event().wait(wait_seconds)
        ended += reaper.look()
    return ended


def test_a_frozen_worker_is_ended_and_a_running_one_is_not(tmp_path: Path) -> None:
    # The running one has a second for each wake, however busy this machine is.
    with peer.run(tmp_path, "frozen") as frozen, peer.run(tmp_path, "runs", wake_seconds=1) as runs:
        peer.freeze(frozen)
        reaper = Reaper(tmp_path)

        assert _look(reaper, lease_terms.FROZEN_LOOKS) == []
        assert _look(reaper, 5) == ["frozen"]
        assert frozen.wait(timeout=WAIT_SECONDS_MAX) == -signal.SIGKILL
        assert runs.poll() is None


def test_nobody_is_ended_by_one_who_looks_more_often_than_the_other_wakes(tmp_path: Path) -> None:
    with peer.run(tmp_path, "slow", wake_seconds=60) as slow:
        assert _look(Reaper(tmp_path), lease_terms.FROZEN_LOOKS * 3, wait_seconds=0.001) == []
        assert slow.poll() is None


def test_a_worker_that_ended_meanwhile_is_forgotten(tmp_path: Path) -> None:
    reaper = Reaper(tmp_path)
    with peer.run(tmp_path, "one"):
        reaper.look()
        assert list(reaper._seen) == [presence.path_of(tmp_path, "one")]
    presence.path_of(tmp_path, "one").unlink()

    reaper.look()

    assert reaper._seen == {}


def test_a_worker_without_the_marked_thread_is_left_to_the_clock(tmp_path: Path) -> None:
    place = presence.Place(tmp_path, "odd")
    place.take()
    place.write(process.mark_self(thread=1, wake_seconds=0.0))

    assert _look(Reaper(tmp_path), lease_terms.FROZEN_LOOKS * 2) == []
    place.drop()


def test_what_cannot_be_looked_at_keeps_nobody_from_the_others(tmp_path: Path) -> None:
    presence.path_of(tmp_path, "a-folder").mkdir()
    with peer.run(tmp_path, "frozen") as frozen:
        frozen.send_signal(signal.SIGSTOP)
        assert _look(Reaper(tmp_path), lease_terms.FROZEN_LOOKS + 5) == ["frozen"]


def test_one_that_cannot_be_ended_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process, "end", lambda _mark, _path: False)
    with peer.run(tmp_path, "one") as one:
        one.send_signal(signal.SIGSTOP)
        ended = _look(Reaper(tmp_path), lease_terms.FROZEN_LOOKS * 3)

    assert ended
    assert "cannot be ended" in caplog.text


def test_it_looks_while_its_block_runs(tmp_path: Path) -> None:
    before = threading.active_count()
    with (
        peer.run(tmp_path, "one") as one,
        Reaper(tmp_path).running(lease_seconds=WAKE_SECONDS * lease_terms.PULSES_PER_LEASE),
    ):
        one.send_signal(signal.SIGSTOP)
        assert one.wait(timeout=WAIT_SECONDS_MAX) == -signal.SIGKILL
    assert threading.active_count() <= before
