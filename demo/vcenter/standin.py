"""What the simulator cannot do, in front of it: change tracking, disk content, and trouble.

An HTTPS proxy that forwards every request to vcsim. Besides, it freezes the content of disks when a
snapshot is taken, gives the disks in a snapshot's configuration change ids, and answers
`QueryChangedDiskAreas` from what really differs. Trouble is put in by tests: faults, tasks that
fail, properties with other values, sessions that end, answers that are empty or late.
"""

import contextlib
import datetime as dt
import ipaddress
import re
import ssl
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from http.client import HTTPException, HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from demo.vcenter import soap
from demo.vcenter.content import Content, OutOfRange, Unknown

FORWARD_SECONDS_MAX = 120.0
IDLE_SECONDS_MAX = 600.0
_READS = ("RetrievePropertiesEx", "RetrieveProperties", "ContinueRetrievePropertiesEx", "Fetch")
_CHANGES = "QueryChangedDiskAreas"
_CREATES = ("CreateSnapshot_Task", "CreateSnapshotEx_Task")
_SESSION = re.compile(r'vmware_soap_session="?([^";]+)')
_DROPPED_HEADERS = ("content-length", "transfer-encoding", "connection")


@dataclass
class Trouble:
    """What is to go wrong; each entry is used up by one call."""

    faults: dict[str, deque[bytes]] = field(default_factory=dict)
    failing_tasks: dict[str, deque[Callable[[str], bytes]]] = field(default_factory=dict)
    delays: dict[str, float] = field(default_factory=dict)
    properties: dict[tuple[str, str], str | None] = field(default_factory=dict)
    # A session that has ended and answers with nothing, until somebody logs in again.
    is_empty: bool = False
    # Nobody answers: connections are taken, and end with the first request.
    is_away: bool = False
    # How many of a method's next calls do their work, and nobody learns of it.
    lost_answers: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Answer:
    """Status, headers and body."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class StandIn:
    """The proxy, listening on a free port of the loopback.

    Args:
        target_port: vcsim's.
        content: the disks.
        get_disks: asked for a VM's disk sizes by key, and whether it tracks changes.
        wait_task: returns the reference that a task ended with, "" where it ended well without
            one, or None where it failed.
    """

    def __init__(
        self,
        target_port: int,
        content: Content,
        get_disks: Callable[[str], tuple[dict[int, int], bool]],
        wait_task: Callable[[str], str | None],
    ) -> None:
        self.content = content
        self.trouble = Trouble()
        self.calls: Counter[str] = Counter()
        self.certificate_pem, key_pem = make_certificate()
        self._target_port = target_port
        self._get_disks = get_disks
        self._wait_task = wait_task
        self.snapshot_names: list[str] = []
        self._canned_tasks: dict[str, bytes] = {}
        self._lock = threading.Lock()  # of what all connections count and use up
        self._sessions: set[str] = set()
        self._local = threading.local()
        self._connections: set[HTTPSConnection] = set()
        self._server = _Server(("127.0.0.1", 0), _create_handler(self))
        self._server.socket = _wrap(self._server.socket, self.certificate_pem, key_pem)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        for connection in list(self._connections):
            connection.close()

    def hang_up(self) -> None:
        """Close this thread's connection to vcsim, because its client hung up."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            self._forget(connection)

    def _forget(self, connection: HTTPSConnection) -> None:
        connection.close()
        self._connections.discard(connection)
        self._local.connection = None

    def answer(
        self, command: str, path: str, headers: dict[str, str], body: bytes
    ) -> Answer | None:
        """Return what a request is answered with, or None to hang up instead."""
        if self.trouble.is_away:
            return None
        method = soap.find_method(body)
        with self._lock:
            self.calls[method] += 1
        time.sleep(self.trouble.delays.get(method, 0.0))
        with self._lock:
            canned = self._answer_canned(method, body)
        answer = (
            canned
            or self._refuse_strangers(method, headers)
            or (self._tell_changes(body) if method == _CHANGES else None)
            or self._forward(method, command, path, headers, body)
        )
        return None if self._loses(method) else answer

    def _loses(self, method: str) -> bool:
        with self._lock:
            is_lost = self.trouble.lost_answers[method] > 0
            self.trouble.lost_answers[method] -= is_lost
            return is_lost

    def _answer_canned(self, method: str, body: bytes) -> Answer | None:
        trouble = self.trouble
        if method == "Login":
            trouble.is_empty = False
        if trouble.is_empty and method in _READS:
            return _xml(soap.nothing_found(method))
        if trouble.faults.get(method):
            return _xml(trouble.faults[method].popleft(), status=500)
        if trouble.failing_tasks.get(method):
            moref = f"task-canned-{len(self._canned_tasks) + 1}"
            self._canned_tasks[moref] = trouble.failing_tasks[method].popleft()(moref)
            return _xml(soap.started_task(method, moref))
        for moref, canned in self._canned_tasks.items():
            if method in _READS and f">{moref}<".encode() in body:
                return _xml(canned)
        return None

    def expire(self) -> None:
        """Know no session any more."""
        with self._lock:
            self._sessions.clear()

    def _refuse_strangers(self, method: str, headers: dict[str, str]) -> Answer | None:
        """Refuse what vcsim tells everybody, and vCenter only who is logged in."""
        cookie = _SESSION.search(headers.get("Cookie", ""))
        key = cookie.group(1) if cookie else ""
        with self._lock:
            if method == "Logout":
                self._sessions.discard(key)
            if key in self._sessions or method not in {*_READS, _CHANGES}:
                return None
        text = "The session is not authenticated."
        return _xml(soap.fault("NotAuthenticated", text, privilegeId="System.View"), status=500)

    def _tell_changes(self, body: bytes) -> Answer:
        key, start = int(soap.find_field(body, "deviceKey")), soap.find_field(body, "startOffset")
        try:
            length, areas = self.content.list_changed(
                soap.find_field(body, "snapshot"),
                key,
                int(start),
                soap.find_field(body, "changeId"),
            )
        except Unknown:
            text = "Error caused by file /vmfs/volumes/datastore/disk-ctk.vmdk"
            return _xml(soap.fault("FileFault", text, file="disk-ctk.vmdk"), status=500)
        except OutOfRange:
            text = "A specified parameter was not correct: startOffset"
            fault = soap.fault("InvalidArgument", text, invalidProperty="startOffset")
            return _xml(fault, status=500)
        return _xml(soap.changed_areas(int(start), length, areas))

    def _forward(
        self, method: str, command: str, path: str, headers: dict[str, str], body: bytes
    ) -> Answer:
        answer = self._send(command, path, headers, body)
        if answer.status != HTTPStatus.OK:
            return answer
        if method in _READS:
            return replace(answer, body=self._change_properties(body, answer.body))
        if method == "Login":
            self._remember(answer)
        else:
            self._follow(method, body, answer.body)
        return answer

    def _follow(self, method: str, body: bytes, answer: bytes) -> None:
        """Do to the disks what vcsim did to the VM."""
        this, task = soap.find_field(body, "_this"), soap.find_field(answer, "returnval")
        if method in _CREATES:
            self.snapshot_names.append(soap.find_field(body, "name"))
            self._freeze(this, task)
        elif method == "RemoveSnapshot_Task":
            if self._wait_task(task) is not None:
                self.content.drop(this)
        elif method == "RevertToSnapshot_Task":
            if self._wait_task(task) is not None:
                self.content.revert(self.content.get_owner(this), this)
        elif soap.find_field(body, "changeTrackingEnabled") in {"false", "0"}:
            self.content.forget(this)

    def _remember(self, answer: Answer) -> None:
        cookies = (text for name, text in answer.headers if name.lower() == "set-cookie")
        with self._lock:
            self._sessions.update(one for text in cookies for one in _SESSION.findall(text))

    def _freeze(self, vm: str, task: str) -> None:
        with self.content.lock:  # nothing is written between the snapshot and its content
            snapshot = self._wait_task(task)
            if snapshot:
                sizes, tracks = self._get_disks(vm)
                self.content.freeze(vm, snapshot, sizes, tracks=tracks)

    def _change_properties(self, body: bytes, data: bytes) -> bytes:
        if b'type="VirtualMachineSnapshot"' not in data and not self.trouble.properties:
            return data  # a thousand VMs are not looked through for nothing
        morefs = soap.list_morefs(data)
        for moref in morefs:
            if moref.startswith("snapshot-"):
                data = soap.put_change_ids(data, moref, self.content.find_change_ids(moref))
        for (moref, path), value in self.trouble.properties.items():
            asked = f"<pathSet>{path}</pathSet>".encode() in body or b"<token>" in body
            if moref in morefs and asked:
                data = soap.put_property(data, moref, path, value)
        return data

    def _send(self, command: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """Pass a request on, by the connection of this thread; vcsim may have closed it."""
        for is_last in (False, True):
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = HTTPSConnection(
                    "127.0.0.1",
                    self._target_port,
                    context=_trust_anybody(),  # the loopback of a simulator
                    timeout=FORWARD_SECONDS_MAX,
                )
                self._local.connection = connection
                self._connections.add(connection)
            try:
                connection.request(command, path, body, headers)
                got = connection.getresponse()
                kept = [
                    (name, value)
                    for name, value in got.getheaders()
                    if name.lower() not in _DROPPED_HEADERS
                ]
                return Answer(got.status, kept, got.read())
            except (OSError, HTTPException):
                self._forget(connection)
                if is_last:
                    raise
        raise AssertionError("the last attempt returns or raises")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """Say nothing: clients that do not trust the certificate hang up, as tests want."""


def _create_handler(owner: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = IDLE_SECONDS_MAX
        disable_nagle_algorithm = True
        wbufsize = -1  # headers and body in one segment

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {
                name: value
                for name, value in self.headers.items()
                if name.lower() not in {"accept-encoding", "content-length", "connection"}
            }
            answer = owner.answer(self.command, self.path, headers, body)
            if answer is None:
                self.close_connection = True
                return
            with contextlib.suppress(ConnectionError):
                self.send_response_only(answer.status)
                for name, value in answer.headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)
                self.wfile.flush()

        do_GET = do_POST  # noqa: N815 - the base class's name

        def finish(self) -> None:
            owner.hang_up()
            with contextlib.suppress(OSError):  # what is left unsent has no reader any more
                super().finish()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


def make_certificate() -> tuple[str, str]:
    """Return a certificate for the loopback, signed by itself, and its key, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vcsim")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=30))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode(),
    )


def _wrap(listener: object, certificate_pem: str, key_pem: str) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "both.pem"
        path.touch(mode=0o600)
        path.write_text(certificate_pem + key_pem)
        context.load_cert_chain(path)
    # The handshake belongs to the thread of the connection: one that is slow stops nobody else.
    return context.wrap_socket(listener, server_side=True, do_handshake_on_connect=False)  # type: ignore[arg-type]


def _trust_anybody() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _xml(body: bytes, *, status: int = 200) -> Answer:
    return Answer(status, [("Content-Type", "text/xml; charset=utf-8")], body)
