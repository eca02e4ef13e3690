"""What every request passes before any route: who may ask, how much, and in what form.

The server without accounts trusts whoever reaches the loopback address. A web page in a local
browser reaches it too; so the gate turns away requests that a page sends (another origin), and
names that a page's owner could point at us (DNS rebinding). See docs/decisions/0301.
"""

import asyncio
import json
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sendense.api import errors
from sendense.core.errors import Denied, Invalid, NotFound, SendenseError

BODY_BYTES_MAX = 1024 * 1024  # the largest body, a source with 1000 VMs, is half of it
# A body comes at once or in a moment; whoever trickles it holds a connection and a file handle.
BODY_SECONDS_MAX = 30.0
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_FETCH_SITES_ALLOWED = frozenset({"same-origin", "none"})

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_POLICY = "default-src 'none'; frame-ancestors 'none'"


class Gate:
    """ASGI middleware; see the module.

    Args:
        app: what is behind the gate.
        hosts: names under which the server may be addressed, in lower case, without a port.
        policies: content security policies of pages, by path; all else may load nothing.
        body_seconds_max: how long a body may take to come in.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Collection[str],
        policies: Mapping[str, str],
        body_seconds_max: float = BODY_SECONDS_MAX,
    ) -> None:
        self._app = app
        self._hosts = frozenset(hosts)
        self._policies = dict(policies)
        self._body_seconds_max = body_seconds_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        policy = self._policies.get(scope["path"], _POLICY)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Content-Security-Policy", policy)
            await send(message)

        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            _check_path(scope["path"])
            _check_origin(scope["method"], headers)
            body = await self._read_body(headers, receive)
            _check_json(headers, body)
        except SendenseError as error:
            # What is left of the body is not read: the connection cannot be used again.
            response = errors.respond(error, headers={"Connection": "close"})
            await response(scope, receive, send_guarded)
            return
        if scope["method"] == "HEAD":
            await self._answer_head(scope, body, send_guarded)
        else:
            await self._app(scope, _replay(body, receive), send_guarded)

    async def _answer_head(self, scope: Scope, body: bytes, send: Send) -> None:
        """Answer HEAD as GET would be answered, without the body: so no route needs to know it."""
        inner = {**scope, "method": "GET"}
        try:
            await self._app(inner, *_cut_body(body, send))
        finally:
            if "route" in inner:  # what the request is counted by
                scope["route"] = inner["route"]

    async def _read_body(self, headers: Headers, receive: Receive) -> bytes:
        try:
            async with asyncio.timeout(self._body_seconds_max):
                return await _read_body(headers, receive)
        except TimeoutError:
            raise Invalid(
                f"the body was not there after {self._body_seconds_max:g} s", kind="body-too-slow"
            ) from None

    def _check_host(self, headers: Headers) -> None:
        host = headers.get("host", "")
        if _without_port(host) not in self._hosts:
            raise Denied(
                f"this server does not answer for the host {host[:100]!r}",
                kind="host-not-allowed",
                hint="address it as 127.0.0.1, [::1] or localhost",
            )


def _without_port(host: str) -> str:
    """Return the name of a Host header; brackets of an IPv6 address stay."""
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdigit() else host.lower()


def _check_path(path: str) -> None:
    """Raise NotFound for a path with a NUL, which no name holds and PostgreSQL takes in no text."""
    if "\0" in path:
        raise NotFound("there is nothing at a path with a NUL", kind="path-unknown")


def _check_origin(method: str, headers: Headers) -> None:
    """Refuse what a page of another origin sends; programs send none of these headers."""
    if method in _SAFE:
        return
    origin = headers.get("origin")
    site = headers.get("sec-fetch-site")
    same = origin is None or origin == f"http://{headers.get('host', '')}"
    if not same or (site is not None and site not in _FETCH_SITES_ALLOWED):
        raise Denied(
            "this request comes from a page of another origin",
            kind="origin-not-allowed",
            hint="only programs and this server's own pages may change anything",
        )


async def _read_body(headers: Headers, receive: Receive) -> bytes:
    """Return the whole body. Raises Invalid, kind `body-too-large`."""
    declared = headers.get("content-length", "")
    if declared.isdigit() and int(declared) > BODY_BYTES_MAX:
        _refuse_size()
    parts = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        parts += message.get("body", b"")
        if len(parts) > BODY_BYTES_MAX:
            _refuse_size()
        more = message.get("more_body", False)
    return bytes(parts)


def _refuse_size() -> NoReturn:
    raise Invalid(f"the body is larger than {BODY_BYTES_MAX} bytes", kind="body-too-large")


def _check_json(headers: Headers, body: bytes) -> None:
    """Raise Invalid for a body that is not JSON, or not said to be.

    A form, which a page may post anywhere without being asked, is not said to be.
    """
    if not body:
        return
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Invalid(
            f"the body is {media_type[:100] or 'of no declared type'}, not application/json",
            kind="body-not-json",
            hint="send the header Content-Type: application/json",
        )
    try:
        json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise Invalid(f"the body is not UTF-8: {error.reason}", kind="malformed-json") from None
    except ValueError as error:
        raise Invalid(f"the body is not JSON: {error}", kind="malformed-json") from None
    except RecursionError:
        raise Invalid("the body is nested too deeply", kind="malformed-json") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _cut_body(body: bytes, send: Send) -> tuple[Receive, Send]:
    """Return what gives the body and takes the answer, of which only the head goes out.

    Whoever answers without end, as events do, is told then that the client went away.
    """
    begun = asyncio.Event()

    async def receive_end() -> Message:
        await begun.wait()
        return {"type": "http.disconnect"}

    async def send_head(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body", "body": b""})
            begun.set()

    return _replay(body, receive_end), send_head


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return what gives the body once, then whatever else comes: the disconnect."""
    pending = True

    async def replay() -> Message:
        nonlocal pending
        if pending:
            pending = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay
