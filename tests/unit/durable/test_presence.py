import threading
from dataclasses import replace
from pathlib import Path

import pytest

from sendense.durable import presence, process
from sendense.durable.presence import Place, Presence
from tests.unit.durable import peer


def _mark() -> process.Mark:
    return process.mark_self(thread=threading.get_native_id(), wake_seconds=1.0)


def _look(place: Place) -> Presence:
    return presence.look(place.path)[0]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "locks", "one")


def test_a_taken_place_is_held_and_a_dropped_one_is_gone(place: Place) -> None:
    assert _look(place) is Presence.UNKNOWN
    place.take()
    place.write(_mark())
    assert presence.look(place.path) == (Presence.HELD, _mark())
    assert presence.count_here(place.path.parent) == 1

    place.drop()
    place.drop()

    assert _look(place) is Presence.UNKNOWN
    assert presence.count_here(place.path.parent) == 0


def test_a_worker_that_did_not_say_yet_who_it_is_is_left_to_the_clock(place: Place) -> None:
    place.take()

    assert presence.look(place.path) == (Presence.UNKNOWN, None)
    place.drop()


def test_a_lock_that_nobody_holds_tells_death(place: Place) -> None:
    place.path.parent.mkdir()
    place.path.write_bytes(_mark().to_bytes())

    assert _look(place) is Presence.FREE
    assert presence.count_here(place.path.parent) == 0


def test_after_a_restart_of_the_machine_the_clock_need_not_be_waited_for(place: Place) -> None:
    place.path.parent.mkdir()
    place.path.write_bytes(replace(_mark(), boot="before").to_bytes())

    assert _look(place) is Presence.FREE


def test_a_folder_shared_with_another_machine_proves_nothing(place: Place) -> None:
    there = replace(_mark(), boot="another", host="another")
    place.take()
    place.write(there)
    assert _look(place) is Presence.UNKNOWN
    place.drop()

    place.path.write_bytes(there.to_bytes())

    assert _look(place) is Presence.UNKNOWN


def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    path = presence.path_of(tmp_path, "one")
    with peer.run(tmp_path, "one") as running:
        assert presence.look(path)[0] is Presence.HELD
        running.kill()
        running.wait()

        assert presence.look(path)[0] is Presence.FREE
