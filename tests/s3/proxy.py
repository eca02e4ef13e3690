"""A server in front of an S3 server that fails as networks and stores do."""

import http.client
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

UPSTREAM_SECONDS_MAX = 30.0
HOP_HEADERS = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})


class Fault(StrEnum):
    """What happens to a request."""

    BUSY = "503"
    SLOW_DOWN = "429"
    CONFLICT = "409"  # with nothing under the name, as S3 answers while a deletion goes on
    FULL = "507"
    BROKEN = "501"
    LOST = "done, and the connection breaks before the answer"
    LATE = "the connection breaks, and it is done when the next one of its method comes"
    CUT = "the answer ends halfway"
    STALE = "a listing as it was the last time it was asked for"


_ANSWERED = {Fault.BUSY, Fault.SLOW_DOWN, Fault.CONFLICT, Fault.FULL, Fault.BROKEN}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request."""

    method: str
    path: str

    @property
    def lists(self) -> bool:
        """Whether it asks for a listing."""
        return self.method == "GET" and "list-type=2" in self.path


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes


@dataclass
class Proxy:
    """Passes requests on to a port of the loopback; `choose` says what happens to each.

    Attributes:
        happened: how often each fault struck.
    """

    port_behind: int
    choose: Callable[[Asked], Fault | None] = lambda _: None
    happened: Counter[Fault] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)
    late: dict[str, Callable[[], object]] = field(default_factory=dict)
    listings: dict[str, _Answer] = field(default_factory=dict)

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def fail(self, *faults: Fault, method: str = "") -> None:
        """Let the next requests of a method, or of any, meet these faults in turn."""
        left = list(faults)

        def choose(asked: Asked) -> Fault | None:
            return left.pop(0) if left and asked.method.startswith(method) else None

        self.choose = choose


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = UPSTREAM_SECONDS_MAX
    disable_nagle_algorithm = True
    proxy: Proxy

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        asked = Asked(self.command, self.path)
        with self.proxy.lock:
            fault = self.proxy.choose(asked)
        if fault is Fault.STALE and self.path not in self.proxy.listings:
            fault = None
        if fault is not None:
            with self.proxy.lock:
                self.proxy.happened[fault] += 1
        if fault in _ANSWERED:
            code = f"<Error><Code>{fault.name}</Code></Error>".encode()
            self._answer(_Answer(int(fault), [], code))
            return
        if fault is Fault.STALE:
            self._answer(self.proxy.listings.pop(self.path))
            return
        if late := self.proxy.late.pop(self.command, None):
            late()
        if fault is Fault.LATE:
            self.proxy.late[self.command] = lambda: self._ask(body)
            self.close_connection = True
            return
        answer = self._ask(body)
        if asked.lists:
            self.proxy.listings[self.path] = answer
        if fault is Fault.LOST:
            self.close_connection = True
            return
        self._answer(answer, is_cut=fault is Fault.CUT)

    def _ask(self, body: bytes) -> _Answer:
        behind = http.client.HTTPConnection(
            "127.0.0.1", self.proxy.port_behind, timeout=UPSTREAM_SECONDS_MAX
        )
        try:
            behind.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():  # the host's name too, which is signed
                behind.putheader(name, value)
            behind.endheaders(body)
            answer = behind.getresponse()
            headers = [one for one in answer.getheaders() if one[0].lower() not in HOP_HEADERS]
            if self.command == "HEAD":
                headers.append(("Content-Length", answer.getheader("Content-Length", "0")))
            return _Answer(answer.status, headers, answer.read())
        finally:
            behind.close()

    def _answer(self, answer: _Answer, *, is_cut: bool = False) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        if self.command != "HEAD" and answer.status not in {204, 304}:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        body = answer.body if self.command != "HEAD" else b""
        if is_cut:
            self.close_connection = True
            body = body[: len(body) // 2]
        self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass_on  # noqa: N815 - the library's names

    def log_message(self, *_: object) -> None:
        pass
