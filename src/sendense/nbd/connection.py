"""One socket to an NBD server: connect, negotiate an export, send and receive whole messages.

Everything that comes from the peer is bounded before memory is given to it, every wait has a
limit, and every failure of the socket is Unavailable.
"""

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sendense.core import units
from sendense.core.errors import Denied, NotFound, ProtocolError, SendenseError, Unavailable
from sendense.nbd import protocol as p
from sendense.nbd.address import Address

REPLY_BYTES_MAX = 32 * units.MIB  # the protocol asks every server to bear this much, and no more
OPTION_BYTES_MAX = units.MIB  # of one reply while negotiating; real ones take some hundred bytes
OPTION_REPLIES_MAX = 10_000  # of one option: a server may list that many exports
RECEIVE_BUFFER_BYTES = 4 * units.MIB  # measured: some requests of 1 MiB wait in it without a stall
EXPORT_BYTES_MAX = (1 << 63) - 1  # the protocol's limit, and that of every file system
ANSWER_PATIENCE = 10  # times the limit of a wait: a server that trickles is not alive for ever
_TEXT_SHOWN_MAX = 200  # of what a server says in its own words


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """What the server says about the export that was opened.

    Attributes:
        flags: transmission flags of the protocol.
        contexts: ids of the metadata contexts that it agreed to, by name.
        structured: it answers with structured replies.
    """

    size_bytes: int
    flags: int
    block_size_min: int = 1
    block_size_preferred: int = 4096
    block_size_max: int = REPLY_BYTES_MAX
    structured: bool = False
    contexts: dict[str, int] = field(default_factory=dict)


class Connection:
    """A connected socket. Used by one thread; only `close` may come from another."""

    def __init__(self, connected: socket.socket, peer: str, *, timeout_seconds: float) -> None:
        self._socket = connected
        self._peer = peer
        self._timeout_seconds = timeout_seconds
        self._answer_seconds_max = ANSWER_PATIENCE * timeout_seconds
        self._answer_by = time.monotonic() + self._answer_seconds_max
        self._closed = threading.Event()

    @classmethod
    def open(
        cls, address: Address, *, timeout_seconds: float, tls: ssl.SSLContext | None = None
    ) -> "Connection":
        """Connect, greet and agree on TLS. Raises Unavailable, ProtocolError or Denied."""
        peer = address.socket_path or f"{address.host}:{address.port}"
        try:
            connected = _connect(address, timeout_seconds)
        except (OSError, UnicodeError) as error:  # the latter for a name that can be no host's
            reason = getattr(error, "strerror", None) or error
            raise Unavailable(
                f"NBD server {peer} cannot be reached: {reason}", kind="nbd-unreachable"
            ) from error
        connection = cls(connected, peer, timeout_seconds=timeout_seconds)
        try:
            connection._greet()
            if tls is not None:
                connection._start_tls(tls, address)
        except BaseException:
            connection.close()
            raise
        return connection

    # Bytes.

    def expect_answer(self) -> None:
        """Begin to wait for an answer, which must be whole within ANSWER_PATIENCE waits."""
        self._answer_by = time.monotonic() + self._answer_seconds_max

    @contextlib.contextmanager
    def patient(self, seconds: float) -> Iterator[None]:
        """Wait longer for answers within the context."""
        before = self._answer_seconds_max
        self._answer_seconds_max = max(seconds, before)
        try:
            with contextlib.suppress(OSError):  # closed; what follows will say so
                self._socket.settimeout(max(seconds, self._timeout_seconds))
            yield
        finally:
            self._answer_seconds_max = before
            with contextlib.suppress(OSError):
                self._socket.settimeout(self._timeout_seconds)

    def send(self, *parts: bytes | bytearray | memoryview) -> None:
        """Send all parts. Raises Unavailable where the server goes away or stops to take them."""
        for part in parts:
            view, done = memoryview(part), 0
            while done < len(view):
                try:
                    # Not sendall: the limit of a wait would be that of the whole.
                    done += self._socket.send(view[done:])
                except (OSError, ValueError) as error:
                    raise self._lost(error) from error
                if done < len(view):
                    self.check_patience()

    def receive_into(self, view: memoryview) -> None:
        """Fill the view. Raises Unavailable where the server goes away or is silent too long."""
        done = 0
        while done < len(view):
            try:
                count = self._socket.recv_into(view[done:])
            except (OSError, ValueError) as error:
                raise self._lost(error) from error
            if count == 0:
                raise self._lost(None)
            done += count
            if done < len(view):
                self.check_patience()

    def check_patience(self) -> None:
        """Raise Unavailable where the answer has not been whole for too long."""
        if time.monotonic() > self._answer_by:
            raise self._lost(TimeoutError())

    def receive(self, length: int) -> bytes:
        """Return exactly `length` bytes; the caller has bounded it."""
        data = bytearray(length)
        self.receive_into(memoryview(data))
        return bytes(data)

    def close(self) -> None:
        """Close; a thread that waits in another method gets Unavailable. Idempotent."""
        if self._closed.is_set():
            return
        self._closed.set()
        with contextlib.suppress(OSError):
            # Closing alone would not wake a thread that waits in recv.
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _lost(self, error: Exception | None) -> Unavailable:
        if self._closed.is_set():
            return Unavailable("the NBD connection was closed", kind="nbd-closed")
        if isinstance(error, TimeoutError):
            why = "does not answer any more"
        else:
            why = f"went away: {error}" if error else "closed the connection"
        return Unavailable(f"NBD server {self._peer} {why}", kind="nbd-lost")

    def broken(self, what: str) -> ProtocolError:
        """Return the error for a peer that broke the protocol."""
        return ProtocolError(f"NBD server {self._peer} {what}", kind="nbd-protocol")

    # Negotiation.

    def list_exports(self) -> list[str]:
        """Return the names of all exports. The connection is of no further use for data."""
        names = []
        for kind, payload in self._ask(p.OPT_LIST):
            if kind & p.REP_ERROR:
                raise self._refused("does not list its exports", kind, payload)
            if kind == p.REP_SERVER:
                names.append(self._parse_name(payload))
        self.send(p.OPTION_HEAD.pack(p.OPTION_MAGIC, p.OPT_ABORT, 0))
        return names

    def go(self, export: str, contexts: Sequence[str]) -> ExportInfo:
        """Open an export with those of the contexts that it offers.

        Raises NotFound, kind `export-unknown`, Denied and ProtocolError.
        """
        name = export.encode()
        structured = self._ask(p.OPT_STRUCTURED_REPLY)[-1][0] == p.REP_ACK
        agreed = self._agree_on_contexts(name, contexts) if structured and contexts else {}
        wanted = struct.pack(">HH", 1, p.INFO_BLOCK_SIZE)
        size: int | None = None
        flags = 0
        sizes = (1, 4096, REPLY_BYTES_MAX)
        for kind, payload in self._ask(p.OPT_GO, p.U32.pack(len(name)) + name + wanted):
            if kind == p.REP_ERR_UNKNOWN:
                raise NotFound(
                    f"NBD server {self._peer} has no export {export!r}", kind="export-unknown"
                )
            if kind & p.REP_ERROR:
                raise self._refused(f"refuses export {export!r}", kind, payload)
            if kind == p.REP_INFO and len(payload) >= p.U16.size:
                (info,) = p.U16.unpack_from(payload)
                if info == p.INFO_EXPORT and len(payload) == p.EXPORT_INFO.size:
                    _, size, flags = p.EXPORT_INFO.unpack(payload)
                elif info == p.INFO_BLOCK_SIZE and len(payload) == p.BLOCK_SIZE_INFO.size:
                    sizes = self._check_block_sizes(p.BLOCK_SIZE_INFO.unpack(payload)[1:])
        if size is None:
            raise self.broken(f"did not tell the size of export {export!r}")
        if size > EXPORT_BYTES_MAX:
            raise self.broken(f"claims that export {export!r} is {size} bytes long")
        return ExportInfo(size, flags, *sizes, structured=structured, contexts=agreed)

    def _greet(self) -> None:
        if self.receive(len(p.GREETING)) != p.GREETING:
            raise self.broken("is no NBD server of the newstyle handshake")
        (flags,) = p.U16.unpack(self.receive(p.U16.size))
        if not flags & p.HANDSHAKE_FIXED_NEWSTYLE:
            raise self.broken("does not know the fixed newstyle handshake")
        self.send(p.U32.pack(flags & (p.HANDSHAKE_FIXED_NEWSTYLE | p.HANDSHAKE_NO_ZEROES)))

    def _start_tls(self, tls: ssl.SSLContext, address: Address) -> None:
        kind, payload = self._ask(p.OPT_STARTTLS)[-1]
        if kind != p.REP_ACK:
            raise self._refused("offers no TLS", kind, payload)
        try:
            self._socket = tls.wrap_socket(self._socket, server_hostname=address.host)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            raise self._lost(error) from error
        except ssl.SSLError as error:
            raise Denied(
                f"no trusted TLS connection to NBD server {self._peer}: {error.reason}",
                kind="nbd-tls",
            ) from error
        except OSError as error:
            raise self._lost(error) from error

    def _agree_on_contexts(self, name: bytes, contexts: Sequence[str]) -> dict[str, int]:
        queries = [context.encode() for context in contexts]
        data = p.U32.pack(len(name)) + name + p.U32.pack(len(queries))
        data += b"".join(p.U32.pack(len(query)) + query for query in queries)
        agreed = {}
        for kind, payload in self._ask(p.OPT_SET_META, data):
            if kind == p.REP_META_CONTEXT:
                if len(payload) < p.U32.size:
                    raise self.broken("sent a metadata context without an id")
                (number,) = p.U32.unpack_from(payload)
                agreed[payload[p.U32.size :].decode(errors="replace")] = number
        return agreed

    def _ask(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Return all replies to an option; the last is an ACK or an error."""
        self.expect_answer()
        self.send(p.OPTION_HEAD.pack(p.OPTION_MAGIC, option, len(data)) + data)
        replies: list[tuple[int, bytes]] = []
        while len(replies) < OPTION_REPLIES_MAX:
            head = self.receive(p.OPTION_REPLY.size)
            magic, echoed, kind, length = p.OPTION_REPLY.unpack(head)
            if magic != p.OPTION_REPLY_MAGIC or echoed != option:
                raise self.broken("answers another option than it was asked")
            if length > OPTION_BYTES_MAX:
                raise self.broken(f"answers an option with {length} bytes")
            replies.append((kind, self.receive(length)))
            if kind == p.REP_ACK or kind & p.REP_ERROR:
                return replies
            self.check_patience()
        raise self.broken("does not come to an end while negotiating")

    def _check_block_sizes(self, sizes: tuple[int, ...]) -> tuple[int, int, int]:
        least, preferred, most = sizes
        if least == 0 or least & (least - 1) or least > units.MIB or most < least:
            raise self.broken(f"demands blocks of {least} to {most} bytes")
        return least, preferred, units.align_down(min(most, REPLY_BYTES_MAX), least)

    def _parse_name(self, payload: bytes) -> str:
        length = p.U32.unpack_from(payload)[0] if len(payload) >= p.U32.size else -1
        if not 0 <= length <= len(payload) - p.U32.size:
            raise self.broken("sent an export without a name")
        return payload[p.U32.size : p.U32.size + length].decode(errors="replace")

    def _refused(self, what: str, kind: int, payload: bytes) -> SendenseError:
        said = payload[:_TEXT_SHOWN_MAX].decode(errors="replace")
        message = f"NBD server {self._peer} {what}: {said or hex(kind)}"
        if kind in {p.REP_ERR_POLICY, p.REP_ERR_TLS_REQUIRED}:
            return Denied(message, kind="nbd-denied")
        return ProtocolError(message, kind="nbd-refused")


def _connect(address: Address, timeout_seconds: float) -> socket.socket:
    if address.socket_path is None:
        connected = socket.create_connection((address.host, address.port), timeout=timeout_seconds)
    else:
        connected = socket.socket(socket.AF_UNIX)
        try:
            connected.settimeout(timeout_seconds)
            connected.connect(address.socket_path)
        except BaseException:
            connected.close()
            raise
    with contextlib.suppress(OSError):  # smaller buffers are only slower
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        if address.socket_path is None:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected
