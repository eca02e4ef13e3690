import random
import threading
from pathlib import Path

import pytest

from sendense.connectors.vsphere.reader import limits
from sendense.connectors.vsphere.reader.limits import Limit, Slots
from sendense.core.clock import ManualClock, SystemClock
from sendense.core.errors import Denied, Unavailable

HOST = Limit("disks of host-1", 2)


def make(folder: Path) -> Slots:
    return Slots(folder, ManualClock(), random.Random(1))


def test_no_more_are_held_than_the_limit(tmp_path: Path) -> None:
    first, second = make(tmp_path / "slots"), make(tmp_path / "slots")
    with first.hold([HOST]), second.hold([HOST]):
        with pytest.raises(Unavailable) as caught, first.hold([HOST], wait_seconds_max=60):
            raise AssertionError("a third one")
        assert caught.value.kind == "vsphere-slots-taken"
        with first.hold([Limit("disks of host-2", 1)]):
            pass
    with first.hold([HOST], wait_seconds_max=0), first.hold([HOST], wait_seconds_max=0):
        pass


def test_who_waits_in_vain_holds_nothing(tmp_path: Path) -> None:
    slots = make(tmp_path)
    other = Limit("sessions", 3, count=2)
    with slots.hold([other]):
        with pytest.raises(Unavailable), slots.hold([HOST, other], wait_seconds_max=1):
            raise AssertionError("two of three and two more")
        with slots.hold([HOST], wait_seconds_max=0), slots.hold([HOST], wait_seconds_max=0):
            pass


def test_who_wants_more_than_there_are_gets_all(tmp_path: Path) -> None:
    slots = make(tmp_path)
    with (
        slots.hold([Limit("sessions", 2, count=5)], wait_seconds_max=0),
        pytest.raises(Unavailable),
        slots.hold([Limit("sessions", 2)], wait_seconds_max=0),
    ):
        raise AssertionError("a third one")


def test_threads_take_turns(tmp_path: Path) -> None:
    slots = Slots(tmp_path, SystemClock(), random.Random(1))
    inside, most = [0], [0]
    lock = threading.Lock()

    def work() -> None:
        with slots.hold([HOST], wait_seconds_max=60):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            with lock:
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert inside == [0]
    assert 1 <= most[0] <= 2


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(Denied), make(tmp_path / "link").hold([HOST]):
        raise AssertionError("through a link")


def test_pauses_grow_and_differ() -> None:
    delays = list(limits.list_delays(8, random.Random(1)))
    bounds = [2, 4, 8, 16, 32, 60, 60]
    assert len(delays) == 7
    assert all(bound / 2 <= delay <= bound for delay, bound in zip(delays, bounds, strict=True))
    assert delays != list(limits.list_delays(8, random.Random(2)))
