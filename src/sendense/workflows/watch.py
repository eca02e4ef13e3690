"""Looks after a transfer while it runs: cancel flag, failed siblings, lease, progress."""

import contextvars
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from sendense.core.errors import SendenseError
from sendense.engine.control import Control
from sendense.hub.jobs import queries as jobs
from sendense.workflows.context import Context

_log = logging.getLogger(__name__)

# Cancelling must work within 2 s: half of it here, and the engine's own polling on top. Progress
# is written as often: the catalog is one file, and a person reads no faster.
WATCH_SECONDS = 0.8

Look = Callable[[Session], str | None]
Report = Callable[[Session], None]


def never(_session: Session) -> str | None:
    """Know no other reason to stop than the cancel flag."""
    return None


@contextmanager
def watch(
    context: Context, job_id: str, *, report: Report, look: Look = never
) -> Iterator[Control]:
    """Give the control of a transfer and look after it from a thread until the block ends.

    About every second: where the job is cancelled, or `look` returns a reason to stop, the control
    is cancelled; `report` writes progress. No transaction lasts longer than one look. The control
    ends the process when the lease is lost.
    """
    control = Control(guard=context.lease.check)
    ended = threading.Event()

    def look_once() -> None:
        with context.catalog.read() as session:
            cancelled = jobs.is_cancel_requested(session, job_id)
            reason = "the job was cancelled" if cancelled else look(session)
        if reason is not None:
            control.cancel(reason)

    def run() -> None:
        while not ended.wait(WATCH_SECONDS):
            try:
                look_once()
                with context.catalog.write() as session:
                    report(session)
            except (SQLAlchemyError, SendenseError) as error:
                # The transfer needs no catalog; if this lasts, the lease ends the worker.
                _log.warning("cannot look after job %s: %s", job_id, error)

    look_once()
    control.check()
    # With the step's context, so that what it logs names the job.
    within = contextvars.copy_context()
    thread = threading.Thread(target=within.run, args=(run,), name=f"watch-{job_id}", daemon=True)
    thread.start()
    try:
        yield control
    finally:
        ended.set()
        thread.join()
    with context.catalog.write() as session:
        report(session)
