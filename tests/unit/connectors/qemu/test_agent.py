"""The agent's client against scripted agents, good and bad."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sendense.connectors.qemu.agent import REPLY_BYTES_MAX, Agent, AgentRefused, AgentSilent

Script = Callable[[dict[str, Any]], bytes]


def read_request(line: bytes) -> dict[str, Any]:
    request = json.loads(line.lstrip(b"\xff"))
    assert isinstance(request, dict)
    return request


@contextmanager
def scripted(path: Path, answer: Script) -> Iterator[list[dict[str, Any]]]:
    """Serve one client, answering each request line by a script; yields the requests seen."""
    seen: list[dict[str, Any]] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as lines:
                for line in lines:
                    request = read_request(line)
                    seen.append(request)
                    try:
                        connection.sendall(answer(request))
                    except OSError:
                        return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield seen
        thread.join(timeout=10)
        assert not thread.is_alive()


def sync_reply(request: dict[str, Any]) -> bytes:
    reply = {"return": request["arguments"]["id"]}
    return b"\xff" + json.dumps(reply).encode() + b"\n"


def test_stale_replies_are_skipped_up_to_the_fresh_id(tmp_path: Path) -> None:
    def answer(request: dict[str, Any]) -> bytes:
        if request["execute"] == "guest-sync-delimited":
            stale = b'{"return": 7}\nrubbish\n\xff{"return": 12345}\n[1]\n'
            return stale + sync_reply(request)
        return b'{"return": 3}\n'

    with scripted(tmp_path / "agent", answer), Agent(tmp_path / "agent") as agent:
        assert agent.freeze() == 3


def test_each_session_uses_a_fresh_id(tmp_path: Path) -> None:
    ids = []
    for name in ("one", "two"):
        with scripted(tmp_path / name, sync_reply) as seen:
            Agent(tmp_path / name).close()
        ids.append(seen[0]["arguments"]["id"])
    assert ids[0] != ids[1]


def test_an_agent_that_never_answers_is_silent(tmp_path: Path) -> None:
    with (
        scripted(tmp_path / "agent", lambda _: b""),
        pytest.raises(AgentSilent) as caught,
    ):
        Agent(tmp_path / "agent", seconds_max=0.1)
    assert caught.value.kind == "guest-agent-silent"


def test_an_agent_without_a_socket_is_silent(tmp_path: Path) -> None:
    with pytest.raises(AgentSilent):
        Agent(tmp_path / "missing")


def test_an_agent_that_answers_without_end_is_cut_off(tmp_path: Path) -> None:
    with (
        scripted(tmp_path / "agent", lambda _: b"x" * (REPLY_BYTES_MAX + 1)),
        pytest.raises(AgentSilent, match="without an end"),
    ):
        Agent(tmp_path / "agent")


def test_a_refusal_carries_the_agents_reason(tmp_path: Path) -> None:
    def answer(request: dict[str, Any]) -> bytes:
        if request["execute"] == "guest-sync-delimited":
            return sync_reply(request)
        return b'{"error": {"class": "GenericError", "desc": "no permission"}}\n'

    with (
        scripted(tmp_path / "agent", answer),
        Agent(tmp_path / "agent") as agent,
        pytest.raises(AgentRefused, match="no permission"),
    ):
        agent.thaw()
