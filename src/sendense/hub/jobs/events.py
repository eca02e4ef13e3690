"""Server-sent events: each job's state and progress as it changes."""

import asyncio
import weakref
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from sendense.core import clock
from sendense.core.errors import Unavailable
from sendense.hub.context import Hub
from sendense.hub.jobs import queries, service
from sendense.hub.jobs.schemas import Job

POLL_SECONDS = 0.5  # progress is written at most every second
KEEP_ALIVE_SECONDS = 15.0  # proxies end a connection that is silent for 30 to 60 s
# A transaction stamps its rows before it commits; one that took this long is a bug.
OVERLAP = timedelta(seconds=5)
CHANGES_MAX = 1000  # in one look; the next look finds the rest
LISTENERS_MAX = 100  # each asks the catalog twice a second: together a quarter of a core


class Feed:
    """What one listener has seen, and what is new to it."""

    def __init__(self, hub: Hub, *, job_id: str | None, last_event_id: str | None) -> None:
        self._hub = hub
        self._job_id = job_id
        self._since = _parse(last_event_id)
        self._seen: dict[str, datetime] = {}

    def look(self) -> list[Job]:
        """Return jobs in the order of their change; at first all that are active."""
        with self._hub.catalog.read() as session:
            if self._since is None:
                rows = list(queries.list_active(session))
                if self._job_id is not None:
                    rows = [queries.get_job(session, self._job_id)]
                self._since = self._hub.clock.now()
            else:
                # A clock that was set back would otherwise hide all changes until it is here again.
                self._since = min(self._since, self._hub.clock.now())
                rows = list(
                    queries.list_changed_since(session, self._since - OVERLAP, limit=CHANGES_MAX)
                )
        fresh = [
            row
            for row in rows
            if self._seen.get(row.id) != row.updated_at and self._job_id in {None, row.id}
        ]
        self._seen.update({row.id: row.updated_at for row in rows})
        if rows:
            self._since = max(self._since, *(row.updated_at for row in rows))
        self._forget()
        return [service.show(row) for row in fresh]

    def _forget(self) -> None:
        """Keep only what the next look could show again."""
        assert self._since is not None, "set by the first look"
        oldest = self._since - 2 * OVERLAP
        self._seen = {job: at for job, at in self._seen.items() if at >= oldest}


class Listeners:
    """Those who listen now. One that went away before its first event is not counted either."""

    def __init__(self) -> None:
        self._feeds: weakref.WeakSet[Feed] = weakref.WeakSet()

    def __len__(self) -> int:
        """Return how many listen."""
        return len(self._feeds)

    def add(self, feed: Feed) -> None:
        """Count a listener. Raises Unavailable, kind `listeners-too-many`."""
        if len(self) >= LISTENERS_MAX:
            raise Unavailable(
                f"{LISTENERS_MAX} clients follow jobs already",
                kind="listeners-too-many",
                hint="ask `GET /api/v1/jobs` now and then, or end another client",
            )
        self._feeds.add(feed)

    def remove(self, feed: Feed) -> None:
        """Count a listener no more."""
        self._feeds.discard(feed)


def _parse(last_event_id: str | None) -> datetime | None:
    """Return the moment in an event's id; anything else starts anew."""
    if last_event_id is None:
        return None
    try:
        return clock.parse_utc(last_event_id.partition(" ")[0])
    except (ValueError, OverflowError):
        return None


def format_event(job: Job) -> str:
    """Return a job as one event; its id is where a listener that comes back goes on."""
    return f"id: {clock.format_utc(job.updated_at)}\nevent: job\ndata: {job.model_dump_json()}\n\n"


async def stream(feed: Feed, request: Request, listeners: Listeners) -> AsyncIterator[str]:
    """Yield events until the listener goes away."""
    try:
        async for event in _follow(feed, request):
            yield event
    finally:
        listeners.remove(feed)


async def _follow(feed: Feed, request: Request) -> AsyncIterator[str]:
    silent_seconds = 0.0
    yield "retry: 2000\n\n"
    while not await request.is_disconnected():
        jobs = await run_in_threadpool(feed.look)
        for job in jobs:
            yield format_event(job)
        silent_seconds = 0.0 if jobs else silent_seconds + POLL_SECONDS
        if silent_seconds >= KEEP_ALIVE_SECONDS:
            silent_seconds = 0.0
            yield ": still here\n\n"
        await asyncio.sleep(POLL_SECONDS)
