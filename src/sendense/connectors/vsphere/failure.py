"""What vCenter refuses and why, as errors of ours that say what to do.

Faults are those of VMware's "vSphere Web Services API". No text of a fault is repeated where it
could hold what a user typed into a login.
"""

import ssl
from dataclasses import dataclass
from http.client import HTTPException

from pyVmomi import vim, vmodl

from sendense.core.errors import (
    Denied,
    NoSpace,
    NotFound,
    ProtocolError,
    SendenseError,
    Unavailable,
)

TEXT_LENGTH_MAX = 300  # of vCenter's own words in a message
_KIND_OF_FAULT = {
    "login": "vsphere-login-denied",
    "session": "vsphere-session-lost",
    "licence": "vsphere-licence-read-only",
    "busy": "vsphere-busy",
    "gone": "vm-gone",
    "space": "no-space",
    "host": "vsphere-unreachable",
}


@dataclass(frozen=True, slots=True)
class _Meaning:
    """What a fault becomes; `name` is a key of the table of kinds."""

    name: str
    fault: type[Exception]
    error: type[SendenseError]
    message: str
    hint: str


# The first that fits wins, so narrow ones come before wide ones.
_MEANINGS = (
    _Meaning(
        "login",
        vim.fault.InvalidLogin,
        Denied,
        "the user name or password was not accepted",
        "give the source the right ones: `sendense source set-credentials`; if they are right, the"
        " user may be locked or the password expired",
    ),
    _Meaning(
        "session",
        vim.fault.NotAuthenticated,
        Unavailable,
        "the session ended, and again after another login",
        "look at vCenter's events for who ends sessions",
    ),
    _Meaning(
        "licence",
        vim.fault.RestrictedVersion,
        Denied,
        "the host's licence does not allow it",
        "free ESXi has no API for backups; a missing privilege can read the same way, so check the"
        " role too",
    ),
    _Meaning(
        "licence",
        vmodl.fault.NotEnoughLicenses,
        Denied,
        "the host's licence does not allow it",
        "look at the licences in vCenter: one may have expired",
    ),
    _Meaning(
        "busy",
        vim.fault.TaskInProgress,
        Unavailable,
        "another task works on the VM",
        "it is tried again; see the VM's recent tasks",
    ),
    _Meaning(
        "gone",
        vmodl.fault.ManagedObjectNotFound,
        NotFound,
        "vCenter does not know it any more",
        "discover the source again",
    ),
    _Meaning(
        "space",
        vim.fault.NoDiskSpace,
        NoSpace,
        "the datastore is full",
        "make room on the datastore",
    ),
    _Meaning(
        "host",
        vmodl.fault.HostCommunication,
        Unavailable,
        "vCenter does not reach the host that the VM is on",
        "look at the host's state in vCenter",
    ),
)


def translate(error: Exception, *, doing: str) -> SendenseError:
    """Return what a failure means; the caller raises it from the failure, which stays its cause.

    Args:
        error: raised by pyVmomi, or a fault that a task ended with.
        doing: what was tried, as in "take a snapshot of VM web1".
    """
    if isinstance(error, SendenseError):
        return error
    if isinstance(error, vmodl.MethodFault):
        return _translate_fault(error, doing)
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return _unreachable(doing, "it closed the connection")
    if isinstance(error, ssl.SSLError):
        return Unavailable(
            f"cannot {doing}: the host does not answer with TLS",
            kind="vsphere-tls-failed",
            hint="name the port of the vCenter's HTTPS, 443 by default, as HOST:PORT",
        )
    if isinstance(error, HTTPException):
        return Unavailable(
            f"cannot {doing}: vCenter answered {_shorten(error) or type(error).__name__}",
            kind="vsphere-unreachable",
            hint="its services may be starting; look at the vCenter itself",
        )
    assert isinstance(error, OSError), f"{type(error).__name__} is nothing that a network does"
    why = "it did not answer in time" if isinstance(error, TimeoutError) else error.strerror
    return _unreachable(doing, why or type(error).__name__)


def _unreachable(doing: str, why: str) -> Unavailable:
    return Unavailable(
        f"cannot {doing}: the host cannot be reached: {why}",
        kind="vsphere-unreachable",
        hint="look at the host's name and port, at the network and at firewalls in between",
    )


def describe(fault: Exception) -> str:
    """Return a fault's own words and its name, for a person."""
    name = type(fault).__name__.rpartition(".")[2]
    text = _shorten(getattr(fault, "msg", None) or "")
    return f"{text} ({name})" if text else name


def explain(fault: Exception) -> str:
    """Return why an object is not told of, for a person."""
    if isinstance(fault, vmodl.fault.ManagedObjectNotFound):
        return "vCenter does not know it any more"
    if isinstance(fault, vim.fault.NoPermission):
        return f"the source's user lacks {_find_privilege(fault)}"
    return describe(fault)


def find_fault(error: BaseException, kind: type[Exception]) -> bool:
    """Whether an error, or what caused it, is a fault of this kind."""
    return isinstance(error, kind) or isinstance(error.__cause__, kind)


def _translate_fault(fault: Exception, doing: str) -> SendenseError:
    if isinstance(fault, vim.fault.NoPermission) and not isinstance(
        fault, vim.fault.NotAuthenticated
    ):
        return _translate_no_permission(fault, doing)
    for one in _MEANINGS:
        if isinstance(fault, one.fault):
            kind = _KIND_OF_FAULT[one.name]
            return one.error(f"cannot {doing}: {one.message}", kind=kind, hint=one.hint)
    return Unavailable(
        f"cannot {doing}: {describe(fault)}",
        kind="vsphere-refused",
        hint="the words are vCenter's own; its events and the VM's recent tasks tell more",
        fault=type(fault).__name__.rpartition(".")[2],
    )


def _translate_no_permission(fault: "vim.fault.NoPermission", doing: str) -> Denied:
    privilege = _find_privilege(fault)
    moref = getattr(fault.object, "_moId", None)
    where = "" if moref is None else f" on {moref}"
    return Denied(
        f"cannot {doing}: the source's user lacks {privilege}{where}",
        kind="vsphere-privilege-missing",
        hint="give its role the privilege; docs/operations/vsphere.md has the whole list",
        privilege=privilege,
    )


def _find_privilege(fault: "vim.fault.NoPermission") -> str:
    return str(fault.privilegeId or "a privilege that vCenter does not name")


def answer_not_understood(error: Exception) -> ProtocolError:
    """Return the error for an answer that is no vCenter's."""
    return ProtocolError(
        f"the host's answer cannot be understood: {type(error).__name__}: {_shorten(error)}",
        kind="vsphere-answer-odd",
        hint="is there a vCenter or an ESXi host at this address and port, and no other server?",
    )


def _shorten(said: object) -> str:
    return " ".join(str(said).split())[:TEXT_LENGTH_MAX]
