"""One logged-in session with a vCenter or an ESXi host. Rules 1 and 2 of the sources' design.

Actions get a `Login` and name objects by their references: a login that expired is replaced, and
whatever was bound to it is of no use any more.
"""

import contextlib
import math
import ssl
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.client import HTTPException, HTTPSConnection
from typing import Any, Self, TypeVar

from pyVmomi import vim, vmodl
from pyVmomi.SoapAdapter import SoapStubAdapter

from sendense.connectors import certificate
from sendense.connectors.vsphere import answers, failure
from sendense.connectors.vsphere.config import VsphereConfig
from sendense.connectors.vsphere.reader import vddk
from sendense.core.errors import Denied, SendenseError, Unavailable

# vSphere 6.5's: newer vCenters answer it, and nothing that came later is needed.
API_VERSION = "vim.version.version11"
CONNECT_SECONDS_MAX = 20.0  # a host that is away, or a firewall, does not answer at all
ANSWER_SECONDS_MAX = 120.0  # for the next bytes of an answer; a busy vCenter thinks for a minute
# A connection that rested longer is not used again: whoever is in between may have closed it, and
# of a question that ends that way nobody knows whether vCenter acted on it.
REST_SECONDS_MAX = 10.0
# vCenter ends a session after 30 idle minutes, some load balancers after 10.
KEEP_ALIVE_SECONDS = 300.0
GOODBYE_SECONDS_MAX = 5.0
# vCenter locks a user out for minutes after five refused logins within three; jobs try again.
REFUSED_SECONDS = 60.0
# Answers of many objects, which are read by a reader of our own.
_RETRIEVALS = ("RetrievePropertiesEx", "ContinueRetrievePropertiesEx")

T = TypeVar("T")

# What a question can end with; answers that nobody understands are errors of ours already.
NO_ANSWER = (vmodl.MethodFault, OSError, HTTPException, SendenseError)


class _Connection(HTTPSConnection):
    """Waits less for the host than for what the host is asked to do."""

    def connect(self) -> None:
        answer_seconds_max, self.timeout = self.timeout, CONNECT_SECONDS_MAX
        try:
            super().connect()
        finally:
            self.timeout = answer_seconds_max
        self.sock.settimeout(answer_seconds_max)


class _Stub(SoapStubAdapter):
    """pyVmomi's own, with one kind of error for answers that it cannot parse."""

    def __init__(self, config: VsphereConfig) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            host=config.host,
            port=config.port,
            version=API_VERSION,
            sslContext=certificate.create_context(config.certificate_pem),
            httpConnectionTimeout=ANSWER_SECONDS_MAX,
            connectionPoolTimeout=REST_SECONDS_MAX,
        )
        self.scheme: Any = _Connection

    def InvokeMethod(  # noqa: N802 - pyVmomi's name
        self,
        mo: Any,
        info: Any,
        args: Any,
        outerStub: Any = None,  # noqa: N803
    ) -> Any:
        try:
            if info.name in _RETRIEVALS:
                return self._retrieve(mo, info, args)
            return super().InvokeMethod(mo, info, args, outerStub)  # type: ignore[no-untyped-call]
        except (vmodl.MethodFault, OSError, HTTPException):
            raise
        except Exception as error:  # its parser raises whatever it stumbles over
            raise failure.answer_not_understood(error) from error

    def _retrieve(self, mo: Any, info: Any, args: Any) -> Any:
        """Ask for properties as pyVmomi does, and have the answer read by `answers`.

        Raises what it raises. A session goes on by the cookie that its login was told.
        """
        this: Any = self
        headers = {
            "Cookie": this.cookie,
            "SOAPAction": this.versionId,
            "Content-Type": "text/xml; charset=UTF-8",
            "Accept-Encoding": "gzip",
            "User-Agent": "pyvmomi",  # what stands in between may refuse questions of nobody
        }
        connection = this.GetConnection()
        try:
            connection.request("POST", this.path, this.SerializeRequest(mo, info, args), headers)
            answer = connection.getresponse()
            told = answers.parse(this, answer, info.result)
            answer.read()  # to its end, or nothing else may be asked on this connection
        except BaseException:
            connection.close()
            this.DropConnections()
            raise
        this.ReturnConnection(connection)
        if answer.status == HTTPStatus.OK:
            return told
        raise told


def moref_of(managed: Any) -> str:
    """Return the reference of a managed object: `vm-16`."""
    return str(managed._moId)  # noqa: SLF001 - pyVmomi has no other name for it


class Login:
    """What an action may use while it runs."""

    def __init__(self, stub: SoapStubAdapter, content: Any) -> None:
        self._stub: Any = stub
        self.content = content

    def bind(self, kind: type, moref: str) -> Any:
        """Return a managed object by its reference; contacts nothing."""
        return kind(moref, self._stub)

    def hang_up(self) -> None:
        """Close all connections."""
        self._stub.DropConnections()

    def require_alive(self) -> None:
        """Raise NotAuthenticated where the session has ended; call it from an action.

        Rule 3: an ended session may answer questions with nothing at all instead of a fault.
        """
        if self.content.sessionManager.currentSession is None:
            raise vim.fault.NotAuthenticated


class Session:
    """Logs in at the first use, and again where the session was ended.

    Args:
        config: the password is sent only behind a certificate that it trusts.
        keep_alive_seconds: a session in use is asked for the time this often.
    """

    def __init__(
        self, config: VsphereConfig, *, keep_alive_seconds: float = KEEP_ALIVE_SECONDS
    ) -> None:
        self.config = config
        self._keep_alive_seconds = keep_alive_seconds
        self._lock = threading.Lock()
        self._login: Login | None = None
        self._refused_until = -math.inf
        self._closed = threading.Event()
        self._keeper: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, doing: str, action: Callable[[Login], T]) -> T:
        """Return what an action returns, logged in.

        Where the session turns out to have ended, another login follows and the action runs once
        more, from its start: vCenter did nothing of the call that it refused. Any number of threads
        may run actions. Raises errors of ours only; a fault is the `__cause__`.

        Args:
            doing: what the action does, for messages: "list the VMs".
            action: called once or twice.
        """
        for is_last in (False, True):
            login = self._enter(doing)
            try:
                return action(login)
            except vim.fault.NotAuthenticated as error:
                self._forget(login)
                if is_last:
                    raise failure.translate(error, doing=doing) from error
            except (vmodl.MethodFault, OSError, HTTPException) as error:
                raise self._explain(error, doing) from error
        raise AssertionError("the last attempt returns or raises")

    def describe(self) -> str:
        """Return the product that answers, in one line."""
        return self.run("ask for the version", lambda login: str(login.content.about.fullName))

    def close(self) -> None:
        """Log out, where the host still listens."""
        self._closed.set()
        with self._lock:
            login, self._login = self._login, None
        if self._keeper is not None:
            self._keeper.join(GOODBYE_SECONDS_MAX)
        if login is not None:
            _log_out(login)

    def _enter(self, doing: str) -> Login:
        with self._lock:
            if self._closed.is_set():  # nobody would log out again
                raise Unavailable(
                    f"cannot {doing}: the session was closed", kind="vsphere-session-lost"
                )
            if self._login is None:
                self._login = self._log_in(doing)
                self._keep()
            return self._login

    def _forget(self, login: Login) -> None:
        with self._lock:
            if self._login is login:
                self._login = None
        login.hang_up()

    def _log_in(self, doing: str) -> Login:
        config = self.config
        self._require_not_refused(doing)
        stub: Any = _Stub(config)
        try:
            content = _retrieve_content(stub)
            content.sessionManager.Login(config.username, config.password, None)
        except BaseException as error:
            stub.DropConnections()
            if isinstance(error, vim.fault.InvalidLogin):
                self._refused_until = time.monotonic() + REFUSED_SECONDS
            if isinstance(error, vmodl.MethodFault | OSError | HTTPException):
                raise self._explain(error, doing) from error
            raise
        return Login(stub, content)

    def _require_not_refused(self, doing: str) -> None:
        """Raise what the last login did, where that is short ago: the password is still wrong."""
        if time.monotonic() < self._refused_until:
            raise failure.translate(vim.fault.InvalidLogin(), doing=doing)

    def _explain(self, error: Exception, doing: str) -> SendenseError:
        # Each new connection looks at the certificate: it can be replaced at any time.
        if isinstance(error, ssl.SSLCertVerificationError):
            return _explain_certificate(self.config, doing=doing)
        return failure.translate(error, doing=doing)

    def _keep(self) -> None:
        if self._keeper is None:
            self._keeper = threading.Thread(
                target=self._keep_alive, name="vsphere-keep-alive", daemon=True
            )
            self._keeper.start()

    def _keep_alive(self) -> None:
        """Use the login now and then; one that does not bear it is left to its next user."""
        while not self._closed.wait(self._keep_alive_seconds):
            with self._lock:
                login = self._login
            if login is not None:
                with contextlib.suppress(*NO_ANSWER):
                    login.bind(vim.ServiceInstance, "ServiceInstance").CurrentTime()


def find_thumbprint(config: VsphereConfig) -> str:
    """Return the SHA-1 of the certificate that the host shows, for VDDK.

    Raises what `certificate.see` does, and Denied, kind `vsphere-certificate`.
    """
    seen = certificate.see(config.host, config.port, pinned_pem=config.certificate_pem)
    if not seen.trusted:
        raise _explain_certificate(config, doing="open a disk")
    return vddk.make_thumbprint(ssl.PEM_cert_to_DER_cert(seen.pem))


def _log_out(login: Login) -> None:
    with contextlib.suppress(*NO_ANSWER):
        login.content.sessionManager.Logout()
    login.hang_up()


def _retrieve_content(stub: Any) -> Any:
    content: Any = vim.ServiceInstance("ServiceInstance", stub).RetrieveContent()
    if content is None or content.sessionManager is None:
        raise failure.answer_not_understood(ValueError("it has no session manager"))
    return content


def _explain_certificate(config: VsphereConfig, *, doing: str) -> Denied:
    """Return the error for a certificate that is not trusted, with what there is to compare."""
    seen = certificate.see(config.host, config.port, pinned_pem=config.certificate_pem)
    return Denied(
        f"cannot {doing}: the certificate of {config.host} is not trusted:"
        f" {'; '.join(seen.problems) or 'it changes'}; its SHA-256 is {seen.sha256}",
        kind="vsphere-certificate",
        hint="compare it with the one that the host's own console shows, then pin it by"
        " `sendense source trust`; if nobody renewed it, somebody may be in between",
        sha256=seen.sha256,
    )
