"""Threads that do all the work on an item each, while the next items are already under way.

    lane: begin … finish → work → put, in the order of the items → rest

A lane brings what an item asks for: it is asked early, waits while every thread works on something
else, and is waited for by whichever thread is free. So the source is busy while all cores are, and
an item stays with one thread and one core's cache, which costs far less than handing it from stage
to stage (measured: docs/decisions/0500-a-crew-and-one-hand-on-the-writer.md).

Threads help although Python runs one at a time: sockets, hashing and compression release the lock.
"""

import contextvars
import heapq
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from sendense.engine.control import POLL_SECONDS, Control

# All stopped threads together are waited for this long, so that cancelling works within 2 s even
# where a lane cannot be interrupted (it still connects); what is left ends by itself.
JOIN_SECONDS_MAX = 1.2


class Lane(Protocol):
    """Brings items, one at a time. Used by one thread at a time, but not always the same."""

    def begin(self, item: Any) -> None:
        """Ask for what an item needs, without waiting for it."""
        ...

    def finish(self) -> Any:
        """Wait for what was asked for, and return it."""
        ...

    def interrupt(self) -> None:
        """Make a `finish` that blocks in another thread raise soon. May come at any time."""
        ...

    def close(self) -> None:
        """Release what the lane holds; may come twice."""
        ...


@dataclass(frozen=True, slots=True)
class Crew:
    """Who does what.

    Attributes:
        threads: how many, at least 1.
        lanes: how many are opened at most, at least 1; each only when there is an item for it.
        open_lane: called in one of the threads.
        work: turns what a lane brought into a result; in any thread, several at once.
        put: takes the results, one at a time, in the order of the items.
        rest: called by a thread that has handed over its result: work that belongs to no item.
    """

    threads: int
    lanes: int
    open_lane: Callable[[], Lane]
    work: Callable[[Any], Any]
    put: Callable[[Any], None]
    rest: Callable[[], None] = lambda: None


def run(items: Iterable[Any], crew: Crew, *, control: Control) -> None:
    """Work on all items. `items` is advanced by one thread at a time.

    The first error of anybody is raised, once. Whatever is raised, all lanes are interrupted and
    closed and all threads have ended, but for those that cannot be interrupted within
    `JOIN_SECONDS_MAX`; they close what they open and hand over nothing.

    Raises Cancelled within `POLL_SECONDS` after `control` was told, whatever the threads do.
    """
    shift = _Shift(items, crew)
    try:
        shift.work(control)
    finally:
        shift.end()


class _Shift:
    """The shared state of one run. Locks are taken one at a time, but `put` may take its own."""

    def __init__(self, items: Iterable[Any], crew: Crew) -> None:
        assert crew.threads >= 1, "somebody must work"
        assert crew.lanes >= 1, "something must bring items"
        self._crew = crew
        self._items = enumerate(items)
        self._taking = threading.Lock()  # guards `_items`
        self._changed = threading.Condition()  # guards all that follows
        self._ready: list[tuple[int, Lane]] = []  # a heap: the oldest item is always taken first
        self._open: list[Lane] = []
        self._active = 0  # lanes that have an item, or are about to
        self._lanes_left = crew.lanes
        self._error: BaseException | None = None
        self._stopped = False
        self._turn = threading.Condition()  # guards what follows; held by whoever puts
        self._results: dict[int, Any] = {}
        self._next = 0
        # Whoever is so far ahead waits: results of a slow item's successors take memory. The oldest
        # item is never behind somebody who waits: whoever made a lane ready takes that or an older
        # one before it can wait for anything.
        self._ahead_max = crew.lanes + crew.threads
        self._threads = [
            threading.Thread(
                # In the caller's context, so that what a thread logs names the job.
                target=contextvars.copy_context().run,
                args=(self._serve,),
                name=f"crew-{number}",
                daemon=True,
            )
            for number in range(crew.threads)
        ]

    def work(self, control: Control) -> None:
        control.check()
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            while thread.is_alive():
                control.check()
                thread.join(POLL_SECONDS)
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        self._stop(None)
        deadline = time.monotonic() + JOIN_SECONDS_MAX
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        with self._changed:
            lanes = list(self._open)
        for lane in lanes:
            lane.close()

    def _stop(self, error: BaseException | None) -> None:
        with self._changed:
            if error is not None and not self._stopped:
                self._error = error
            self._stopped = True
            lanes = list(self._open)
            self._changed.notify_all()
        for lane in lanes:
            lane.interrupt()

    def _serve(self) -> None:
        try:
            while (found := self._take_lane()) is not None:
                number, lane = found
                brought = lane.finish()
                self._advance(lane)
                result = self._crew.work(brought)
                del brought
                self._hand_over(number, result)
                del result
                self._crew.rest()
        except BaseException as error:  # noqa: BLE001 - raised again by whoever called `run`
            self._stop(error)

    def _take_lane(self) -> tuple[int, Lane] | None:
        """Return the lane that brings the oldest item; None where nothing is left to do.

        Lanes are opened before any is waited for, so that the source always has something to do.
        """
        while True:
            with self._changed:
                while not (self._stopped or self._ready or self._lanes_left or not self._active):
                    self._changed.wait()
                if self._stopped:
                    return None
                if not self._lanes_left:
                    return heapq.heappop(self._ready) if self._ready else None
                self._lanes_left -= 1
                self._active += 1
            self._advance(None)

    def _advance(self, lane: Lane | None) -> None:
        """Let a lane, or a new one, bring the next item; close it where there is none."""
        with self._taking:
            found = None if self._stopped else next(self._items, None)
        if found is None:
            if lane is not None:
                lane.close()
            with self._changed:
                self._active -= 1
                self._lanes_left = 0
                self._changed.notify_all()
            return
        number, item = found
        if lane is None:
            lane = self._crew.open_lane()
            with self._changed:
                self._open.append(lane)
                is_late = self._stopped
            if is_late:  # whoever closes them all may have been here before
                lane.close()
                return
        lane.begin(item)
        with self._changed:
            heapq.heappush(self._ready, (number, lane))
            self._changed.notify()

    def _hand_over(self, number: int, result: Any) -> None:
        with self._turn:
            self._results[number] = result
            while self._next in self._results and not self._stopped:
                self._crew.put(self._results.pop(self._next))
                self._next += 1
                self._turn.notify_all()
            while number - self._next > self._ahead_max and not self._stopped:
                self._turn.wait(POLL_SECONDS)
