"""A small, typed, blocking NBD client over sockets."""

import socket
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from sendense.core import units
from sendense.core.errors import NoSpace, NotFound, ProtocolError, Unavailable
from sendense.core.extent import Extent
from sendense.nbd import protocol as p
from sendense.nbd.address import Address

TIMEOUT_SECONDS = 60.0  # a hypervisor under load answers within seconds; a minute means it is gone
REPLY_BYTES_MAX = 32 * units.MIB  # the protocol's limit for a read, and ours for any reply
OPTION_BYTES_MAX = units.MIB
STATUS_BYTES_MAX = units.GIB  # one block status request; some servers list all of it at once
EXTENTS_PER_REPLY_MAX = 1 << 20
ALLOCATION = "base:allocation"
_ENOSPC = 28


@dataclass(slots=True)
class _Pending:
    offset: int
    length: int
    data: bytearray
    received: int = 0


class Client:
    """One connection to one export. Not for two threads at once, except `close`."""

    def __init__(self, connection: socket.socket, address: Address) -> None:
        self._socket = connection
        self._address = address
        self._cookie = 0
        self._contexts: dict[int, str] = {}
        self._closing = threading.Event()
        self.size_bytes = 0
        self.flags = 0
        self.structured = False
        self.block_size_min = 1
        self.block_size_max = REPLY_BYTES_MAX

    @classmethod
    def connect(
        cls,
        address: Address,
        *,
        contexts: Sequence[str] = (),
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> Self:
        try:
            if address.socket_path is not None:
                connection = socket.socket(socket.AF_UNIX)
                connection.settimeout(timeout_seconds)
                connection.connect(address.socket_path)
            else:
                connection = socket.create_connection(
                    (address.host, address.port), timeout=timeout_seconds
                )
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise Unavailable(f"nbd server does not answer: {error}") from error
        client = cls(connection, address)
        try:
            client._negotiate(contexts)
        except BaseException:
            connection.close()
            raise
        return client

    @property
    def contexts(self) -> frozenset[str]:
        return frozenset(self._contexts.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._closing.is_set():
            return
        self._closing.set()
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise Unavailable(f"nbd server went away: {error}") from error

    def _receive_into(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            try:
                got = self._socket.recv_into(view[done:], 0, socket.MSG_WAITALL)
            except OSError as error:
                raise Unavailable(f"nbd server went away: {error}") from error
            if not got:
                raise Unavailable("nbd server closed the connection")
            done += got

    def _receive(self, length: int) -> bytes:
        data = bytearray(length)
        self._receive_into(memoryview(data))
        return bytes(data)

    def _option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        self._send(p.OPTION_MAGIC + struct.pack(">II", option, len(data)) + data)
        replies = []
        while True:
            magic, echoed, kind, length = p.OPTION_REPLY.unpack(self._receive(20))
            if (
                magic != p.OPTION_REPLY_MAGIC
                or echoed != option
                or length > OPTION_BYTES_MAX
                or len(replies) > 1000
            ):
                raise ProtocolError("nbd server broke the negotiation")
            replies.append((kind, self._receive(length)))
            if kind == p.REP_ACK or kind & p.REP_ERROR:
                return replies

    def _negotiate(self, contexts: Sequence[str]) -> None:
        if self._receive(16) != p.GREETING:
            raise ProtocolError("nbd server greets with the wrong magic")
        (flags,) = struct.unpack(">H", self._receive(2))
        if not flags & p.FLAG_FIXED_NEWSTYLE:
            raise ProtocolError("nbd server is not fixed newstyle")
        self._send(struct.pack(">I", flags & 3))
        self.structured = self._option(p.OPT_STRUCTURED_REPLY)[-1][0] == p.REP_ACK
        name = self._address.export.encode()
        if contexts and self.structured:
            data = struct.pack(">I", len(name)) + name + struct.pack(">I", len(contexts))
            data += b"".join(struct.pack(">I", len(c.encode())) + c.encode() for c in contexts)
            for kind, payload in self._option(p.OPT_SET_META, data):
                if kind == p.REP_META_CONTEXT:
                    self._contexts[struct.unpack(">I", payload[:4])[0]] = payload[4:].decode()
        for kind, payload in self._option(
            p.OPT_GO, struct.pack(">I", len(name)) + name + struct.pack(">HH", 1, 3)
        ):
            if kind == p.REP_ERR_UNKNOWN:
                raise NotFound(
                    f"nbd server has no export {self._address.export!r}", kind="export-unknown"
                )
            if kind & p.REP_ERROR:
                raise ProtocolError(f"nbd server refuses the export: {payload[:200]!r}")
            if kind == p.REP_INFO:
                (info,) = struct.unpack(">H", payload[:2])
                if info == 0:
                    self.size_bytes, self.flags = struct.unpack(">QH", payload[2:12])
                if info == 3:
                    self.block_size_min, _, largest = struct.unpack(">III", payload[2:14])
                    self.block_size_max = min(largest, REPLY_BYTES_MAX)

    def _request(
        self, command: int, offset: int, length: int, *, flags: int = 0, data: bytes = b""
    ) -> int:
        self._cookie += 1
        self._send(
            p.REQUEST.pack(p.REQUEST_MAGIC, flags, command, self._cookie, offset, length) + data
        )
        return self._cookie

    def read(self, offset: int, length: int) -> bytearray:
        return next(self.read_many([(offset, length)], depth=1))[1]

    def read_many(
        self, requests: Iterable[tuple[int, int]], *, depth: int
    ) -> Iterator[tuple[int, bytearray]]:
        source = iter(requests)
        pending: dict[int, _Pending] = {}

        def fill() -> None:
            while len(pending) < depth:
                request = next(source, None)
                if request is None:
                    return
                offset, length = request
                pending[self._request(p.CMD_READ, offset, length)] = _Pending(
                    offset, length, bytearray(length)
                )

        fill()
        while pending:
            cookie = self._receive_read_chunk(pending)
            if cookie is not None:
                one = pending.pop(cookie)
                if one.received != one.length:
                    raise ProtocolError("nbd server left out a part of a read")
                fill()
                yield one.offset, one.data

    def _receive_read_chunk(self, pending: dict[int, _Pending]) -> int | None:
        head = self._receive(16)
        (magic,) = struct.unpack_from(">I", head)
        if magic == p.SIMPLE_REPLY_MAGIC:
            _, error, cookie = p.SIMPLE_REPLY.unpack(head)
            one = self._find(pending, cookie)
            if error:
                raise _failure(error, f"read at {one.offset}")
            self._receive_into(memoryview(one.data))
            one.received = one.length
            return cookie
        if magic != p.CHUNK_MAGIC:
            raise ProtocolError("nbd server sent a reply with the wrong magic")
        _, flags, kind, cookie, length = p.CHUNK.unpack(head + self._receive(4))
        one = self._find(pending, cookie)
        if length > REPLY_BYTES_MAX + 8:
            raise ProtocolError(f"nbd server sent a chunk of {length} bytes")
        if kind == p.CHUNK_OFFSET_DATA:
            (offset,) = struct.unpack(">Q", self._receive(8))
            start = offset - one.offset
            if start < 0 or length <= 8 or start + length - 8 > one.length:
                raise ProtocolError("nbd server sent data outside the request")
            self._receive_into(memoryview(one.data)[start : start + length - 8])
            one.received += length - 8
        elif kind == p.CHUNK_OFFSET_HOLE:
            offset, hole = struct.unpack(">QI", self._receive(12))
            if offset < one.offset or offset + hole > one.offset + one.length:
                raise ProtocolError("nbd server sent a hole outside the request")
            one.received += hole
        elif kind & p.CHUNK_ERROR:
            payload = self._receive(length)
            raise _failure(struct.unpack_from(">I", payload)[0], f"read at {one.offset}")
        elif kind != p.CHUNK_NONE:
            raise ProtocolError(f"nbd server sent a chunk of type {kind}")
        return cookie if flags & p.CHUNK_DONE else None

    @staticmethod
    def _find(pending: dict[int, _Pending], cookie: int) -> _Pending:
        one = pending.get(cookie)
        if one is None:
            raise ProtocolError("nbd server answers what nobody asked")
        return one

    def list_extents(
        self, context: str, *, start: int = 0, end: int | None = None
    ) -> Iterator[tuple[int, int, int]]:
        stop = self.size_bytes if end is None else end
        while start < stop:
            for length, flags in self._block_status(
                context, start, min(stop - start, STATUS_BYTES_MAX)
            ):
                length = min(length, stop - start)
                yield start, length, flags
                start += length

    def _block_status(self, context: str, offset: int, length: int) -> list[tuple[int, int]]:
        wanted = next(number for number, name in self._contexts.items() if name == context)
        cookie = self._request(p.CMD_BLOCK_STATUS, offset, length)
        found: list[tuple[int, int]] = []
        while True:
            magic, flags, kind, got, size = p.CHUNK.unpack(self._receive(20))
            if magic != p.CHUNK_MAGIC or got != cookie or size > 8 * EXTENTS_PER_REPLY_MAX + 4:
                raise ProtocolError("nbd server broke a block status reply")
            payload = self._receive(size)
            if kind & p.CHUNK_ERROR:
                raise _failure(struct.unpack_from(">I", payload)[0], f"block status at {offset}")
            if kind == p.CHUNK_BLOCK_STATUS and struct.unpack_from(">I", payload)[0] == wanted:
                found = [struct.unpack_from(">II", payload, at) for at in range(4, size, 8)]
            if flags & p.CHUNK_DONE:
                if not found or any(n == 0 for n, _ in found):
                    raise ProtocolError("nbd server sent an empty block status")
                return found

    def list_allocated(self) -> Iterator[Extent]:
        if ALLOCATION not in self.contexts:
            if self.size_bytes:
                yield Extent(0, self.size_bytes)
            return
        for start, length, flags in self.list_extents(ALLOCATION):
            yield Extent(start, length, bool(flags & p.STATE_ZERO))


def _failure(error: int, what: str) -> Exception:
    if error == _ENOSPC:
        return NoSpace(f"nbd server has no space: {what}")
    return Unavailable(f"nbd server reports error {error}: {what}", kind="source-read-error")
