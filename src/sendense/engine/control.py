"""How somebody outside stops a transfer.

A transfer asks `check` in every loop and in every wait, at least every `POLL_SECONDS`.
"""

import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar

from sendense.core.errors import Cancelled

POLL_SECONDS = 0.25  # cancelling must work within 2 s in every phase; eight tries in that time

_Result = TypeVar("_Result")


class Control:
    """The stop button of one transfer; safe to use from any thread.

    `guard` is called by every `check` as well, and whatever it raises stops the transfer: a worker
    asks there whether it still holds its lease. It must be quick and safe to call from any thread.
    """

    def __init__(self, guard: Callable[[], None] | None = None) -> None:
        self._guard = guard
        self._stopped = threading.Event()
        self._reason = ""

    def cancel(self, reason: str = "the job was cancelled") -> None:
        """Ask the transfer to stop. The first reason stays; returns at once."""
        if not self._stopped.is_set():
            self._reason = reason
            self._stopped.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._stopped.is_set()

    def check(self) -> None:
        """Raise Cancelled where somebody cancelled, or what the guard raises."""
        if self._stopped.is_set():
            raise Cancelled(self._reason)
        if self._guard is not None:
            self._guard()

    def wait(self, seconds: float) -> None:
        """Wait, but no longer than until somebody cancels; then raise Cancelled."""
        self._stopped.wait(seconds)
        self.check()

    def run_apart(self, function: Callable[[], _Result], *, name: str) -> _Result:
        """Call something that may block for long in a thread of its own, and wait for it.

        Cancelling need not wait for it: then the thread is left behind, and ends when the function
        returns or fails, which its caller should bring about by closing what it works on.
        """
        outcome: list[_Result] = []
        failure: list[BaseException] = []
        finished = threading.Event()

        def call() -> None:
            try:
                outcome.append(function())
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                failure.append(error)
            finally:
                finished.set()

        # In the caller's context, so that what it logs names the job.
        within = contextvars.copy_context()
        threading.Thread(target=within.run, args=(call,), name=name, daemon=True).start()
        while not finished.wait(POLL_SECONDS):
            self.check()
        self.check()
        if failure:
            raise failure[0]
        return outcome[0]
