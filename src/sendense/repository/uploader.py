"""Puts packs and checkpoints behind the writer's back: in order, one at a time, bounded."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

IN_FLIGHT_MAX = 1  # packs put behind the writer's back; a second one gains nothing and costs 32 MiB


class Uploader:
    """One thread that works through jobs in order.

    The first job that fails is the last that runs: its error is raised by the next `submit` or
    `drain`, and by every one after it, for what follows would build on what is not there.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pack")
        self._jobs: deque[Future[None]] = deque()
        self._error: BaseException | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Queue a job; wait while too many are in flight. Raises what an earlier job raised."""
        while self._jobs and (len(self._jobs) >= IN_FLIGHT_MAX or self._jobs[0].done()):
            self._take()
        self._raise()
        self._jobs.append(self._executor.submit(self._run, job))

    def drain(self) -> None:
        """Wait until all jobs are done. Raises what one of them raised."""
        while self._jobs:
            self._take()
        self._raise()

    def close(self) -> None:
        """Drop the jobs that have not begun, and wait for the one that has."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _run(self, job: Callable[[], None]) -> None:
        if self._error is not None:
            return
        try:
            job()
        except BaseException as error:
            self._error = error
            raise

    def _take(self) -> None:
        self._jobs.popleft().exception()  # the first error is kept in _error
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
