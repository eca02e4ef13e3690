"""A threaded NBD server: one thread per connection, requests answered in order.

Measured in a probe, it keeps up with nbdkit's file plugin: the kernel copies, Python only moves
buffers. What a client sends is bounded before memory is given to it.
"""

import contextlib
import itertools
import logging
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from sendense.core import units
from sendense.core.errors import NoSpace, SendenseError
from sendense.nbd import protocol as p
from sendense.nbd.export import DescribedExport, Export, WritableExport

REQUEST_BYTES_MAX = 32 * units.MIB  # what the protocol lets every client rely on
OPTION_BYTES_MAX = 64 * units.KIB  # names are at most 4 KiB; a list of contexts has some of them
OPTIONS_MAX = 1000  # of one connection, before an export is chosen
CONNECTIONS_MAX = 64  # a thread each; clients of ours use four
EXTENTS_PER_REPLY_MAX = 1 << 16  # 512 KiB; the client asks on behind the last one
SEND_BUFFER_BYTES = 4 * units.MIB
NEGOTIATE_SECONDS_MAX = 60.0  # of every wait before an export is open; then a client may be idle
ACCEPT_PAUSE_SECONDS_MIN = 0.05  # doubled with each failure: descriptors run out for a while
ACCEPT_PAUSE_SECONDS_MAX = 1.0
CLOSE_SECONDS_MAX = 10.0  # a read of the export that hangs longer is left to its daemon thread


_log = logging.getLogger(__name__)

# Of each command's flags those that it may have; others were not offered.
_FLAGS = {p.CMD_READ: p.CMD_FLAG_DF, p.CMD_WRITE_ZEROES: p.CMD_FLAG_NO_HOLE}
_FLAGS[p.CMD_BLOCK_STATUS] = p.CMD_FLAG_REQ_ONE

ResultT = TypeVar("ResultT")


class Server:
    """Serves exports on a unix socket or on a TCP port until it is closed."""

    def __init__(
        self,
        exports: Mapping[str, Export],
        *,
        socket_path: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """Prepare to serve; `start` listens.

        Args:
            exports: by name; "" is the default export.
            socket_path: listen there; it must not exist. Else by TCP:
            host: address to listen on; not encrypted, so loopback unless the network is trusted.
            port: 0 chooses a free one, see `port`.
        """
        self._exports = dict(exports)
        self._socket_path = socket_path
        self._address = (host, port)
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._closing = threading.Event()
        self._acceptor: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The TCP port it listens on."""
        assert self._listener is not None, "the server is not started"
        return int(self._listener.getsockname()[1])

    def start(self) -> None:
        """Listen, and serve in threads. Raises OSError where the address is taken."""
        if self._socket_path is not None:
            listener = socket.socket(socket.AF_UNIX)
            address: str | tuple[str, int] = self._socket_path
        else:
            listener = socket.socket(socket.AF_INET)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            address = self._address
        try:
            listener.bind(address)
            listener.listen(CONNECTIONS_MAX)
        except BaseException:
            listener.close()
            raise
        self._listener = listener
        self._acceptor = threading.Thread(
            target=self._accept, args=(listener,), name="nbd-accept", daemon=True
        )
        self._acceptor.start()

    def close(self) -> None:
        """Stop listening, end all connections and wait for their threads. Idempotent."""
        with self._lock:
            self._closing.set()
            connections = list(self._connections.items())
            for connected, _ in connections:
                with contextlib.suppress(OSError):
                    connected.shutdown(socket.SHUT_RDWR)
        if self._listener is not None and self._acceptor is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            self._listener.close()
            self._acceptor.join(CLOSE_SECONDS_MAX)
            if self._socket_path is not None:
                Path(self._socket_path).unlink(missing_ok=True)
            self._listener = None
        for _, thread in connections:
            thread.join(CLOSE_SECONDS_MAX)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _accept(self, listener: socket.socket) -> None:
        pause = ACCEPT_PAUSE_SECONDS_MIN
        while True:
            try:
                connected, _ = listener.accept()
                self._adopt(connected)
            except (OSError, RuntimeError) as error:  # the latter: no thread could be started
                if self._closing.wait(pause):
                    return
                if pause == ACCEPT_PAUSE_SECONDS_MIN:  # once for a row of failures
                    _log.warning("NBD server cannot take connections, tries again: %s", error)
                pause = min(2 * pause, ACCEPT_PAUSE_SECONDS_MAX)
            else:
                pause = ACCEPT_PAUSE_SECONDS_MIN

    def _adopt(self, connected: socket.socket) -> None:
        """Serve a connection in a thread of its own, or close it."""
        thread = threading.Thread(
            target=self._serve, args=(connected,), name="nbd-serve", daemon=True
        )
        with contextlib.ExitStack() as refused:
            refused.callback(connected.close)
            with self._lock:
                if self._closing.is_set() or len(self._connections) >= CONNECTIONS_MAX:
                    return
                thread.start()  # before `close` may see it, which joins what it sees
                self._connections[connected] = thread
            refused.pop_all()

    def _serve(self, connected: socket.socket) -> None:
        try:
            # A client that goes away or breaks the protocol costs its connection, nothing else.
            with contextlib.suppress(OSError, _Broken):
                _Conversation(connected, self._exports).run()
        finally:
            with self._lock:
                # Under the lock: `close` must not shut down a descriptor that is another's by then.
                connected.close()
                self._connections.pop(connected, None)


class _Broken(Exception):
    """The client went away, or broke the protocol."""


@dataclass(frozen=True, slots=True)
class _Request:
    """A request while the export is open; `data` is what is to be written."""

    flags: int
    command: int
    cookie: int
    offset: int
    length: int
    data: bytes = b""


class _Conversation:
    """One connection, from greeting to goodbye."""

    def __init__(self, connected: socket.socket, exports: Mapping[str, Export]) -> None:
        self._socket = connected
        self._exports = exports
        self._structured = False
        self._contexts: dict[int, str] = {}
        self._described: Export | None = None  # the export that the contexts were agreed for
        with contextlib.suppress(OSError):
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            # The kernel notices a client whose machine is gone; it would hold its thread for ever.
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def run(self) -> None:
        self._socket.settimeout(NEGOTIATE_SECONDS_MAX)
        export = self._negotiate()
        if export is not None:
            self._socket.settimeout(None)
            while self._answer(export):
                pass

    # Negotiation.

    def _negotiate(self) -> Export | None:
        """Return the export that the client chose, or None where it says goodbye."""
        flags = p.HANDSHAKE_FIXED_NEWSTYLE | p.HANDSHAKE_NO_ZEROES
        self._socket.sendall(p.GREETING + p.U16.pack(flags))
        (agreed,) = p.U32.unpack(self._receive(p.U32.size))
        for _ in range(OPTIONS_MAX):
            magic, option, length = p.OPTION_HEAD.unpack(self._receive(p.OPTION_HEAD.size))
            if magic != p.OPTION_MAGIC or length > OPTION_BYTES_MAX:
                raise _Broken
            data = self._receive(length)
            if option == p.OPT_EXPORT_NAME:
                return self._open_plainly(data, padded=not agreed & p.HANDSHAKE_NO_ZEROES)
            if option == p.OPT_ABORT:
                self._reply(option, p.REP_ACK)
                return None
            export = self._answer_option(option, data)
            if export is not None:
                return export
        raise _Broken

    def _open_plainly(self, name: bytes, *, padded: bool) -> Export:
        """Answer the option that has no way to say no."""
        export = self._exports.get(name.decode(errors="replace"))
        if export is None:
            raise _Broken
        padding = bytes(124) if padded else b""
        head = struct.pack(">QH", export.size_bytes, _flags(export, structured=self._structured))
        self._socket.sendall(head + padding)
        return export

    def _answer_option(self, option: int, data: bytes) -> Export | None:
        if option == p.OPT_STRUCTURED_REPLY:
            self._structured = True
            self._reply(option, p.REP_ACK)
        elif option == p.OPT_LIST:
            for name in self._exports:
                encoded = name.encode()
                self._reply(option, p.REP_SERVER, p.U32.pack(len(encoded)) + encoded)
            self._reply(option, p.REP_ACK)
        elif option in {p.OPT_LIST_META, p.OPT_SET_META}:
            self._answer_contexts(option, data)
        elif option in {p.OPT_INFO, p.OPT_GO}:
            return self._answer_info(option, data)
        else:
            self._reply(option, p.REP_ERR_UNSUPPORTED)
        return None

    def _answer_contexts(self, option: int, data: bytes) -> None:
        name, rest = _take_text(data)
        export = self._exports.get(name)
        if export is None:
            self._reply(option, p.REP_ERR_UNKNOWN)
            return
        if option == p.OPT_SET_META and not self._structured:
            self._reply(option, p.REP_ERR_INVALID)
            return
        offered = list(export.contexts) if isinstance(export, DescribedExport) else []
        queries = _take_queries(rest)
        chosen = [
            (number, context)
            for number, context in enumerate(offered, start=1)
            if (not queries and option == p.OPT_LIST_META)
            or any(query in {context, context.partition(":")[0] + ":"} for query in queries)
        ]
        if option == p.OPT_SET_META:
            self._contexts, self._described = dict(chosen), export
        for number, context in chosen:
            self._reply(option, p.REP_META_CONTEXT, p.U32.pack(number) + context.encode())
        self._reply(option, p.REP_ACK)

    def _answer_info(self, option: int, data: bytes) -> Export | None:
        name, _ = _take_text(data)
        export = self._exports.get(name)
        if export is None:
            self._reply(option, p.REP_ERR_UNKNOWN)
            return None
        info = p.EXPORT_INFO.pack(
            p.INFO_EXPORT, export.size_bytes, _flags(export, structured=self._structured)
        )
        self._reply(option, p.REP_INFO, info)
        sizes = p.BLOCK_SIZE_INFO.pack(p.INFO_BLOCK_SIZE, 1, 64 * units.KIB, REQUEST_BYTES_MAX)
        self._reply(option, p.REP_INFO, sizes)
        self._reply(option, p.REP_ACK)
        if option != p.OPT_GO:
            return None
        if export is not self._described:
            self._contexts = {}  # the protocol: they hold for the export they were asked for
        return export

    def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        head = p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, option, kind, len(data))
        self._socket.sendall(head + data)

    # Transmission.

    def _answer(self, export: Export) -> bool:
        """Answer one request; return whether the client goes on."""
        head = self._receive(p.REQUEST.size)
        magic, flags, command, cookie, offset, length = p.REQUEST.unpack(head)
        if magic != p.REQUEST_MAGIC:
            raise _Broken
        if command == p.CMD_DISCONNECT:
            return False
        data = b""
        if command == p.CMD_WRITE:
            if length > REQUEST_BYTES_MAX:
                raise _Broken  # what follows cannot be told from the next request
            data = self._receive(length)
        request = _Request(flags, command, cookie, offset, length, data)
        if not _makes_sense(request, export.size_bytes):
            self._fail(cookie, p.ERROR_INVALID)
            return True
        try:
            self._carry_out(export, request)
        except NoSpace:
            self._fail(cookie, p.ERROR_NO_SPACE)
        except (SendenseError, _ExportError):
            self._fail(cookie, p.ERROR_IO)
        return True

    def _carry_out(self, export: Export, request: _Request) -> None:
        command, cookie = request.command, request.cookie
        offset, length = request.offset, request.length
        if command == p.CMD_READ:
            self._send_data(cookie, offset, _guard(lambda: export.read(offset, length)), length)
        elif command == p.CMD_BLOCK_STATUS and self._contexts and length:
            assert isinstance(export, DescribedExport), "it offered contexts"
            self._send_status(export, request)
        elif not isinstance(export, WritableExport):
            writes = command in {p.CMD_WRITE, p.CMD_TRIM, p.CMD_WRITE_ZEROES}
            self._fail(cookie, p.ERROR_PERM if writes else p.ERROR_INVALID)
        elif command == p.CMD_WRITE:
            _guard(lambda: export.write(offset, request.data))
            self._succeed(cookie)
        elif command in {p.CMD_WRITE_ZEROES, p.CMD_TRIM}:
            _guard(lambda: export.zero(offset, length))
            self._succeed(cookie)
        elif command == p.CMD_FLUSH:
            _guard(export.flush)
            self._succeed(cookie)
        else:
            self._fail(cookie, p.ERROR_INVALID)

    def _send_data(self, cookie: int, offset: int, data: bytes, length: int) -> None:
        assert len(data) == length, f"the export gave {len(data)} bytes instead of {length}"
        if not self._structured:
            self._socket.sendall(_simple(cookie, 0) + data)
            return
        head = _chunk(p.CHUNK_FLAG_DONE, p.CHUNK_OFFSET_DATA, cookie, p.U64.size + length)
        self._send_all(head + p.U64.pack(offset), data)

    def _send_status(self, export: DescribedExport, request: _Request) -> None:
        most = 1 if request.flags & p.CMD_FLAG_REQ_ONE else EXTENTS_PER_REPLY_MAX
        replies = []
        for number, context in self._contexts.items():
            payload = bytearray(p.U32.pack(number))
            extents = _list_extents(export, context, request, most=most)
            assert extents, f"the export tells nothing about {context} at {request.offset}"
            for extent_length, flags in extents:
                payload += p.STATUS.pack(extent_length, flags)
            replies.append(payload)
        for payload in replies:
            last = p.CHUNK_FLAG_DONE if payload is replies[-1] else 0
            head = _chunk(last, p.CHUNK_BLOCK_STATUS, request.cookie, len(payload))
            self._socket.sendall(head + payload)

    def _send_all(self, head: bytes, data: bytes) -> None:
        """Send both in one system call where the socket takes them."""
        sent = self._socket.sendmsg([head, data])
        if sent < len(head) + len(data):
            self._socket.sendall(memoryview(head + data)[sent:])

    def _succeed(self, cookie: int) -> None:
        self._socket.sendall(_simple(cookie, 0))

    def _fail(self, cookie: int, code: int) -> None:
        if self._structured:
            payload = p.U32.pack(code) + p.U16.pack(0)
            head = _chunk(p.CHUNK_FLAG_DONE, p.CHUNK_ERROR | 1, cookie, len(payload))
            self._socket.sendall(head + payload)
        else:
            self._socket.sendall(_simple(cookie, code))

    def _receive(self, length: int) -> bytes:
        data = bytearray(length)
        view, done = memoryview(data), 0
        while done < length:
            count = self._socket.recv_into(view[done:])
            if count == 0:
                raise _Broken
            done += count
        return bytes(data)


class _ExportError(Exception):
    """The export failed by an error of the operating system; not to be taken for the socket's."""


def _guard(call: Callable[[], ResultT]) -> ResultT:
    """Call the export, keeping its errors apart from the socket's."""
    try:
        return call()
    except OSError as error:
        raise _ExportError from error


def _list_extents(
    export: DescribedExport, context: str, request: _Request, *, most: int
) -> list[tuple[int, int]]:
    def take() -> list[tuple[int, int]]:
        extents = export.list_extents(context, request.offset, request.length)
        return list(itertools.islice(extents, most))

    return _guard(take)


def _makes_sense(request: _Request, size_bytes: int) -> bool:
    if request.flags & ~_FLAGS.get(request.command, 0):
        return False
    if request.command == p.CMD_READ and not 0 < request.length <= REQUEST_BYTES_MAX:
        return False
    return request.offset + request.length <= size_bytes


def _flags(export: Export, *, structured: bool) -> int:
    flags = p.EXPORT_HAS_FLAGS | p.EXPORT_MULTI_CONN
    if structured:
        flags |= p.EXPORT_DF  # each read is answered in one piece anyway
    if isinstance(export, WritableExport):
        return flags | p.EXPORT_FLUSH | p.EXPORT_TRIM | p.EXPORT_WRITE_ZEROES
    return flags | p.EXPORT_READ_ONLY


def _simple(cookie: int, code: int) -> bytes:
    return p.REPLY_HEAD.pack(p.SIMPLE_REPLY_MAGIC) + p.SIMPLE_REPLY.pack(code, cookie)


def _chunk(flags: int, kind: int, cookie: int, length: int) -> bytes:
    return p.REPLY_HEAD.pack(p.CHUNK_MAGIC) + p.CHUNK.pack(flags, kind, cookie, length)


def _take_text(data: bytes) -> tuple[str, bytes]:
    """Return a text behind its length, and the rest."""
    if len(data) < p.U32.size:
        raise _Broken
    (length,) = p.U32.unpack_from(data)
    if length > len(data) - p.U32.size:
        raise _Broken
    end = p.U32.size + length
    return data[p.U32.size : end].decode(errors="replace"), data[end:]


def _take_queries(data: bytes) -> list[str]:
    if len(data) < p.U32.size:
        raise _Broken
    (count,) = p.U32.unpack_from(data)
    rest = data[p.U32.size :]
    queries = []
    for _ in range(min(count, OPTION_BYTES_MAX // p.U32.size)):
        query, rest = _take_text(rest)
        queries.append(query)
    return queries
