"""The QMP client against scripted servers: time limits and errors, one by one."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from sendense.connectors.qemu.qmp import CommandFailed, Qmp
from sendense.core.errors import Denied, Unavailable

GREETING = {
    "QMP": {
        "version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""},
        "capabilities": [],
    }
}
Answer = Callable[[dict[str, Any]], dict[str, Any] | None]


def read_commands(connection: socket.socket) -> Iterator[dict[str, Any]]:
    """Yield what a client sends: objects in a row, with nothing between them."""
    text = ""
    while data := connection.recv(65536):
        text += data.decode()
        while text:
            try:
                command, end = json.JSONDecoder().raw_decode(text)
            except ValueError:
                break
            text = text[end:].lstrip()
            yield command


@contextmanager
def scripted(path: Path, answer: Answer, *, greets: bool = True) -> Iterator[None]:
    """Serve one client; a script answers each command, and None ends the connection."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                if greets:
                    connection.sendall(json.dumps(GREETING).encode() + b"\r\n")
                for command in read_commands(connection):
                    reply: dict[str, Any] | None = {"return": {}}
                    if command["execute"] != "qmp_capabilities":
                        reply = answer(command)
                    if reply is None:
                        return
                    if reply:
                        reply |= {"id": command["id"]} if "id" in command else {}
                        connection.sendall(json.dumps(reply).encode() + b"\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_underscores_in_arguments_become_hyphens(tmp_path: Path) -> None:
    with (
        scripted(tmp_path / "q", lambda command: {"return": command["arguments"]}),
        Qmp(tmp_path / "q") as qmp,
    ):
        assert qmp.execute("x", node_name="a") == {"node-name": "a"}


def test_a_refused_command_carries_qemus_words(tmp_path: Path) -> None:
    error = {"error": {"class": "GenericError", "desc": "Node 'x' is busy"}}
    with (
        scripted(tmp_path / "q", lambda _: dict(error)),
        Qmp(tmp_path / "q") as qmp,
        pytest.raises(CommandFailed) as caught,
    ):
        qmp.execute("blockdev-del")
    assert caught.value.description == "Node 'x' is busy"
    assert caught.value.fields["command"] == "blockdev-del"


def test_a_command_without_an_answer_ends_at_its_limit(tmp_path: Path) -> None:
    with (
        scripted(tmp_path / "q", lambda _: {}),
        Qmp(tmp_path / "q") as qmp,
        pytest.raises(Unavailable) as caught,
    ):
        qmp.execute("stop", seconds_max=0.1)
    assert caught.value.kind == "qmp-silent"


def test_a_qemu_that_dies_is_noticed(tmp_path: Path) -> None:
    with (
        scripted(tmp_path / "q", lambda _: None),
        Qmp(tmp_path / "q") as qmp,
        pytest.raises(Unavailable) as caught,
    ):
        qmp.execute("stop")
    assert caught.value.kind == "qmp-lost"


def test_a_socket_that_somebody_else_holds_is_busy(tmp_path: Path) -> None:
    with (
        scripted(tmp_path / "q", lambda _: None, greets=False),
        pytest.raises(Unavailable) as caught,
    ):
        Qmp(tmp_path / "q", connect_seconds_max=0.1)
    assert caught.value.kind == "qmp-busy"


def test_a_socket_with_no_place_left_to_wait_is_busy(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, ExitStack() as waiting:
        server.bind(str(tmp_path / "q"))
        server.listen(0)
        first = waiting.enter_context(socket.socket(socket.AF_UNIX))
        first.connect(str(tmp_path / "q"))
        with pytest.raises(Unavailable) as caught:
            Qmp(tmp_path / "q", connect_seconds_max=30)
    assert caught.value.kind == "qmp-busy"


def test_a_missing_or_dead_socket_is_unreachable(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    for name in ("missing", "dead"):
        with pytest.raises(Unavailable) as caught:
            Qmp(tmp_path / name)
        assert caught.value.kind == "qmp-unreachable"


def test_a_socket_of_another_user_is_denied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    # Root may open any socket, so the operating system's answer is put in its place.
    monkeypatch.setattr("asyncio.open_unix_connection", refuse)
    with pytest.raises(Denied):
        Qmp(tmp_path / "q")
