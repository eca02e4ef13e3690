"""Our NBD client against servers that lie."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sendense.core.errors import ProtocolError, SendenseError, Unavailable
from sendense.nbd import protocol as p
from sendense.nbd.address import Address
from sendense.nbd.client import Client

SIZE = 1 << 20
WAIT_SECONDS = 10.0


def option_reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, option, kind, len(data)) + data


WELCOME = p.GREETING + p.U16.pack(3)
STRUCTURED = option_reply(p.OPT_STRUCTURED_REPLY, p.REP_ACK)
META = option_reply(p.OPT_SET_META, p.REP_META_CONTEXT, p.U32.pack(1) + p.ALLOCATION.encode())
META += option_reply(p.OPT_SET_META, p.REP_ACK)
INFO = p.EXPORT_INFO.pack(p.INFO_EXPORT, SIZE, p.EXPORT_HAS_FLAGS)
GO = option_reply(p.OPT_GO, p.REP_INFO, INFO) + option_reply(p.OPT_GO, p.REP_ACK)
OPENED = WELCOME + STRUCTURED + META + GO


def chunk(kind: int, payload: bytes = b"", *, cookie: int = 1, done: bool = True) -> bytes:
    head = p.REPLY_HEAD.pack(p.CHUNK_MAGIC) + p.CHUNK.pack(int(done), kind, cookie, len(payload))
    return head + payload


def data(offset: int, content: bytes, *, cookie: int = 1, done: bool = True) -> bytes:
    return chunk(p.CHUNK_OFFSET_DATA, p.U64.pack(offset) + content, cookie=cookie, done=done)


@contextmanager
def saying(folder: Path, message: bytes) -> Iterator[Address]:
    """Run a server that says one thing to everybody, whatever it is asked, and hangs up."""
    path = str(folder / "liar.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        listener.settimeout(WAIT_SECONDS)

        def talk() -> None:
            connected, _ = listener.accept()
            with connected:
                connected.settimeout(WAIT_SECONDS)
                try:
                    connected.sendall(message)
                    connected.shutdown(socket.SHUT_WR)
                    while connected.recv(65536):
                        pass
                except OSError:
                    pass  # the client hung up first

        liar = threading.Thread(target=talk)
        liar.start()
        try:
            yield Address(socket_path=path)
        finally:
            liar.join(WAIT_SECONDS)


def attempt(folder: Path, message: bytes, use: Callable[[Client], object]) -> SendenseError:
    with (
        saying(folder, message) as address,
        pytest.raises(SendenseError) as caught,
        Client.connect(address, contexts=[p.ALLOCATION], timeout_seconds=WAIT_SECONDS) as client,
    ):
        use(client)
    return caught.value


@pytest.mark.parametrize(
    "message",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        p.GREETING + p.U16.pack(0),
        WELCOME + b"x" * 64,
        WELCOME + option_reply(p.OPT_LIST, p.REP_ACK),
        WELCOME + p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, p.OPT_STRUCTURED_REPLY, 1, 1 << 31),
        WELCOME
        + STRUCTURED
        + option_reply(p.OPT_SET_META, p.REP_META_CONTEXT, b"x")
        + option_reply(p.OPT_SET_META, p.REP_ACK),
        WELCOME + STRUCTURED + META + option_reply(p.OPT_GO, p.REP_ACK),
        WELCOME + option_reply(p.OPT_STRUCTURED_REPLY, p.REP_INFO) * 10_001,
    ],
)
def test_lies_while_negotiating_end_the_connection(tmp_path: Path, message: bytes) -> None:
    assert isinstance(attempt(tmp_path, message, lambda _: None), ProtocolError)


@pytest.mark.parametrize(
    "answer",
    [
        b"x" * 64,
        data(0, b"x" * 512, cookie=99),
        data(512, b"x" * 512),
        data(0, b"x" * 513),
        data((1 << 64) - 512, b"x" * 512),
        data(0, b"x" * 256),
        data(0, b"x" * 512, done=False) + data(0, b"x" * 512),
        data(0, b"x" * 512, done=False) + chunk(p.CHUNK_OFFSET_HOLE, p.HOLE.pack(0, 512)),
        # As many bytes as were asked for, but some of them twice and others never.
        data(0, b"x" * 256, done=False) + data(0, b"y" * 256),
        data(0, b"x" * 256, done=False) + data(128, b"y" * 256),
        data(256, b"x" * 256, done=False) + chunk(p.CHUNK_OFFSET_HOLE, p.HOLE.pack(256, 256)),
        chunk(p.CHUNK_OFFSET_HOLE, p.HOLE.pack(0, 1 << 31)),
        chunk(p.CHUNK_OFFSET_HOLE, b"x"),
        chunk(p.CHUNK_OFFSET_DATA),
        chunk(p.CHUNK_NONE),
        chunk(p.CHUNK_BLOCK_STATUS, bytes(12)),
        chunk(p.CHUNK_ERROR | 1, b"x"),
        chunk(p.CHUNK_NONE, done=False) * ((1 << 16) + 1),
        struct.pack(">IHHQI", p.CHUNK_MAGIC, 1, p.CHUNK_OFFSET_DATA, 1, 0xFFFFFFFF),
        p.REPLY_HEAD.pack(p.SIMPLE_REPLY_MAGIC) + p.SIMPLE_REPLY.pack(0, 1) + b"x" * 512,
    ],
)
def test_lies_about_a_read_are_never_taken_for_data(tmp_path: Path, answer: bytes) -> None:
    error = attempt(tmp_path, OPENED + answer, lambda client: client.read(0, 512))
    assert isinstance(error, ProtocolError)


@pytest.mark.parametrize(
    "answer",
    [
        chunk(p.CHUNK_BLOCK_STATUS, p.U32.pack(1)),
        chunk(p.CHUNK_BLOCK_STATUS, p.U32.pack(1) + p.STATUS.pack(0, 0)),
        chunk(p.CHUNK_BLOCK_STATUS, p.U32.pack(1) + b"x" * 9),
        chunk(p.CHUNK_BLOCK_STATUS, p.U32.pack(7) + p.STATUS.pack(SIZE, 3)),
        chunk(p.CHUNK_BLOCK_STATUS, p.U32.pack(1) + p.STATUS.pack(SIZE, 0), done=False)
        + chunk(p.CHUNK_BLOCK_STATUS, p.U32.pack(1) + p.STATUS.pack(SIZE, 3)),
        chunk(p.CHUNK_NONE),
        chunk(p.CHUNK_NONE, done=False) * ((1 << 16) + 1),
        struct.pack(">IHHQI", p.CHUNK_MAGIC, 1, p.CHUNK_BLOCK_STATUS, 1, 0xFFFFFFFF),
    ],
)
def test_lies_about_extents_are_never_believed(tmp_path: Path, answer: bytes) -> None:
    error = attempt(tmp_path, OPENED + answer, lambda client: list(client.list_allocated()))
    assert isinstance(error, ProtocolError)


def test_a_server_that_never_comes_to_the_point_is_not_asked_for_ever(tmp_path: Path) -> None:
    sizes = p.BLOCK_SIZE_INFO.pack(p.INFO_BLOCK_SIZE, 4096, 4096, SIZE)
    opened = WELCOME + STRUCTURED + META + option_reply(p.OPT_GO, p.REP_INFO, sizes) + GO
    short = chunk(p.CHUNK_BLOCK_STATUS, p.U32.pack(1) + p.STATUS.pack(512, 0))

    def list_from_within_a_block(client: Client) -> object:
        return list(client.list_extents(p.ALLOCATION, start=1024))

    error = attempt(tmp_path, opened + short, list_from_within_a_block)
    assert isinstance(error, ProtocolError)


@pytest.mark.parametrize("length", [0, 10, 17, 40, len(OPENED) - 1, len(OPENED), len(OPENED) + 30])
def test_a_connection_cut_anywhere_is_an_error_to_try_again(tmp_path: Path, length: int) -> None:
    message = (OPENED + data(0, b"x" * 512))[:length]
    error = attempt(tmp_path, message, lambda client: client.read(0, 512))
    assert isinstance(error, Unavailable)


def test_the_liar_is_believed_when_it_tells_the_truth(tmp_path: Path) -> None:
    halves = data(256, b"b" * 256, done=False) + data(0, b"a" * 256)
    with (
        saying(tmp_path, OPENED + halves) as address,
        Client.connect(address, contexts=[p.ALLOCATION]) as client,
    ):
        assert client.read(0, 512) == b"a" * 256 + b"b" * 256
