"""A small blocking NBD client: several requests in flight over one connection.

For more speed open several clients of one export. Structured replies are used where the server
knows them: without them it cannot tell holes or where an error lies.
"""

import itertools
import ssl
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

from sendense.core import units
from sendense.core.errors import Denied, Invalid, NoSpace, NotFound, SendenseError, Unavailable
from sendense.core.extent import Extent
from sendense.nbd import protocol as p
from sendense.nbd import read as reading
from sendense.nbd.address import Address
from sendense.nbd.connection import Connection, ExportInfo
from sendense.nbd.read import Part, Read

TIMEOUT_SECONDS = 60.0  # a loaded hypervisor answers within seconds: after a minute it is gone
FLUSH_SECONDS_MAX = 1800.0  # a page cache full of writes on a slow disk; also zeros not punched
STATUS_BYTES_MAX = units.GIB  # one question about extents; longer ones keep some servers busy
STATUS_REPLY_BYTES_MAX = 16 * units.MIB  # 2 million extents, for a GiB of 512-byte sectors
ERROR_BYTES_MAX = 64 * units.KIB  # of an error's text
ASKED_MAX = 64  # requests sent before an answer is read: far less than any socket's buffer holds
READ_DEPTH = 4  # for a read longer than the server takes at once
CHUNKS_PER_REQUEST_MAX = 1 << 16  # of one structured reply: one per sector of a 32 MiB read


class Client:
    """An open export. One thread at a time, except that any thread may `close`.

    After any error the connection is of no further use: close it.
    """

    def __init__(self, connection: Connection, address: Address, info: ExportInfo) -> None:
        self._connection = connection
        self._address = address
        self._info = info
        self._cookie = 0
        self._asked: dict[int, Part] = {}
        self._unsent: Iterator[Part] = iter(())

    @classmethod
    def connect(
        cls,
        address: Address,
        *,
        contexts: Sequence[str] = (),
        timeout_seconds: float = TIMEOUT_SECONDS,
        tls: ssl.SSLContext | None = None,
    ) -> Self:
        """Open an export.

        Args:
            address: the server and the export.
            contexts: metadata contexts wanted for `list_extents`; which of them the server
                offers, `contexts` tells.
            timeout_seconds: limit of every single wait for the server.
            tls: demands TLS, and says whom to trust.

        Raises Unavailable, NotFound (kind `export-unknown`), Denied or ProtocolError.
        """
        connection = Connection.open(address, timeout_seconds=timeout_seconds, tls=tls)
        try:
            info = connection.go(address.export, contexts)
        except BaseException:
            connection.close()
            raise
        return cls(connection, address, info)

    @property
    def size_bytes(self) -> int:
        """Size of the export."""
        return self._info.size_bytes

    @property
    def contexts(self) -> frozenset[str]:
        """Names of the metadata contexts that were asked for and are offered."""
        return frozenset(self._info.contexts)

    @property
    def is_read_only(self) -> bool:
        """Whether the server refuses to write."""
        return bool(self._info.flags & p.EXPORT_READ_ONLY)

    @property
    def can_multi_conn(self) -> bool:
        """Whether what one connection wrote and flushed is seen by all others."""
        return bool(self._info.flags & p.EXPORT_MULTI_CONN)

    @property
    def block_size_min(self) -> int:
        """The server's unit. Reads are rounded out to it; writes must be multiples of it."""
        return self._info.block_size_min

    @property
    def block_size_max(self) -> int:
        """Longest read or write that one request may ask for; a multiple of the minimum."""
        return self._info.block_size_max

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; a thread waiting in another method gets Unavailable."""
        self._connection.close()

    # Reading.

    def read(self, offset: int, length: int) -> bytearray:
        """Return `length` bytes. Raises Invalid outside the export, and as `read_many`."""
        return next(iter(self.read_many([(offset, length)], depth=READ_DEPTH)))[1]

    def read_many(
        self, requests: Iterable[tuple[int, int]], *, depth: int
    ) -> Iterator[tuple[int, bytearray]]:
        """Read many (offset, length); yield (offset, bytes) as they complete, in any order.

        What is longer than the server takes at once is asked for in parts. At most `depth` of
        them are in flight, and one more result than that is held. Exhaust the iterator or close
        the client: between, the connection carries replies that nobody else understands.

        Raises Unavailable (kind `nbd-read-error` where the server could not read), ProtocolError.
        """
        assert depth >= 1, f"{depth} requests in flight"
        waiting: dict[int, Part] = {}
        parts = itertools.chain.from_iterable(
            itertools.starmap(self._cut, self._allocate(requests))
        )
        while True:
            self._connection.expect_answer()
            while len(waiting) < depth and (part := next(parts, None)) is not None:
                waiting[self._send(p.CMD_READ, part.offset, part.length)] = part
            if not waiting:
                return
            read = self._receive_part(waiting)
            if not read.parts_left:
                assert isinstance(read.into, bytearray), "as it was allocated"
                yield read.offset, read.into

    def ask(self, requests: Iterable[tuple[int, memoryview]]) -> None:
        """Ask for the bytes of each view from its offset on, without waiting: see `receive`.

        Nothing else may be asked for until they are received. Raises as `read_many`.
        """
        assert not self._asked, "what was asked for before is to be received first"
        self._connection.expect_answer()
        self._unsent = itertools.chain.from_iterable(itertools.starmap(self._cut, requests))
        self._send_asked()

    def receive(self) -> None:
        """Wait for all that was asked for. Raises as `read_many`; then views hold anything."""
        while self._asked:
            self._connection.expect_answer()
            self._receive_part(self._asked)
            self._send_asked()

    def _send_asked(self) -> None:
        """Send what may be in flight, all at once: each message wakes the server."""
        heads = []
        while len(self._asked) < ASKED_MAX and (part := next(self._unsent, None)) is not None:
            cookie, head = self._head(p.CMD_READ, part.offset, part.length)
            self._asked[cookie] = part
            heads.append(head)
        if heads:
            self._connection.send(b"".join(heads))

    def _allocate(self, requests: Iterable[tuple[int, int]]) -> Iterator[tuple[int, bytearray]]:
        for offset, length in requests:
            self._check_request(offset, length)
            yield offset, bytearray(length)

    def _receive_part(self, waiting: dict[int, Part]) -> Read:
        """Receive one request's answer; return its read, which may be finished now."""
        ended = waiting.pop(self._receive_answer(waiting))
        self._check_whole(ended)
        ended.read.parts_left -= 1
        if not ended.read.parts_left:
            ended.read.finish()
        return ended.read

    def _cut(self, offset: int, into: bytearray | memoryview) -> list[Part]:
        self._check_request(offset, len(into))
        return reading.cut(
            offset, into, unit=self.block_size_min, most=self.block_size_max, size=self.size_bytes
        )

    def _receive_answer(self, waiting: dict[int, Part]) -> int:
        """Receive until one of the requests is answered; return its cookie."""
        while True:
            ended = self._receive_chunk_of(waiting)
            if ended is not None:
                return ended
            self._connection.check_patience()

    def _receive_chunk_of(self, waiting: dict[int, Part]) -> int | None:
        """Receive one reply or chunk; return the cookie of a request that it ends."""
        (magic,) = p.REPLY_HEAD.unpack(self._connection.receive(p.REPLY_HEAD.size))
        if magic == p.SIMPLE_REPLY_MAGIC and not self._info.structured:
            return self._receive_simple(waiting)
        if magic != p.CHUNK_MAGIC:
            raise self._connection.broken(f"sent a reply with the magic {magic:#x}")
        flags, kind, cookie, length = p.CHUNK.unpack(self._connection.receive(p.CHUNK.size))
        part = self._find(waiting, cookie)
        part.chunks += 1
        if part.chunks > CHUNKS_PER_REQUEST_MAX:
            raise self._connection.broken("does not come to an end with a read")
        if kind == p.CHUNK_OFFSET_DATA:
            self._receive_data(part, length)
        elif kind == p.CHUNK_OFFSET_HOLE:
            self._receive_hole(part, length)
        elif kind & p.CHUNK_ERROR:
            part.failure = part.failure or self._receive_error(length, f"read at {part.offset}")
        elif kind != p.CHUNK_NONE or length:
            raise self._connection.broken(f"sent a chunk of type {kind} for a read")
        return cookie if flags & p.CHUNK_FLAG_DONE else None

    def _receive_simple(self, waiting: dict[int, Part]) -> int:
        code, cookie = p.SIMPLE_REPLY.unpack(self._connection.receive(p.SIMPLE_REPLY.size))
        part = self._find(waiting, cookie)
        if code:
            part.failure = self._failure(code, f"read at {part.offset}", "")
        else:
            self._connection.receive_into(self._place(part, part.offset, part.length))
        return int(cookie)

    def _receive_data(self, part: Part, length: int) -> None:
        size = length - p.U64.size
        if not 0 < size <= part.length:
            raise self._connection.broken(f"sent a chunk of {length} bytes for a read")
        (offset,) = p.U64.unpack(self._connection.receive(p.U64.size))
        self._connection.receive_into(self._place(part, offset, size))

    def _receive_hole(self, part: Part, length: int) -> None:
        if length != p.HOLE.size:
            raise self._connection.broken(f"sent a hole of {length} bytes")
        offset, size = p.HOLE.unpack(self._connection.receive(p.HOLE.size))
        self._place(part, offset, size)[:] = bytes(size)  # the memory may have been used before

    def _place(self, part: Part, offset: int, size: int) -> memoryview:
        view = part.place(offset, size)
        if view is None:
            raise self._connection.broken(
                f"sent {size} bytes at {offset}, more than was asked for at {part.offset}"
            )
        return view

    def _check_whole(self, part: Part) -> None:
        if part.failure is not None:
            raise part.failure
        if part.bytes_left:
            raise self._connection.broken(
                f"left out {part.bytes_left} bytes of a read at {part.offset}"
            )
        # As many bytes came as were asked for: none is missing unless some came twice.
        if len(part.placed) > 1 and part.has_doubles():
            raise self._connection.broken(f"sent bytes of a read at {part.offset} twice")

    def _find(self, waiting: dict[int, Part], cookie: int) -> Part:
        part = waiting.get(cookie)
        if part is None:
            raise self._connection.broken("answers a request that nobody made")
        return part

    # Extents.

    def list_allocated(self) -> Iterator[Extent]:
        """Yield extents that cover the export in order; `zero` where it reads as zeros.

        A hole that the server does not promise to be zeros must be read. Where it offers no
        allocation at all, everything must be.
        """
        if p.ALLOCATION not in self._info.contexts:
            if self.size_bytes:
                yield Extent(0, self.size_bytes)
            return
        for start, length, flags in self.list_extents(p.ALLOCATION):
            yield Extent(start, length, zero=bool(flags & p.ALLOCATION_ZERO))

    def list_extents(
        self, context: str, *, start: int = 0, end: int | None = None
    ) -> Iterator[tuple[int, int, int]]:
        """Yield (start, length, flags) in order, without gaps, as a context describes them.

        Raises NotFound, kind `context-unknown`, where the server does not offer the context;
        Unavailable and ProtocolError.
        """
        if context not in self._info.contexts:
            raise NotFound(
                f"export {self._address.export!r} has no metadata context {context}",
                kind="context-unknown",
            )
        limit = self.size_bytes if end is None else end
        while start < limit:
            position = units.align_down(start, self.block_size_min)
            length = units.align_up(min(limit - position, STATUS_BYTES_MAX), self.block_size_min)
            length = min(length, self.size_bytes - position)
            for extent_length, flags in self._ask_status(context, position, length):
                # The first extent may begin before `start`, as blocks do; the last may reach
                # behind what was asked, even behind the export.
                begin, position = max(position, start), position + extent_length
                if begin < min(position, limit):
                    yield begin, min(position, limit) - begin, flags
            if position <= start:
                raise self._connection.broken(f"did not tell the block status at {start}")
            start = position

    def _ask_status(self, context: str, offset: int, length: int) -> list[tuple[int, int]]:
        """Return (length, flags) from `offset` on; they may end before `length`."""
        self._connection.expect_answer()
        cookie = self._send(p.CMD_BLOCK_STATUS, offset, length)
        found: list[tuple[int, int]] = []
        failure: SendenseError | None = None
        done = False
        for _ in range(CHUNKS_PER_REQUEST_MAX):
            kind, payload, done = self._receive_chunk(cookie, f"block status at {offset}")
            if isinstance(payload, SendenseError):
                failure = failure or payload
            elif kind == p.CHUNK_BLOCK_STATUS:
                number, extents = self._parse_status(payload)
                if number == self._info.contexts[context]:
                    if found:
                        raise self._connection.broken(f"told the block status at {offset} twice")
                    found = extents
            if done:
                break
        if failure is not None:
            raise failure
        if not done or not found:
            raise self._connection.broken(f"did not tell the block status at {offset}")
        return found

    def _parse_status(self, payload: bytes) -> tuple[int, list[tuple[int, int]]]:
        size = len(payload) - p.U32.size
        if size < p.STATUS.size or size % p.STATUS.size:
            raise self._connection.broken(f"sent a block status of {len(payload)} bytes")
        (number,) = p.U32.unpack_from(payload)
        extents = list(p.STATUS.iter_unpack(payload[p.U32.size :]))
        if any(length == 0 for length, _ in extents):
            raise self._connection.broken("sent an extent of no length")
        return number, extents

    # Writing.

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write bytes, in requests as long as the server takes; durable after `flush`.

        Raises NoSpace, Denied (read-only), Invalid outside the export, and Unavailable.
        """
        view = memoryview(data)
        self._check_request(offset, len(view))
        self._require_writable(offset, len(view))
        for begin in range(0, len(view), self.block_size_max):
            part = view[begin : begin + self.block_size_max]
            self._command(p.CMD_WRITE, offset + begin, len(part), part)

    def zero(self, offset: int, length: int) -> None:
        """Write zeros without sending them. Raises as `write`."""
        self._in_parts(p.CMD_WRITE_ZEROES, p.EXPORT_WRITE_ZEROES, offset, length)

    def trim(self, offset: int, length: int) -> None:
        """Say that a range is not needed; it may read as anything. Raises as `write`."""
        self._in_parts(p.CMD_TRIM, p.EXPORT_TRIM, offset, length)

    def flush(self) -> None:
        """Make durable what was written. Raises as `write`."""
        if self._info.flags & p.EXPORT_FLUSH:
            with self._connection.patient(FLUSH_SECONDS_MAX):
                self._command(p.CMD_FLUSH, 0, 0)

    def _in_parts(self, command: int, flag: int, offset: int, length: int) -> None:
        self._check_request(offset, length)
        self._require_writable(offset, length)
        if not self._info.flags & flag:
            raise Invalid(f"export {self._address.export!r} cannot do this", kind="nbd-unable")
        end = offset + length
        while offset < end:
            part = min(end - offset, STATUS_BYTES_MAX)
            with self._connection.patient(FLUSH_SECONDS_MAX):
                self._command(command, offset, part)
            offset += part

    def _command(
        self, command: int, offset: int, length: int, data: memoryview | None = None
    ) -> None:
        """Send a command that is answered without data, and wait for it."""
        what = f"command {command} at {offset}"
        self._connection.expect_answer()
        cookie = self._send(command, offset, length, data)
        (magic,) = p.REPLY_HEAD.unpack(self._connection.receive(p.REPLY_HEAD.size))
        if magic == p.SIMPLE_REPLY_MAGIC:
            code, answered = p.SIMPLE_REPLY.unpack(self._connection.receive(p.SIMPLE_REPLY.size))
            if answered != cookie:
                raise self._connection.broken("answers a request that nobody made")
            if code:
                raise self._failure(code, what, "")
            return
        failure: SendenseError | None = None
        for _ in range(CHUNKS_PER_REQUEST_MAX):
            _, payload, done = self._receive_chunk(cookie, what, magic=magic)
            if isinstance(payload, SendenseError):
                failure = failure or payload
            if done:
                if failure is not None:
                    raise failure
                return
            (magic,) = p.REPLY_HEAD.unpack(self._connection.receive(p.REPLY_HEAD.size))
        raise self._connection.broken(f"does not come to an end with {what}")

    # Requests and replies.

    def _require_writable(self, offset: int, length: int) -> None:
        if self.is_read_only:
            raise Denied(f"export {self._address.export!r} is read-only", kind="nbd-read-only")
        end = offset + length
        for edge in (offset, end if end != self.size_bytes else 0):
            if edge % self.block_size_min:
                raise Invalid(
                    f"{length} bytes at {offset} are no blocks of {self.block_size_min} bytes",
                    kind="nbd-out-of-range",
                )

    def _check_request(self, offset: int, length: int) -> None:
        if length <= 0 or offset < 0 or offset + length > self.size_bytes:
            raise Invalid(
                f"{length} bytes at {offset} are not within the {self.size_bytes} of the export",
                kind="nbd-out-of-range",
            )

    def _send(self, command: int, offset: int, length: int, data: memoryview | None = None) -> int:
        cookie, head = self._head(command, offset, length)
        if data is None:
            self._connection.send(head)
        else:
            self._connection.send(head, data)
        return cookie

    def _head(self, command: int, offset: int, length: int) -> tuple[int, bytes]:
        """Return the cookie and the bytes of a request."""
        self._cookie += 1
        head = p.REQUEST.pack(p.REQUEST_MAGIC, 0, command, self._cookie, offset, length)
        return self._cookie, head

    def _receive_chunk(
        self, cookie: int, what: str, *, magic: int | None = None
    ) -> tuple[int, bytes | SendenseError, bool]:
        """Receive one chunk of the only request in flight: its type, its payload, and if last."""
        if magic is None:
            (magic,) = p.REPLY_HEAD.unpack(self._connection.receive(p.REPLY_HEAD.size))
        if magic != p.CHUNK_MAGIC:
            raise self._connection.broken(f"sent a reply with the magic {magic:#x}")
        flags, kind, answered, length = p.CHUNK.unpack(self._connection.receive(p.CHUNK.size))
        if answered != cookie:
            raise self._connection.broken("answers a request that nobody made")
        done = bool(flags & p.CHUNK_FLAG_DONE)
        if not done:
            self._connection.check_patience()
        if kind & p.CHUNK_ERROR:
            return kind, self._receive_error(length, what), done
        if length > STATUS_REPLY_BYTES_MAX:
            raise self._connection.broken(f"sent a chunk of {length} bytes")
        return kind, self._connection.receive(length), done

    def _receive_error(self, length: int, what: str) -> SendenseError:
        if not p.U32.size <= length <= ERROR_BYTES_MAX:
            raise self._connection.broken(f"sent an error of {length} bytes")
        payload = self._connection.receive(length)
        (code,) = p.U32.unpack_from(payload)
        text = payload[p.U32.size + p.U16.size :].decode(errors="replace")
        return self._failure(code, what, text)

    def _failure(self, code: int, what: str, said: str) -> SendenseError:
        message = f"the source cannot answer {what}: error {code} {said}".strip()
        if code == p.ERROR_NO_SPACE:
            return NoSpace(message)
        if code == p.ERROR_PERM:
            return Denied(message, kind="nbd-read-only")
        return Unavailable(message, kind="nbd-read-error")


def list_exports(address: Address, *, timeout_seconds: float = TIMEOUT_SECONDS) -> list[str]:
    """Return the names of a server's exports. Raises Unavailable, Denied or ProtocolError."""
    connection = Connection.open(address, timeout_seconds=timeout_seconds)
    try:
        return connection.list_exports()
    finally:
        connection.close()
