"""Our NBD client against servers that lie."""

import contextlib
import socket
import ssl
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sendense.core.errors import (
    Denied,
    Invalid,
    NoSpace,
    ProtocolError,
    SendenseError,
    Unavailable,
)
from sendense.core.extent import Extent
from sendense.nbd import protocol as p
from sendense.nbd.address import Address
from sendense.nbd.client import Client, list_exports

SIZE = 1 << 20
WAIT_SECONDS = 10.0


def option_reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, option, kind, len(data)) + data


WELCOME = p.GREETING + p.U16.pack(3)
STRUCTURED = option_reply(p.OPT_STRUCTURED_REPLY, p.REP_ACK)
META = option_reply(p.OPT_SET_META, p.REP_META_CONTEXT, p.U32.pack(1) + p.ALLOCATION.encode())
META += option_reply(p.OPT_SET_META, p.REP_ACK)


def go(*, size: int = SIZE, flags: int = p.EXPORT_HAS_FLAGS) -> bytes:
    info = p.EXPORT_INFO.pack(p.INFO_EXPORT, size, flags)
    return option_reply(p.OPT_GO, p.REP_INFO, info) + option_reply(p.OPT_GO, p.REP_ACK)


def block_sizes(least: int, preferred: int, most: int) -> bytes:
    sizes = p.BLOCK_SIZE_INFO.pack(p.INFO_BLOCK_SIZE, least, preferred, most)
    return option_reply(p.OPT_GO, p.REP_INFO, sizes)


OPENED = WELCOME + STRUCTURED + META + go()
WRITES = p.EXPORT_HAS_FLAGS | p.EXPORT_FLUSH | p.EXPORT_WRITE_ZEROES
WRITABLE = WELCOME + STRUCTURED + META + go(flags=WRITES)
UNSTRUCTURED = WELCOME + option_reply(p.OPT_STRUCTURED_REPLY, p.REP_ERR_UNSUPPORTED) + go()


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
        WELCOME + STRUCTURED + META + go(size=1 << 63),
        WELCOME + STRUCTURED + META + block_sizes(0, 4096, SIZE) + go(),
        WELCOME + STRUCTURED + META + block_sizes(3, 4096, SIZE) + go(),
        WELCOME + STRUCTURED + META + block_sizes(2 << 20, 2 << 20, 4 << 20) + go(),
        WELCOME + STRUCTURED + META + block_sizes(4096, 4096, 512) + go(),
        # The name is longer than the connection's whole text.
        WELCOME + STRUCTURED + META + option_reply(p.OPT_GO, p.REP_ERR_INVALID, b"no"),
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
    opened = WELCOME + STRUCTURED + META + block_sizes(4096, 4096, SIZE) + go()
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


def test_the_largest_disk_of_the_protocol_is_read_at_its_end(tmp_path: Path) -> None:
    size = (1 << 63) - 1
    opened = WELCOME + STRUCTURED + META + block_sizes(512, 4096, SIZE) + go(size=size)
    answer = data(size - 511, b"e" * 511)
    with (
        saying(tmp_path, opened + answer) as address,
        Client.connect(address, contexts=[p.ALLOCATION]) as client,
    ):
        assert client.read(size - 10, 10) == b"e" * 10
        for offset, length in ((size, 1), (size - 10, 11), (1 << 64, 1), (-1, 1), (0, 0)):
            with pytest.raises(Invalid) as caught:
                client.read(offset, length)
            assert caught.value.kind == "nbd-out-of-range"


def test_extents_behind_the_disk_are_cut_off(tmp_path: Path) -> None:
    told = p.STATUS.pack(512, 0) + p.STATUS.pack(0xFFFFFFFF, 3) + p.STATUS.pack(512, 0)
    with (
        saying(tmp_path, OPENED + chunk(p.CHUNK_BLOCK_STATUS, p.U32.pack(1) + told)) as address,
        Client.connect(address, contexts=[p.ALLOCATION]) as client,
    ):
        assert list(client.list_allocated()) == [
            Extent(0, 512),
            Extent(512, SIZE - 512, zero=True),
        ]


def failure(code: int, text: bytes = b"", *, done: bool = True) -> bytes:
    payload = p.U32.pack(code) + p.U16.pack(len(text)) + text
    return chunk(p.CHUNK_ERROR | 1, payload, done=done)


def simple(code: int, *, cookie: int = 1) -> bytes:
    return p.REPLY_HEAD.pack(p.SIMPLE_REPLY_MAGIC) + p.SIMPLE_REPLY.pack(code, cookie)


def read(client: Client) -> object:
    return client.read(0, 512)


def write(client: Client) -> None:
    client.write(0, b"x" * 512)


def list_extents(client: Client) -> object:
    return list(client.list_allocated())


@pytest.mark.parametrize(
    ("answer", "use", "raised", "kind"),
    [
        (OPENED + failure(p.ERROR_IO, b"bad sector"), read, Unavailable, "nbd-read-error"),
        (OPENED + failure(p.ERROR_PERM), read, Denied, "nbd-read-only"),
        # The first of two errors counts, and no data of an answer that holds an error.
        (
            OPENED + failure(p.ERROR_IO, done=False) + data(0, b"x" * 512),
            *(read, Unavailable, "nbd-read-error"),
        ),
        (
            OPENED + failure(p.ERROR_PERM, done=False) + failure(p.ERROR_IO),
            *(read, Denied, "nbd-read-only"),
        ),
        (UNSTRUCTURED + simple(p.ERROR_IO), read, Unavailable, "nbd-read-error"),
        (OPENED + failure(p.ERROR_IO), list_extents, Unavailable, "nbd-read-error"),
        (WRITABLE + failure(p.ERROR_NO_SPACE), write, NoSpace, "no-space"),
        (WRITABLE + simple(p.ERROR_NO_SPACE), write, NoSpace, "no-space"),
        (WRITABLE + simple(0, cookie=7), write, ProtocolError, "nbd-protocol"),
        (WRITABLE + chunk(p.CHUNK_NONE, cookie=7), write, ProtocolError, "nbd-protocol"),
        (WRITABLE + b"x" * 64, write, ProtocolError, "nbd-protocol"),
        (
            WRITABLE + chunk(p.CHUNK_NONE, done=False) * ((1 << 16) + 1),
            *(write, ProtocolError, "nbd-protocol"),
        ),
        (
            WRITABLE + failure(p.ERROR_IO, done=False) + chunk(p.CHUNK_NONE),
            *(write, Unavailable, "nbd-read-error"),
        ),
    ],
)
def test_an_error_is_told_by_what_the_caller_should_do(
    tmp_path: Path,
    answer: bytes,
    use: Callable[[Client], object],
    raised: type[SendenseError],
    kind: str,
) -> None:
    error = attempt(tmp_path, answer, use)
    assert isinstance(error, raised)
    assert error.kind == kind


def test_an_answer_in_chunks_to_a_write_is_as_good_as_a_simple_one(tmp_path: Path) -> None:
    with (
        saying(tmp_path, WRITABLE + chunk(p.CHUNK_NONE, done=False) + chunk(p.CHUNK_NONE)) as it,
        Client.connect(it, contexts=[p.ALLOCATION]) as client,
    ):
        client.write(0, b"x" * 512)
        assert not client.can_multi_conn
        for offset, length in ((SIZE, 512), (0, SIZE + 1), (0, 0)):
            with pytest.raises(Invalid) as outside:
                client.zero(offset, length)
            assert outside.value.kind == "nbd-out-of-range"
        with pytest.raises(Invalid) as unable:
            client.trim(0, 512)
        assert unable.value.kind == "nbd-unable"


def test_a_server_that_cannot_flush_is_not_asked_to(tmp_path: Path) -> None:
    with (
        saying(tmp_path, UNSTRUCTURED) as address,
        Client.connect(address, contexts=[p.ALLOCATION]) as client,
    ):
        client.flush()
        assert client.contexts == frozenset()
        assert list(client.list_allocated()) == [Extent(0, SIZE)]


def test_an_empty_export_without_extents_has_none(tmp_path: Path) -> None:
    empty = WELCOME + option_reply(p.OPT_STRUCTURED_REPLY, p.REP_ERR_UNSUPPORTED) + go(size=0)
    with saying(tmp_path, empty) as address, Client.connect(address) as client:
        assert list(client.list_allocated()) == []


def test_what_a_server_tells_besides_is_passed_over(tmp_path: Path) -> None:
    besides = option_reply(p.OPT_GO, p.REP_INFO, p.U16.pack(p.INFO_BLOCK_SIZE) + b"short")
    besides += option_reply(p.OPT_GO, p.REP_INFO, b"x") + option_reply(p.OPT_GO, 77, b"news")
    with (
        saying(tmp_path, WELCOME + STRUCTURED + META + besides + go()) as address,
        Client.connect(address, contexts=[p.ALLOCATION]) as client,
    ):
        assert (client.size_bytes, client.block_size_max) == (SIZE, 32 << 20)


@pytest.mark.parametrize(
    ("answer", "raised"),
    [
        (option_reply(p.OPT_LIST, p.REP_ERR_POLICY, b"not you"), Denied),
        (option_reply(p.OPT_LIST, p.REP_ERR_UNSUPPORTED), ProtocolError),
        (option_reply(p.OPT_LIST, p.REP_SERVER, b"xx"), ProtocolError),
        (option_reply(p.OPT_LIST, p.REP_SERVER, p.U32.pack(9) + b"short"), ProtocolError),
    ],
)
def test_a_list_of_exports_that_is_none_is_an_error(
    tmp_path: Path, answer: bytes, raised: type[SendenseError]
) -> None:
    end = option_reply(p.OPT_LIST, p.REP_ACK)
    with saying(tmp_path, WELCOME + answer + end) as address, pytest.raises(raised):
        list_exports(address, timeout_seconds=WAIT_SECONDS)


def test_what_is_besides_names_in_a_list_of_exports_is_passed_over(tmp_path: Path) -> None:
    named = option_reply(p.OPT_LIST, p.REP_SERVER, p.U32.pack(1) + b"a and why")
    answer = option_reply(p.OPT_LIST, 77) + named + option_reply(p.OPT_LIST, p.REP_ACK)
    with saying(tmp_path, WELCOME + answer) as address:
        assert list_exports(address) == ["a"]


@settings(max_examples=60)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(WRITABLE) + 600), st.binary(min_size=1, max_size=9)),
        min_size=1,
        max_size=4,
    ),
    length=st.integers(0, len(WRITABLE) + 600),
)
def test_whatever_comes_is_data_or_an_error_of_ours(
    edits: list[tuple[int, bytes]], length: int
) -> None:
    message = bytearray(WRITABLE + data(0, b"x" * 512) + simple(0, cookie=2))
    for offset, content in edits:
        message[offset : offset + len(content)] = content
    with tempfile.TemporaryDirectory() as name, saying(Path(name), bytes(message[:length])) as at:
        try:
            with Client.connect(at, contexts=[p.ALLOCATION], timeout_seconds=30) as client:
                assert len(client.read(0, 512)) == 512
                client.write(0, b"x" * 512)
        except SendenseError:
            pass


# Servers that stall.


@contextmanager
def talking(
    folder: Path, talk: Callable[[socket.socket], object], *, opening: bytes = OPENED
) -> Iterator[Address]:
    """Run a server that opens an export for the first client, and then talks as it likes."""
    path = str(folder / "talker.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        listener.settimeout(WAIT_SECONDS)

        def serve() -> None:
            connected, _ = listener.accept()
            with connected, contextlib.suppress(OSError):
                connected.settimeout(WAIT_SECONDS)
                connected.sendall(opening)
                talk(connected)

        server = threading.Thread(target=serve)
        server.start()
        try:
            yield Address(socket_path=path)
        finally:
            server.join(3 * WAIT_SECONDS)
            assert not server.is_alive()


def trickle(connected: socket.socket) -> None:
    answer = data(0, b"x" * 512)
    for byte in answer[:100]:
        time.sleep(0.02)  # the pace of a server that is alive, but hardly
        connected.sendall(bytes([byte]))
    connected.sendall(answer[100:])
    connected.recv(1)


def test_a_slow_server_that_goes_on_is_waited_for(tmp_path: Path) -> None:
    with (
        talking(tmp_path, trickle) as address,
        Client.connect(address, contexts=[p.ALLOCATION], timeout_seconds=5) as client,
    ):
        assert client.read(0, 512) == b"x" * 512


def test_a_server_that_trickles_is_given_up_after_some_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sendense.nbd.connection.ANSWER_PATIENCE", 0.2)
    with (
        talking(tmp_path, trickle) as address,
        Client.connect(address, contexts=[p.ALLOCATION], timeout_seconds=5) as client,
        pytest.raises(Unavailable, match="does not answer any more"),
    ):
        client.read(0, 512)


def test_a_server_that_stops_to_take_what_is_sent_is_given_up(tmp_path: Path) -> None:
    done = threading.Event()
    with (
        talking(tmp_path, lambda _: done.wait(WAIT_SECONDS)) as address,
        Client.connect(address, contexts=[p.ALLOCATION], timeout_seconds=1.5) as client,
    ):
        with pytest.raises(Unavailable) as caught:
            client.write(0, bytes(SIZE))  # no socket's buffers hold all of it
        done.set()
    assert caught.value.kind == "nbd-lost"


@pytest.mark.parametrize("length", [0, 10, 300, 520])
def test_a_connection_reset_in_the_middle_is_an_error_to_try_again(length: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(WAIT_SECONDS)

        def reset() -> None:
            connected, _ = listener.accept()
            with connected:
                connected.settimeout(WAIT_SECONDS)
                connected.sendall(OPENED + data(0, b"x" * 512)[:length])
                connected.recv(1, socket.MSG_PEEK)  # unread bytes make a reset of the closing

        server = threading.Thread(target=reset)
        server.start()
        address = Address(host="127.0.0.1", port=listener.getsockname()[1])
        with (
            pytest.raises(Unavailable) as caught,
            Client.connect(address, contexts=[p.ALLOCATION], timeout_seconds=WAIT_SECONDS) as one,
        ):
            one.read(0, 512)
        server.join(WAIT_SECONDS)
    assert caught.value.kind == "nbd-lost"


@pytest.mark.parametrize("host", ["a..b", "a" * 64, "no-such-host.invalid"])
def test_a_name_that_is_no_host_s_is_an_error_of_ours(host: str) -> None:
    with pytest.raises(Unavailable) as caught:
        Client.connect(Address(host=host), timeout_seconds=WAIT_SECONDS)
    assert caught.value.kind == "nbd-unreachable"


STARTED_TLS = WELCOME + option_reply(p.OPT_STARTTLS, p.REP_ACK)


@pytest.mark.parametrize(
    ("answer", "raised", "kind"),
    [
        (
            WELCOME + option_reply(p.OPT_STARTTLS, p.REP_ERR_UNSUPPORTED),
            ProtocolError,
            "nbd-refused",
        ),
        (WELCOME + option_reply(p.OPT_STARTTLS, p.REP_ERR_POLICY), Denied, "nbd-denied"),
        (STARTED_TLS, Unavailable, "nbd-lost"),
        (STARTED_TLS + b"this is no TLS" * 100, Denied, "nbd-tls"),
    ],
)
def test_a_connection_that_cannot_be_encrypted_is_not_used(
    tmp_path: Path, answer: bytes, raised: type[SendenseError], kind: str
) -> None:
    tls = ssl.create_default_context()
    tls.check_hostname = False
    with saying(tmp_path, answer) as address, pytest.raises(raised) as caught:
        Client.connect(address, tls=tls, timeout_seconds=WAIT_SECONDS)
    assert caught.value.kind == kind


def test_a_server_silent_while_encryption_starts_is_given_up(tmp_path: Path) -> None:
    tls = ssl.create_default_context()
    tls.check_hostname = False
    done = threading.Event()

    def hush(connected: socket.socket) -> None:
        connected.recv(1 << 16)
        done.wait(WAIT_SECONDS)

    with talking(tmp_path, hush, opening=STARTED_TLS) as address:
        with pytest.raises(Unavailable) as caught:
            Client.connect(address, tls=tls, timeout_seconds=1.0)
        done.set()
    assert caught.value.kind == "nbd-lost"


def test_a_socket_that_is_not_there_is_a_server_that_cannot_be_reached(tmp_path: Path) -> None:
    for name in ("missing.sock", "x" * 200):
        with pytest.raises(Unavailable) as caught:
            Client.connect(Address(socket_path=str(tmp_path / name)))
        assert caught.value.kind == "nbd-unreachable"


def test_closing_while_nobody_waits_is_told_by_the_next_call(tmp_path: Path) -> None:
    with saying(tmp_path, WRITABLE) as address:
        client = Client.connect(address, contexts=[p.ALLOCATION])
        client.close()
        client.close()
        for use in (read, write, list_extents, Client.flush):
            with pytest.raises(Unavailable) as caught:
                use(client)
            assert caught.value.kind == "nbd-closed"


def test_the_liar_is_believed_when_it_tells_the_truth(tmp_path: Path) -> None:
    halves = data(256, b"b" * 256, done=False) + data(0, b"a" * 256)
    with (
        saying(tmp_path, OPENED + halves) as address,
        Client.connect(address, contexts=[p.ALLOCATION]) as client,
    ):
        assert client.read(0, 512) == b"a" * 256 + b"b" * 256
