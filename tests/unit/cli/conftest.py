"""A real HTTP server that answers from a script, and the command line run against it."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from sendense.cli import main as program

PREFIX = "/api/v1"


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]


@dataclass
class Reply:
    status: int
    body: str
    content_type: str = "application/json"


@dataclass
class Hub:
    """Answers of a server: for each method and path the replies in order, the last one for ever."""

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    _replies: dict[tuple[str, str], list[Reply | None]] = field(default_factory=dict)

    def answer(self, method: str, path: str, body: Any, *, status: int = 200) -> None:
        text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
        self._replies.setdefault((method, path), []).append(Reply(status, text))

    def refuse(self, method: str, path: str, status: int, **problem: Any) -> None:
        document = {"type": "urn:sendense:problem:x", "title": "No", **problem}
        reply = Reply(status, json.dumps(document), "application/problem+json")
        self._replies.setdefault((method, path), []).append(reply)

    def hang_up(self, method: str, path: str) -> None:
        """Close the connection instead of answering."""
        self._replies.setdefault((method, path), []).append(None)

    def reply_to(self, request: Request) -> Reply | None:
        self.requests.append(request)
        replies = self._replies.get((request.method, request.path))
        if not replies:
            title = f"no {request.method} {request.path} in this test"
            return Reply(404, json.dumps({"detail": title}), "application/problem+json")
        return replies.pop(0) if len(replies) > 1 else replies[0]

    def sent(self, method: str, path: str) -> list[Request]:
        return [item for item in self.requests if (item.method, item.path) == (method, path)]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        content = self.rfile.read(int(self.headers.get("content-length") or 0))
        reply = self.hub.reply_to(
            Request(
                self.command,
                parts.path.removeprefix(PREFIX),
                dict(parse_qsl(parts.query)),
                json.loads(content) if content else None,
                {name.lower(): value for name, value in self.headers.items()},
            )
        )
        if reply is None:
            self.close_connection = True
            return
        payload = reply.body.encode()
        self.send_response(reply.status)
        self.send_header("content-type", reply.content_type)
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    do_GET = do_POST = do_PATCH = do_DELETE = _handle  # noqa: N815 - http.server looks for these

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    found = Hub()
    handler = type("Handler", (_Handler,), {"hub": found})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        found.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        server.shutdown()
        thread.join()


@dataclass
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("SENDENSE_URL", hub.url)
    monkeypatch.delenv("SENDENSE_TOKEN", raising=False)

    def call(*arguments: str) -> Result:
        with pytest.raises(SystemExit) as left:
            program.main(arguments)
        printed = capsys.readouterr()
        return Result(int(left.value.code or 0), printed.out, printed.err)

    return call
