"""The guest agent: synchronise, freeze and thaw, each with a time limit.

The socket carries JSON lines without a greeting, and replies to requests of an earlier client may
still lie in it. Each session therefore begins with `guest-sync-delimited` and a fresh id, and skips
everything up to the reply with that id (QEMU's docs/interop/qemu-ga-ref, "guest-sync-delimited").
"""

import json
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sendense.core.clock import Clock, SystemClock
from sendense.core.errors import Unavailable
from sendense.core.ids import IdSource, SystemIds

SYNC_SECONDS_MAX = 5.0  # an agent that is alive answers in milliseconds
FREEZE_SECONDS_MAX = 20.0  # the guest writes out its dirty pages first
THAW_SECONDS_MAX = 30.0  # longer than a freeze: it may be queued behind one
REPLY_BYTES_MAX = 1 << 20  # nothing that we ask for is larger; a guest is not trusted
_SENTINEL = b"\xff"  # resets the agent's parser, and precedes its answer to the synchronisation


class AgentSilent(Unavailable):
    """The guest agent is not there, or did not answer in time."""

    default_kind = "guest-agent-silent"


class AgentRefused(Unavailable):
    """The guest agent answered with an error."""

    default_kind = "guest-agent-refused"


class Agent:
    """A session with a guest's agent. The constructor returns only when the agent answers.

    Raises AgentSilent; must not be used while the VM is paused.
    """

    def __init__(
        self,
        path: Path,
        *,
        seconds_max: float = SYNC_SECONDS_MAX,
        clock: Clock | None = None,
        ids: IdSource | None = None,
    ) -> None:
        self._path = path
        self._clock = clock or SystemClock()
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(seconds_max)
            self._socket.connect(str(path))
            self._synchronise(ids or SystemIds(), seconds_max)
        except OSError as error:
            self.close()
            raise AgentSilent(f"the guest agent at {path} cannot be reached: {error}") from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def freeze(self, *, seconds_max: float = FREEZE_SECONDS_MAX) -> int:
        """Freeze the guest's file systems and return how many.

        Where this raises, the guest may be frozen in part or freeze later: thaw it.
        """
        return int(self.execute("guest-fsfreeze-freeze", seconds_max=seconds_max))

    def thaw(self, *, seconds_max: float = THAW_SECONDS_MAX) -> int:
        """Thaw whatever is frozen and return how many file systems were."""
        return int(self.execute("guest-fsfreeze-thaw", seconds_max=seconds_max))

    def execute(
        self, command: str, arguments: dict[str, Any] | None = None, *, seconds_max: float
    ) -> Any:
        """Run one command of the agent and return what it returned."""
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        deadline = self._clock.monotonic() + seconds_max
        try:
            self._socket.settimeout(seconds_max)
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            reply = self._parse(self._receive_line(deadline))
        except OSError as error:
            raise AgentSilent(
                f"the guest agent at {self._path} did not answer {command}"
            ) from error
        if "return" in reply:
            return reply["return"]
        description = reply.get("error", {}).get("desc", "no reason given")
        raise AgentRefused(f"the guest agent refused {command}: {str(description)[:200]}")

    def close(self) -> None:
        """Close the connection; what is frozen stays frozen."""
        self._socket.close()

    def _synchronise(self, ids: IdSource, seconds_max: float) -> None:
        # A fresh id each time: the answer to an earlier client's request must not pass for ours.
        token = int.from_bytes(ids.random_bytes(4)) & 0x7FFFFFFF
        request = {"execute": "guest-sync-delimited", "arguments": {"id": token}}
        deadline = self._clock.monotonic() + seconds_max
        self._socket.sendall(_SENTINEL + json.dumps(request).encode() + b"\n")
        while True:
            line = self._receive_line(deadline)
            if self._parse(line.rpartition(_SENTINEL)[2]).get("return") == token:
                return

    def _receive_line(self, deadline: float) -> bytes:
        while b"\n" not in self._buffer:
            seconds_left = deadline - self._clock.monotonic()
            if seconds_left <= 0:
                raise TimeoutError
            self._socket.settimeout(seconds_left)
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionResetError("the agent's channel was closed")
            self._buffer += data
            if len(self._buffer) > REPLY_BYTES_MAX:
                raise AgentSilent(f"the guest agent at {self._path} answers without an end")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    @staticmethod
    def _parse(line: bytes) -> dict[str, Any]:
        try:
            reply = json.loads(line)
        except ValueError:
            return {}  # rubbish of an earlier session
        return reply if isinstance(reply, dict) else {}
