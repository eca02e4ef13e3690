"""A bounded pipeline of threads that gives its results in the order of its items.

Each stage has threads of its own, and every thread a worker of its own (a connection, a
compression context). Items are taken lazily by whoever consumes the results, in the consumer's
thread; an item enters only while all items inside weigh less than the bound. Since items enter in
order and the oldest is always inside, the pipeline cannot block itself.

Threads help although Python runs one at a time: sockets, hashing and compression release the lock.
"""

import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sendense.engine.control import POLL_SECONDS, Control

# All stopped threads together are waited for this long, so that cancelling works within 2 s even
# where a worker cannot be interrupted (it still connects); what is left ends by itself.
JOIN_SECONDS_MAX = 1.2


class Worker(Protocol):
    """What one thread of a stage does."""

    def process(self, item: Any) -> Any:
        """Turn an item into the next stage's item."""
        ...

    def interrupt(self) -> None:
        """Make a `process` that blocks in another thread raise soon. May come at any time."""
        ...

    def close(self) -> None:
        """Release what the worker holds; called once, in its own thread."""
        ...


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of the pipeline.

    Attributes:
        name: names the threads.
        threads: how many, at least 1.
        open_worker: called once in each thread.
    """

    name: str
    threads: int
    open_worker: Callable[[], Worker]


@dataclass(frozen=True, slots=True)
class Item:
    """What goes in: `weight` is the bytes it holds at most while inside, never 0."""

    weight: int
    payload: Any


def run(
    items: Iterable[Item],
    stages: Sequence[Stage],
    *,
    bytes_in_flight_max: int,
    control: Control,
) -> Generator[Any, None, None]:
    """Yield the result of every item, in order.

    The first error of any stage is raised once, here. When the iterator ends, is closed or raises,
    all workers are interrupted and closed and all threads have ended.

    Raises Cancelled within `POLL_SECONDS` after `control` was told, whatever the stages do.
    """
    line = _Line(stages, control)
    try:
        yield from line.feed(items, bytes_in_flight_max)
    finally:
        line.stop()


class _Line:
    """The shared state of one run; everything below `_changed` is guarded by it."""

    def __init__(self, stages: Sequence[Stage], control: Control) -> None:
        assert stages, "a pipeline has at least one stage"
        self._stages = stages
        self._control = control
        lock = threading.Lock()
        self._ready = [threading.Condition(lock) for _ in stages]  # a stage has something to do
        self._changed = threading.Condition(lock)  # the consumer may go on
        self._queues: list[deque[tuple[int, Any]]] = [deque() for _ in stages]
        self._results: dict[int, Any] = {}
        self._error: BaseException | None = None
        self._stopped = False
        self._workers: list[Worker] = []
        self._threads = [
            threading.Thread(
                # In the caller's context, so that what a thread logs names the job.
                target=contextvars.copy_context().run,
                args=(self._work, place),
                name=f"{stage.name}-{number}",
                daemon=True,
            )
            for place, stage in enumerate(stages)
            for number in range(stage.threads)
        ]

    def feed(self, items: Iterable[Item], bytes_max: int) -> Iterator[Any]:
        source = iter(items)
        weights: deque[int] = deque()  # of the items inside, oldest first
        inside = 0
        entered = 0
        held: Item | None = next(source, None)
        if held is not None:  # nothing to do opens no connections
            for thread in self._threads:
                thread.start()
        while held is not None or weights:
            while held is not None and (not weights or inside + held.weight <= bytes_max):
                self._put(0, entered, held.payload)
                weights.append(held.weight)
                inside += held.weight
                entered += 1
                held = next(source, None)
            result = self._take(entered - len(weights))
            yield result
            del result  # or it would stay in memory while the next one is awaited
            inside -= weights.popleft()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            workers = list(self._workers)
            for queue in self._queues:
                queue.clear()
            self._results.clear()
            for condition in self._ready:
                condition.notify_all()
        for worker in workers:
            worker.interrupt()
        deadline = time.monotonic() + JOIN_SECONDS_MAX
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _put(self, place: int, number: int, payload: Any) -> None:
        with self._changed:
            if self._stopped:
                return
            if place == len(self._stages):
                self._results[number] = payload
                self._changed.notify()
            else:
                self._queues[place].append((number, payload))
                self._ready[place].notify()

    def _take(self, number: int) -> Any:
        while True:
            self._control.check()
            with self._changed:
                if self._error is not None:
                    raise self._error
                if number in self._results:
                    return self._results.pop(number)
                self._changed.wait(POLL_SECONDS)

    def _work(self, place: int) -> None:
        worker: Worker | None = None
        try:
            worker = self._stages[place].open_worker()
            with self._changed:
                self._workers.append(worker)
            self._drain(place, worker)
        except BaseException as error:  # noqa: BLE001 - raised again where results are taken
            with self._changed:
                if self._error is None and not self._stopped:
                    self._error = error
                    self._changed.notify()
        finally:
            if worker is not None:
                with self._changed:
                    self._workers.remove(worker)
                worker.close()

    def _drain(self, place: int, worker: Worker) -> None:
        queue = self._queues[place]
        while True:
            with self._changed:
                while not queue and not self._stopped:
                    self._ready[place].wait()
                if self._stopped:
                    return
                number, payload = queue.popleft()
            self._put(place + 1, number, worker.process(payload))
            del payload
