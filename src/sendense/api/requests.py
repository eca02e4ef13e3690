"""What every request gets: an id that links log, answer and job, and a place in the figures."""

import logging
import re
import secrets
import time
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sendense.api import errors
from sendense.api.metrics import Metrics
from sendense.hub.tracing import REQUEST_ID

_log = logging.getLogger(__name__)

HEADER = "X-Request-ID"
# What proxies and clients send: UUIDs, ULIDs, trace ids; anything else could forge a log line.
_SANE = re.compile(r"[A-Za-z0-9._:+/=-]{1,100}")
# Clients that wait, monitoring and browsers read every second for ever, and a read that went well
# changed nothing: said only to who wants to see everything.
_READS = frozenset({"GET", "HEAD"})
_FAILED = 400
UNMATCHED = "unmatched"  # no route: a label for each path that somebody tries would be endless


class Requests:
    """ASGI middleware around all others: answers of the gate are counted and logged too.

    Args:
        app: what is inside.
        metrics: where requests are counted.
        base_path: what the router's own templates leave out.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, base_path: str) -> None:
        self._app = app
        self._metrics = metrics
        self._base_path = base_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, note how it ended, and tell the answer the request's id."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope).get(HEADER))
        status = 0  # no answer yet
        started = time.perf_counter()

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(**{REQUEST_ID: request_id}):
            try:
                await self._app(scope, receive, send_named)
            except Exception as error:
                if status:  # half an answer is out: only a broken connection can tell
                    raise
                answer = errors.respond_to_bug(scope["method"], scope["path"], error)
                await answer(scope, receive, send_named)
            finally:
                self._note(scope, status, time.perf_counter() - started)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        self._metrics.count_request(scope["method"], self._route(scope), status, seconds)
        dull = scope["method"] in _READS and 0 < status < _FAILED
        level = logging.DEBUG if dull else logging.INFO
        _log.log(level, "%s %s %d %.1f ms", scope["method"], scope["path"], status, seconds * 1000)

    def _route(self, scope: Scope) -> str:
        """Return the route's template: `/api/v1/backups/{backup_id}`, not each backup's path."""
        route: Any = scope.get("route")
        if route is None:
            return UNMATCHED
        inside = scope["path"].startswith(f"{self._base_path}/")
        return f"{self._base_path}{route.path}" if inside else str(route.path)


def _request_id(given: str | None) -> str:
    """Return the id a client sent, so that its log and ours meet, or a new one."""
    if given is not None and _SANE.fullmatch(given):
        return given
    return secrets.token_hex(8)
