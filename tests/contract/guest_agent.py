"""A guest agent without a guest: it answers, and remembers whether its file systems are frozen."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FILE_SYSTEMS = 2
WAIT_SECONDS = 30.0


class GuestAgent:
    """What the agent's socket shows of a guest."""

    def __init__(self) -> None:
        self.frozen = 0
        self.freezes = 0

    def answer(self, request: dict[str, Any]) -> Any:
        command = request["execute"]
        if command == "guest-sync-delimited":
            return request["arguments"]["id"]
        if command == "guest-fsfreeze-freeze":
            self.frozen, self.freezes = FILE_SYSTEMS, self.freezes + 1
            return FILE_SYSTEMS
        assert command == "guest-fsfreeze-thaw", command
        before, self.frozen = self.frozen, 0
        return before


@contextmanager
def serve(path: Path) -> Iterator[GuestAgent]:
    """Answer at a socket, one client after the other, as QEMU's character device does."""
    agent = GuestAgent()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer_all() -> None:
            while True:
                try:
                    connected, _ = listener.accept()
                except OSError:
                    return  # closed
                with connected, contextlib.suppress(OSError):
                    connected.settimeout(WAIT_SECONDS)
                    _talk(connected, agent)

        server = threading.Thread(target=answer_all, daemon=True)
        server.start()
        try:
            yield agent
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            server.join(2 * WAIT_SECONDS)


def _talk(connected: socket.socket, agent: GuestAgent) -> None:
    with connected.makefile("rb") as lines:
        for line in lines:
            reply = agent.answer(json.loads(line.lstrip(b"\xff")))
            mark = b"\xff" if b"guest-sync-delimited" in line else b""
            connected.sendall(mark + json.dumps({"return": reply}).encode() + b"\n")
