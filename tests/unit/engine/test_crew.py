import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sendense.core.errors import Cancelled, Unavailable
from sendense.engine import crew
from sendense.engine.control import Control
from sendense.engine.crew import Crew

WAIT_SECONDS = 10  # a deadline for a test that hangs, not a time it takes
CANCEL_SECONDS_MAX = 5.0  # below that, so it was not waited for; 1.5 on an idle machine


class Bringer:
    """A lane that brings the items themselves, and remembers how it was treated."""

    def __init__(self, finish: Callable[[int], int] = lambda number: number) -> None:
        self._finish = finish
        self._begun: deque[int] = deque()
        self.interrupted = threading.Event()
        self.closed = threading.Event()

    def begin(self, item: int) -> None:
        assert not self._begun, "one at a time"
        self._begun.append(item)

    def finish(self) -> int:
        return self._finish(self._begun.popleft())

    def interrupt(self) -> None:
        self.interrupted.set()

    def close(self) -> None:
        self.closed.set()


class Stuck(Bringer):
    """Blocks until it is interrupted, as a read from a silent server does."""

    def __init__(self) -> None:
        super().__init__(self._wait)
        self.entered = threading.Event()

    def _wait(self, number: int) -> int:
        self.entered.set()
        assert self.interrupted.wait(WAIT_SECONDS)
        raise Unavailable(f"the connection of {number} was closed")


def work_on(
    count: int,
    work: Callable[[int], Any] = lambda number: number,
    *,
    threads: int = 2,
    lanes: int = 3,
    control: Control | None = None,
    **more: Any,
) -> list[Any]:
    """Run a crew over numbers and return what was put, in order."""
    found: list[Any] = []
    given = {"open_lane": Bringer, "put": found.append, **more}
    crew.run(
        range(count),
        Crew(threads=threads, lanes=lanes, work=work, **given),
        control=control or Control(),
    )
    return found


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("lanes", [1, 4])
def test_results_come_in_the_order_of_the_items(threads: int, lanes: int) -> None:
    assert work_on(100, threads=threads, lanes=lanes) == list(range(100))


def test_a_slow_item_is_overtaken_and_put_in_its_place() -> None:
    first_may_end = threading.Event()

    def slow_first(number: int) -> int:
        if number == 0:
            assert first_may_end.wait(WAIT_SECONDS)
        elif number == 5:
            first_may_end.set()
        return number * 10

    assert work_on(50, slow_first) == [number * 10 for number in range(50)]


def test_nobody_gets_far_ahead_of_a_slow_item() -> None:
    first_may_end = threading.Event()
    done: list[int] = []
    ahead_max = 2 + 3

    def slow_first(number: int) -> int:
        if number == 0:
            assert first_may_end.wait(WAIT_SECONDS)
        done.append(number)
        return number

    def release() -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while len(done) <= ahead_max and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)  # long enough for a thread that does not wait to go on
        assert len(done) == ahead_max + 1
        first_may_end.set()

    releaser = threading.Thread(target=release)
    releaser.start()
    assert work_on(200, slow_first) == list(range(200))
    releaser.join()


def test_the_next_items_are_asked_for_before_work_begins() -> None:
    asked: list[int] = []

    class Asking(Bringer):
        def begin(self, item: int) -> None:
            asked.append(item)
            super().begin(item)

    def work(number: int) -> int:
        assert number + 1 in asked or number == 9
        return number

    assert work_on(10, work, threads=1, lanes=1, open_lane=Asking) == list(range(10))


def test_no_more_lanes_are_opened_than_there_are_items_for() -> None:
    opened: list[Bringer] = []

    def open_lane() -> Bringer:
        opened.append(Bringer())
        return opened[-1]

    assert work_on(0, open_lane=open_lane) == []
    assert opened == []
    assert work_on(1, threads=4, lanes=4, open_lane=open_lane) == [0]
    assert len(opened) == 1
    assert opened[0].closed.is_set()


def test_whoever_has_handed_over_does_the_rest() -> None:
    rested: list[str] = []
    work_on(10, rest=lambda: rested.append(threading.current_thread().name))
    assert len(rested) == 10
    assert all(name.startswith("crew-") for name in rested)


@pytest.mark.parametrize("where", ["finish", "work", "put", "rest", "items"])
def test_an_error_surfaces_once_and_all_threads_end(where: str) -> None:
    before = threading.active_count()
    lanes: list[Bringer] = []

    def fail(number: int = 7) -> int:
        if number == 7:
            raise Unavailable("the source went away")
        return number

    def open_lane() -> Bringer:
        lanes.append(Bringer(fail) if where == "finish" else Bringer())
        return lanes[-1]

    def list_items() -> Iterator[int]:
        for number in range(100):
            yield fail(number) if where == "items" else number

    seen: list[int] = []

    def put(number: int) -> None:
        if where == "put":
            fail(number)
        seen.append(number)

    hands = Crew(
        threads=3,
        lanes=3,
        open_lane=open_lane,
        work=fail if where == "work" else lambda number: number,
        put=put,
        rest=(lambda: None) if where != "rest" else (lambda: (fail(), None)[1]),
    )
    with pytest.raises(Unavailable, match="went away"):
        crew.run(list_items(), hands, control=Control())
    assert seen == list(range(len(seen)))
    assert where == "rest" or len(seen) <= 7
    assert threading.active_count() <= before
    assert all(lane.closed.is_set() for lane in lanes)


def test_a_lane_that_cannot_open_is_an_error_of_the_run() -> None:
    def refuse() -> Bringer:
        raise Unavailable("cannot connect")

    with pytest.raises(Unavailable, match="cannot connect"):
        work_on(3, open_lane=refuse)


def test_a_lane_that_opens_late_holds_nobody_up() -> None:
    """The oldest item waits for its lane while the others are far ahead, and is taken next."""
    others = threading.Event()
    opened: list[Bringer] = []

    def open_lane() -> Bringer:
        lane = Bringer()
        opened.append(lane)
        if lane is opened[0]:
            assert others.wait(WAIT_SECONDS)
        return lane

    def work(number: int) -> int:
        if number == 2 + 4 + 1:  # the first that is too far ahead
            others.set()
        return number

    assert work_on(300, work, threads=2, lanes=4, open_lane=open_lane) == list(range(300))


def test_nobody_takes_another_item_after_an_error() -> None:
    taken: list[int] = []
    failed = threading.Event()

    def list_items() -> Iterator[int]:
        for number in range(100):
            if number == 8:  # each lane has brought one item and was asked for another
                assert failed.wait(WAIT_SECONDS)
                time.sleep(0.2)  # until the error has stopped everybody
            taken.append(number)
            yield number

    def work(number: int) -> int:
        if number == 0:
            failed.set()
            raise Unavailable("the source went away")
        return number

    hands = Crew(threads=4, lanes=4, open_lane=Bringer, work=work, put=lambda _: None)
    with pytest.raises(Unavailable):
        crew.run(list_items(), hands, control=Control())
    assert len(taken) <= 9


def test_nothing_starts_for_whoever_cancelled_before() -> None:
    control = Control()
    control.cancel()
    with pytest.raises(Cancelled):
        work_on(3, control=control)


def _cancel_once(entered: threading.Event, control: Control) -> threading.Thread:
    def cancel() -> None:
        assert entered.wait(WAIT_SECONDS)
        control.cancel()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    return canceller


def test_cancelling_interrupts_a_lane_that_blocks() -> None:
    before = threading.active_count()
    stuck = Stuck()
    control = Control()
    canceller = _cancel_once(stuck.entered, control)
    started = time.monotonic()
    with pytest.raises(Cancelled):
        work_on(3, threads=2, lanes=1, open_lane=lambda: stuck, control=control)
    assert time.monotonic() - started < CANCEL_SECONDS_MAX
    canceller.join()
    assert stuck.closed.is_set()
    assert threading.active_count() <= before


def test_cancelling_does_not_wait_for_what_cannot_be_interrupted() -> None:
    entered, release, closed = threading.Event(), threading.Event(), threading.Event()

    class Late(Bringer):
        def close(self) -> None:
            closed.set()

    def connect() -> Bringer:
        entered.set()
        release.wait(WAIT_SECONDS)
        return Late()

    control = Control()
    _cancel_once(entered, control)
    started = time.monotonic()
    with pytest.raises(Cancelled):
        work_on(3, threads=1, open_lane=connect, control=control)
    assert time.monotonic() - started < CANCEL_SECONDS_MAX
    release.set()
    assert closed.wait(WAIT_SECONDS), "a lane that opens too late is closed all the same"


def test_threads_know_in_whose_name_they_work() -> None:
    job = contextvars.ContextVar("job", default="nobody")
    within = contextvars.copy_context()
    within.run(job.set, "job-1")
    found = within.run(lambda: work_on(4, lambda _: job.get() == "job-1"))
    assert found == [True] * 4
