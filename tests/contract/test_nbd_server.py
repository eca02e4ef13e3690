"""Our NBD server against the programs and the client that will read from it."""

import json
import os
import random
import resource
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from sendense.core import units
from sendense.core.errors import Denied, NoSpace, NotFound, Unavailable
from sendense.core.extent import Extent
from sendense.nbd import protocol as p
from sendense.nbd import server
from sendense.nbd.address import Address
from sendense.nbd.client import Client, list_exports
from sendense.nbd.export import Export
from sendense.nbd.server import Server

DIRTY = "qemu:dirty-bitmap:test"
BLOCK = 64 * units.KIB
WAIT_SECONDS = 20.0


class MemoryDisk:
    """A writable disk in memory that tells which of its blocks are zero, and which are dirty."""

    contexts = (p.ALLOCATION, DIRTY)

    def __init__(self, content: bytes) -> None:
        self.data = bytearray(content)
        self.dirty: set[int] = set()
        self.failure: Exception | None = None
        self.flushes = 0

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        if self.failure is not None:
            raise self.failure
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        if self.failure is not None:
            raise self.failure
        self.data[offset : offset + len(data)] = data
        self.dirty.update(range(offset // BLOCK, -(-(offset + len(data)) // BLOCK)))

    def zero(self, offset: int, length: int) -> None:
        self.write(offset, bytes(length))

    def flush(self) -> None:
        self.flushes += 1

    def list_extents(self, context: str, offset: int, length: int) -> Iterator[tuple[int, int]]:
        end = offset + length
        while offset < end:
            stop = min((offset // BLOCK + 1) * BLOCK, end)
            if context == DIRTY:
                flags = int(offset // BLOCK in self.dirty)
            else:
                flags = 0 if any(self.data[offset:stop]) else 3
            yield stop - offset, flags
            offset = stop


class ReadOnlyDisk:
    """A disk that can only be read, without a word about its extents."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    @property
    def size_bytes(self) -> int:
        return len(self._content)

    def read(self, offset: int, length: int) -> bytes:
        return self._content[offset : offset + length]


def sparse(size: int) -> bytes:
    content = bytearray(size)
    for start in range(0, size, 3 * BLOCK):
        length = min(BLOCK, size - start)
        content[start : start + length] = random.Random(start).randbytes(length)
    return bytes(content)


@pytest.fixture
def disk() -> MemoryDisk:
    return MemoryDisk(sparse(5 * units.MIB + 512))


@pytest.fixture
def address(disk: MemoryDisk, tmp_path: Path) -> Iterator[Address]:
    path = str(tmp_path / "nbd.sock")
    exports: dict[str, Export] = {"": disk, "fixed": ReadOnlyDisk(b"r" * 1536)}
    with Server(exports, socket_path=path):
        yield Address(socket_path=path)


def uri(address: Address) -> str:
    return f"nbd+unix:///{address.export}?socket={address.socket_path}"


def run(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, timeout=WAIT_SECONDS, check=False, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nbdinfo_sees_sizes_flags_contexts_and_all_exports(
    disk: MemoryDisk, address: Address
) -> None:
    exports = json.loads(run("nbdinfo", "--json", "--list", uri(address)))["exports"]
    found = {one["export-name"]: one for one in exports}
    assert found.keys() == {"", "fixed"}
    assert found[""]["export-size"] == disk.size_bytes
    assert not found[""]["is_read_only"]
    assert found[""]["contexts"] == [p.ALLOCATION, DIRTY]
    assert found["fixed"]["is_read_only"]
    assert found["fixed"]["contexts"] == []


def test_nbdinfo_maps_the_same_extents_as_the_disk(disk: MemoryDisk, address: Address) -> None:
    for context in disk.contexts:
        mapped = json.loads(run("nbdinfo", "--json", f"--map={context}", uri(address)))
        flags = {(one["offset"], one["length"]): one["type"] for one in mapped}
        assert sum(length for _, length in flags) == disk.size_bytes
        for (start, length), kind in flags.items():
            expected = [one for _, one in disk.list_extents(context, start, length)]
            assert set(expected) == {kind}


def test_nbdcopy_brings_every_byte_out_and_in(
    disk: MemoryDisk, address: Address, tmp_path: Path
) -> None:
    run("nbdcopy", uri(address), str(tmp_path / "out.raw"))
    assert (tmp_path / "out.raw").read_bytes() == disk.data
    content = sparse(disk.size_bytes)[::-1]
    (tmp_path / "in.raw").write_bytes(content)
    run("nbdcopy", "--flush", "--destination-is-zero", "--", str(tmp_path / "in.raw"), uri(address))
    assert disk.flushes > 0


def test_qemu_img_reads_and_writes_it(disk: MemoryDisk, address: Address, tmp_path: Path) -> None:
    before = bytes(disk.data)
    out = tmp_path / "out.raw"
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri(address), str(out))
    assert out.read_bytes() == before
    content = before[::-1]
    out.write_bytes(content)
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(out), uri(address))
    assert bytes(disk.data) == content


def test_our_client_reads_what_the_disk_holds(disk: MemoryDisk, address: Address) -> None:
    with Client.connect(address, contexts=disk.contexts) as client:
        unit = 256 * units.KIB
        wanted = [
            (start, min(unit, client.size_bytes - start))
            for start in range(0, client.size_bytes, unit)
        ]
        for start, data in client.read_many(wanted, depth=8):
            assert data == disk.data[start : start + len(data)]
        for one in client.list_allocated():
            assert one.zero == (not any(disk.data[one.start : one.end]))


def test_dirty_bitmaps_are_told_by_their_name(address: Address) -> None:
    with Client.connect(address, contexts=[DIRTY]) as client:
        client.write(3 * BLOCK, b"n" * BLOCK)
        client.zero(9 * BLOCK, 512)
        dirty = [start for start, _, flags in client.list_extents(DIRTY) if flags & 1]
    assert dirty == [3 * BLOCK, 9 * BLOCK]


def test_many_extents_are_told_in_several_replies(tmp_path: Path) -> None:
    class Dust(ReadOnlyDisk):
        """Every other sector is a hole."""

        contexts = (p.ALLOCATION,)

        def list_extents(
            self, _context: str, offset: int, length: int
        ) -> Iterable[tuple[int, int]]:
            return ((512, 3 * (at // 512 % 2)) for at in range(offset, offset + length, 512))

    count = server.EXTENTS_PER_REPLY_MAX + 10
    path = str(tmp_path / "nbd.sock")
    with (
        Server({"": Dust(bytes(512 * count))}, socket_path=path),
        Client.connect(Address(socket_path=path), contexts=[p.ALLOCATION]) as client,
    ):
        extents = list(client.list_allocated())
    assert len(extents) == count
    assert extents[-1] == Extent((count - 1) * 512, 512, zero=bool((count - 1) % 2))


def test_a_client_that_wants_one_extent_gets_one(address: Address) -> None:
    # qemu-img map asks so; more than one would break the protocol.
    mapped = json.loads(run("qemu-img", "map", "--output=json", "--image-opts", options(address)))
    assert [one["start"] for one in mapped if one["data"]][:3] == [0, 3 * BLOCK, 6 * BLOCK]


def options(address: Address) -> str:
    return f"driver=nbd,server.type=unix,server.path={address.socket_path}"


def test_a_failing_disk_costs_the_request_and_not_the_connection(
    disk: MemoryDisk, address: Address
) -> None:
    with Client.connect(address) as client:
        for failure, raised in [
            (Unavailable("the disk is slow today"), Unavailable),
            (OSError(5, "broken"), Unavailable),
            (NoSpace("full"), NoSpace),
        ]:
            disk.failure = failure
            with pytest.raises(raised):
                client.read(0, 512)
            disk.failure = None
            assert client.read(0, 512) == disk.data[:512]


def test_what_is_read_only_stays_as_it_is(address: Address) -> None:
    fixed = Address(export="fixed", socket_path=address.socket_path)
    with Client.connect(fixed) as client:
        assert client.is_read_only
        with pytest.raises(Denied):
            client.write(0, b"x" * 512)
        assert client.read(1024, 512) == b"r" * 512


def test_exports_are_listed_and_an_unknown_one_is_refused(address: Address) -> None:
    assert sorted(list_exports(address)) == ["", "fixed"]
    with pytest.raises(NotFound):
        Client.connect(Address(export="none", socket_path=address.socket_path))


def test_it_serves_by_tcp_on_a_port_of_its_choice() -> None:
    with Server({"": ReadOnlyDisk(b"t" * 512)}, host="127.0.0.1") as running:
        address = Address(host="127.0.0.1", port=running.port)
        with Client.connect(address) as client:
            assert client.read(0, 512) == b"t" * 512


def test_closing_ends_connections_and_removes_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "nbd.sock"
    running = Server({"": ReadOnlyDisk(bytes(512))}, socket_path=str(path))
    running.start()
    with Client.connect(Address(socket_path=str(path))) as client:
        running.close()
        running.close()
        with pytest.raises(Unavailable):
            client.read(0, 512)
    assert not path.exists()


def test_a_taken_address_is_an_error_and_the_first_server_goes_on(
    address: Address,
) -> None:
    second = Server({}, socket_path=address.socket_path)
    with pytest.raises(OSError, match="in use"):
        second.start()
    second.close()
    with Client.connect(address) as client:
        assert client.size_bytes


# Clients that break the protocol.

GO = p.OPTION_MAGIC + p.U32.pack(p.OPT_GO)


def take(connected: socket.socket, length: int) -> bytes:
    """Return so many bytes, or fewer at the stream's end.

    A socket with a time limit does not block inside, so MSG_WAITALL would return what is there.
    """
    taken = bytearray()
    while len(taken) < length and (more := connected.recv(length - len(taken))):
        taken += more
    return bytes(taken)


def greeted(address: Address, *, handshake: int = 3) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX)
    connected.settimeout(WAIT_SECONDS)
    assert address.socket_path is not None
    connected.connect(address.socket_path)
    take(connected, 18)
    connected.sendall(p.U32.pack(handshake))
    return connected


def opened(address: Address, *, export: bytes = b"") -> socket.socket:
    connected = greeted(address)
    data = p.U32.pack(len(export)) + export + p.U16.pack(0)
    connected.sendall(GO + p.U32.pack(len(data)) + data)
    while True:
        head = take(connected, p.OPTION_REPLY.size)
        _, _, kind, length = p.OPTION_REPLY.unpack(head)
        take(connected, length)
        if kind == p.REP_ACK:
            return connected


@pytest.mark.parametrize(
    "message",
    [
        bytes(range(64)),
        GO + p.U32.pack(0xFFFFFFFF),
        GO + p.U32.pack(server.OPTION_BYTES_MAX + 1),
        GO + p.U32.pack(0),
        GO + p.U32.pack(6) + p.U32.pack(1000) + b"xx",
        p.OPTION_HEAD.pack(p.OPTION_MAGIC, p.OPT_SET_META, 8) + bytes(4) + p.U32.pack(1 << 31),
        p.OPTION_HEAD.pack(p.OPTION_MAGIC, 77, 0) * (server.OPTIONS_MAX + 1),
    ],
)
def test_nonsense_while_negotiating_costs_only_the_own_connection(
    address: Address, message: bytes
) -> None:
    with greeted(address) as connected:
        try:
            connected.sendall(message)
            connected.shutdown(socket.SHUT_WR)
            while connected.recv(65536):
                pass
        except ConnectionError:
            pass
    with Client.connect(address) as client:
        assert client.read(0, 512)


@pytest.mark.parametrize(
    ("command", "offset", "length"),
    [
        (p.CMD_READ, 0, 0xFFFFFFFF),
        (p.CMD_READ, 1536, 1),
        (p.CMD_READ, (1 << 64) - 1, 512),
        (p.CMD_BLOCK_STATUS, 0, 512),
        (p.CMD_WRITE_ZEROES, 0, 512),
        (99, 0, 512),
    ],
)
def test_a_request_that_makes_no_sense_is_answered_by_an_error(
    address: Address, command: int, offset: int, length: int
) -> None:
    with opened(address, export=b"fixed") as connected:
        connected.sendall(p.REQUEST.pack(p.REQUEST_MAGIC, 0, command, 7, offset, length))
        reply = take(connected, 16)
        magic, code, cookie = struct.unpack(">IIQ", reply)
        assert (magic, cookie) == (p.SIMPLE_REPLY_MAGIC, 7)
        assert code != 0
        connected.sendall(p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_READ, 8, 0, 4))
        assert take(connected, 20)[16:] == b"rrrr"


@pytest.mark.parametrize(
    ("command", "flags", "length"),
    [
        (99, 0, 512),
        (p.CMD_READ, 0, 0),
        (p.CMD_READ, 1, 512),  # "durable at once", which was not offered
        (p.CMD_WRITE_ZEROES, 1, 512),
        (p.CMD_FLUSH, p.CMD_FLAG_DF, 0),
        (p.CMD_BLOCK_STATUS, 0, 512),  # no context was agreed on
    ],
)
def test_what_was_not_offered_is_refused_and_the_disk_stays_as_it_is(
    disk: MemoryDisk, address: Address, command: int, flags: int, length: int
) -> None:
    before = bytes(disk.data)
    with opened(address) as connected:
        connected.sendall(p.REQUEST.pack(p.REQUEST_MAGIC, flags, command, 7, 0, length))
        reply = take(connected, 16)
        assert struct.unpack(">IIQ", reply) == (p.SIMPLE_REPLY_MAGIC, p.ERROR_INVALID, 7)
    assert disk.data == before


@pytest.mark.parametrize(
    "message",
    [
        p.REQUEST.pack(1, 0, p.CMD_READ, 7, 0, 512),
        p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_WRITE, 7, 0, server.REQUEST_BYTES_MAX + 1),
    ],
)
def test_a_request_that_cannot_be_told_from_the_next_ends_the_connection(
    address: Address, message: bytes
) -> None:
    with opened(address) as connected:
        connected.sendall(message)
        assert connected.recv(16) == b""


def test_a_read_that_must_not_be_cut_comes_in_one_piece(disk: MemoryDisk, address: Address) -> None:
    size = 4 * units.MIB
    with greeted(address) as connected:
        connected.sendall(p.OPTION_HEAD.pack(p.OPTION_MAGIC, p.OPT_STRUCTURED_REPLY, 0))
        take(connected, p.OPTION_REPLY.size)
        connected.sendall(GO + p.U32.pack(6) + bytes(6))
        _, flags = expect_info(connected)
        assert flags & p.EXPORT_DF
        request = p.REQUEST.pack(p.REQUEST_MAGIC, p.CMD_FLAG_DF, p.CMD_READ, 7, 0, size)
        connected.sendall(request)
        head = take(connected, p.REPLY_HEAD.size + p.CHUNK.size)
        expected = (p.CHUNK_FLAG_DONE, p.CHUNK_OFFSET_DATA, 7, p.U64.size + size)
        assert p.CHUNK.unpack(head[p.REPLY_HEAD.size :]) == expected
        same = take(connected, 8 + size)[8:] == disk.data[:size]
        assert same  # not compared here: explaining 4 MiB of difference takes minutes


def expect_info(connected: socket.socket) -> tuple[int, int]:
    """Return size and flags of the export that is being opened."""
    found = (0, 0)
    while True:
        head = take(connected, p.OPTION_REPLY.size)
        _, _, kind, length = p.OPTION_REPLY.unpack(head)
        payload = take(connected, length) if length else b""
        if len(payload) == p.EXPORT_INFO.size:
            found = p.EXPORT_INFO.unpack(payload)[1:]
        if kind == p.REP_ACK:
            return found


@pytest.mark.parametrize("structured", [False, True])
def test_a_client_that_leaves_in_the_middle_of_an_answer_costs_nothing(
    tmp_path: Path, *, structured: bool
) -> None:
    path = str(tmp_path / "nbd.sock")
    address, length = Address(socket_path=path), server.REQUEST_BYTES_MAX  # above all buffers
    with Server({"": ReadOnlyDisk(b"x" * length)}, socket_path=path):
        with greeted(address) as connected:
            if structured:
                connected.sendall(p.OPTION_HEAD.pack(p.OPTION_MAGIC, p.OPT_STRUCTURED_REPLY, 0))
                take(connected, p.OPTION_REPLY.size)
            connected.sendall(GO + p.U32.pack(6) + bytes(6))
            expect_info(connected)
            connected.sendall(p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_READ, 7, 0, length))
            assert len(take(connected, 16)) == 16
        with Client.connect(address) as client:
            assert client.read(0, 512) == b"x" * 512


@pytest.mark.parametrize("handshake", [1, 3])
def test_the_oldest_way_to_open_an_export_works_too(
    disk: MemoryDisk, address: Address, handshake: int
) -> None:
    with greeted(address, handshake=handshake) as connected:
        connected.sendall(p.OPTION_HEAD.pack(p.OPTION_MAGIC, p.OPT_EXPORT_NAME, 0))
        head = take(connected, 10 if handshake == 3 else 134)
        assert struct.unpack_from(">Q", head) == (disk.size_bytes,)
        assert head[10:] == (b"" if handshake == 3 else bytes(124))
        connected.sendall(p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_READ, 7, 0, 4))
        assert take(connected, 20)[16:] == disk.data[:4]
    with greeted(address) as connected:
        connected.sendall(p.OPTION_HEAD.pack(p.OPTION_MAGIC, p.OPT_EXPORT_NAME, 4) + b"none")
        assert connected.recv(10) == b""


def test_a_client_that_says_goodbye_is_answered_and_let_go(address: Address) -> None:
    with greeted(address) as connected:
        connected.sendall(p.OPTION_HEAD.pack(p.OPTION_MAGIC, p.OPT_ABORT, 0))
        reply = take(connected, p.OPTION_REPLY.size)
        assert p.OPTION_REPLY.unpack(reply)[2] == p.REP_ACK
        assert connected.recv(1) == b""


def test_contexts_of_an_unknown_export_are_refused(address: Address) -> None:
    with greeted(address) as connected:
        query = p.U32.pack(4) + b"none" + p.U32.pack(0)
        head = p.OPTION_HEAD.pack(p.OPTION_MAGIC, p.OPT_LIST_META, len(query))
        connected.sendall(head + query)
        reply = take(connected, p.OPTION_REPLY.size)
        assert p.OPTION_REPLY.unpack(reply)[2] == p.REP_ERR_UNKNOWN
        query = bytes(6)  # a name, but half a number of queries
        head = p.OPTION_HEAD.pack(p.OPTION_MAGIC, p.OPT_LIST_META, len(query))
        connected.sendall(head + query)
        assert connected.recv(1) == b""


# Machines that run out of something.


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_server_without_descriptors_waits_for_some(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    assert address.socket_path is not None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.settimeout(WAIT_SECONDS)
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))  # not one more
        try:
            waiting.connect(address.socket_path)
            wait_for(lambda: "Too many open files" in caplog.text)
            time.sleep(3 * server.ACCEPT_PAUSE_SECONDS_MIN)  # in which it fails again
            assert caplog.text.count("Too many open files") == 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert take(waiting, 18).startswith(p.GREETING)


def test_a_server_without_threads_turns_a_client_away_and_goes_on(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        with pytest.raises(Unavailable):
            Client.connect(address)
    with Client.connect(address) as client:
        assert client.read(0, 512)


def test_closing_ends_a_server_that_waits_for_descriptors(tmp_path: Path) -> None:
    running = Server({"": ReadOnlyDisk(bytes(512))}, socket_path=str(tmp_path / "nbd.sock"))
    running.start()
    acceptor = running._acceptor
    assert acceptor is not None
    running.close()
    assert not acceptor.is_alive()


def test_a_client_that_says_nothing_loses_its_place(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "NEGOTIATE_SECONDS_MAX", 0.2)
    with greeted(address) as connected:
        assert connected.recv(1) == b""
    monkeypatch.undo()
    with Client.connect(address) as client:
        assert client.read(0, 512)


def test_a_flush_is_waited_for_longer_than_an_answer(tmp_path: Path) -> None:
    class Slow(MemoryDisk):
        """A disk with a full page cache before it."""

        def flush(self) -> None:
            threading.Event().wait(2.5)
            super().flush()

    disk, path = Slow(bytes(4096)), str(tmp_path / "nbd.sock")
    with (
        Server({"": disk}, socket_path=path),
        Client.connect(Address(socket_path=path), timeout_seconds=1.5) as client,
    ):
        client.write(0, b"x" * 512)
        client.flush()
        client.trim(0, 512)
    assert disk.flushes == 1
    assert disk.data == bytes(4096)


def test_contexts_agreed_for_one_export_do_not_hold_for_another(address: Address) -> None:
    with greeted(address) as connected:
        connected.sendall(p.OPTION_HEAD.pack(p.OPTION_MAGIC, p.OPT_STRUCTURED_REPLY, 0))
        query = p.U32.pack(0) + p.U32.pack(1) + p.U32.pack(len(DIRTY)) + DIRTY.encode()
        connected.sendall(p.OPTION_HEAD.pack(p.OPTION_MAGIC, p.OPT_SET_META, len(query)) + query)
        name = p.U32.pack(5) + b"fixed" + p.U16.pack(0)
        connected.sendall(GO + p.U32.pack(len(name)) + name)
        connected.sendall(p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_BLOCK_STATUS, 7, 0, 512))
        connected.sendall(p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_READ, 8, 0, 512))
        connected.shutdown(socket.SHUT_WR)
        received = b""
        while part := connected.recv(65536):
            received += part
    assert received.endswith(b"r" * 512)


def test_more_connections_than_the_limit_are_turned_away(address: Address) -> None:
    taken = [opened(address) for _ in range(server.CONNECTIONS_MAX)]
    try:
        with pytest.raises(Unavailable):
            Client.connect(address)
    finally:
        for one in taken:
            one.close()
