import contextvars
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from sendense.core.errors import Cancelled, Unavailable
from sendense.engine import pipeline
from sendense.engine.control import Control
from sendense.engine.pipeline import Item, Stage

WAIT_SECONDS = 10  # a deadline for a test that hangs, not a time it takes


class Caller:
    """A worker that calls a function, and remembers how it was treated."""

    def __init__(self, function: Callable[[int], int]) -> None:
        self._function = function
        self.interrupted = threading.Event()
        self.closed = threading.Event()

    def process(self, item: int) -> int:
        return self._function(item)

    def interrupt(self) -> None:
        self.interrupted.set()

    def close(self) -> None:
        self.closed.set()


class Stuck(Caller):
    """Blocks until it is interrupted, as a read from a silent server does."""

    def __init__(self) -> None:
        super().__init__(lambda item: item)
        self.entered = threading.Event()

    def process(self, item: int) -> int:
        self.entered.set()
        assert self.interrupted.wait(WAIT_SECONDS)
        raise Unavailable(f"the connection of {item} was closed")


def items(count: int, *, weight: int = 1) -> Iterator[Item]:
    return (Item(weight, number) for number in range(count))


def stage(function: Callable[[int], int], *, threads: int = 2, name: str = "s") -> Stage:
    return Stage(name, threads, lambda: Caller(function))


def test_results_come_in_the_order_of_the_items_whatever_overtakes() -> None:
    first_may_end = threading.Event()

    def slow_first(number: int) -> int:
        if number == 0:
            assert first_may_end.wait(WAIT_SECONDS)
        elif number == 5:
            first_may_end.set()
        return number * 10

    found = pipeline.run(
        items(50),
        [stage(lambda n: n, name="a"), stage(slow_first, threads=3, name="b")],
        bytes_in_flight_max=20,
        control=Control(),
    )
    assert list(found) == [number * 10 for number in range(50)]


def test_no_more_bytes_are_inside_than_the_bound_allows() -> None:
    lock = threading.Lock()
    taken = 0

    def count() -> Iterator[Item]:
        nonlocal taken
        for item in items(40, weight=10):
            with lock:
                taken += 1
            yield item

    run = pipeline.run(count(), [stage(lambda n: n)], bytes_in_flight_max=45, control=Control())
    given = 0
    for _ in run:
        given += 1
        assert taken - given <= 5  # four inside, one held before the door
    assert given == 40


def test_an_item_heavier_than_the_bound_passes_alone() -> None:
    run = pipeline.run(
        items(3, weight=100), [stage(lambda n: n)], bytes_in_flight_max=10, control=Control()
    )
    assert list(run) == [0, 1, 2]


def test_no_items_start_no_worker() -> None:
    def refuse() -> Caller:
        raise AssertionError("nobody should open a worker")

    assert not list(
        pipeline.run([], [Stage("s", 2, refuse)], bytes_in_flight_max=1, control=Control())
    )


def test_an_error_surfaces_once_and_all_threads_end() -> None:
    before = threading.active_count()
    workers: list[Caller] = []

    def fail_at_seven(number: int) -> int:
        if number == 7:
            raise Unavailable("the source went away")
        return number

    def open_worker() -> Caller:
        workers.append(Caller(fail_at_seven))
        return workers[-1]

    run = pipeline.run(
        items(100), [Stage("s", 3, open_worker)], bytes_in_flight_max=10, control=Control()
    )
    seen: list[int] = []
    with pytest.raises(Unavailable, match="went away"):
        seen.extend(run)
    assert seen == list(range(len(seen)))
    assert len(seen) <= 7
    assert threading.active_count() == before
    assert all(worker.closed.is_set() for worker in workers)


def test_a_worker_that_cannot_open_is_an_error_of_the_run() -> None:
    def refuse() -> Caller:
        raise Unavailable("cannot connect")

    run = pipeline.run(items(3), [Stage("s", 2, refuse)], bytes_in_flight_max=10, control=Control())
    with pytest.raises(Unavailable, match="cannot connect"):
        next(run)


def test_cancelling_interrupts_a_worker_that_blocks() -> None:
    before = threading.active_count()
    stuck = Stuck()
    control = Control()
    run = pipeline.run(
        items(3), [Stage("s", 1, lambda: stuck)], bytes_in_flight_max=10, control=control
    )

    def cancel() -> None:
        assert stuck.entered.wait(WAIT_SECONDS)
        control.cancel()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        next(run)
    assert time.monotonic() - started < 2
    canceller.join()
    assert stuck.closed.wait(WAIT_SECONDS)
    assert threading.active_count() == before


def test_a_consumer_that_leaves_early_leaves_no_threads() -> None:
    before = threading.active_count()
    run = pipeline.run(items(100), [stage(lambda n: n)], bytes_in_flight_max=10, control=Control())
    assert next(run) == 0
    run.close()
    assert threading.active_count() == before


def test_cancelling_does_not_wait_for_a_worker_that_cannot_be_interrupted() -> None:
    release = threading.Event()
    entered = threading.Event()

    def hang(number: int) -> int:
        entered.set()
        release.wait(WAIT_SECONDS)
        return number

    control = Control()
    run = pipeline.run(items(3), [stage(hang, threads=1)], bytes_in_flight_max=10, control=control)

    def cancel() -> None:
        assert entered.wait(WAIT_SECONDS)
        control.cancel()

    threading.Thread(target=cancel).start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        next(run)
    assert time.monotonic() - started < 2
    release.set()


def test_threads_know_in_whose_name_they_work() -> None:
    job = contextvars.ContextVar("job", default="nobody")
    within = contextvars.copy_context()
    within.run(job.set, "job-1")
    found = within.run(
        lambda: list(
            pipeline.run(
                items(4),
                [stage(lambda _: job.get() == "job-1", threads=2)],
                bytes_in_flight_max=4,
                control=Control(),
            )
        )
    )
    assert found == [True] * 4
