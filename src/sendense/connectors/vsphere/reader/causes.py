"""Why nbdkit or VDDK failed: their words, made into errors of ours.

nbdkit tells an NBD client nothing but "no such export"; what happened is on its standard error.
VDDK's own result is often just "Unknown error", and the reason a line before it, sometimes only a
line meant for debugging. The wordings come from nbdkit's sources, from VMware's messages of faults
and from public reports; none was seen on a vCenter of ours, so whatever is unknown keeps its text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sendense.core.errors import Denied, Invalid, NoSpace, NotFound, SendenseError, Unavailable

TEXT_LINES_SHOWN = 3  # the last errors: earlier ones are mostly the same again

# A call of the plugin that opens the disk has failed: now the lines before it tell why.
OPENING_FAILED = re.compile(r"error: VixDiskLib_(InitEx|ConnectEx|Open\b)")
# What VDDK prints for debugging counts only where it speaks of something gone wrong.
_COMPLAINT = re.compile(
    r"error|fail|denied|incorrect|not found|could not|cannot|prohibit", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Cause:
    """One thing that can be wrong.

    Attributes:
        name: a key of the table of kinds.
        again: whether a later attempt may succeed without anybody doing anything.
    """

    name: str
    error: type[SendenseError]
    words: re.Pattern[str]
    message: str
    hint: str
    again: bool = False

    @property
    def kind(self) -> str:
        """The kind of failure that it becomes."""
        return _KIND_OF_CAUSE[self.name]


def _words(*alternatives: str) -> re.Pattern[str]:
    return re.compile("|".join(alternatives), re.IGNORECASE)


_KIND_OF_CAUSE = {
    "program": "program-missing",
    "plugin": "vddk-plugin-missing",
    "library": "vddk-library-unusable",
    "libdir": "vddk-library-missing",
    "licence": "vsphere-licence-read-only",
    "login": "vsphere-login-denied",
    "certificate": "vsphere-certificate",
    "snapshot": "snapshot-lost",
    "vm": "vm-gone",
    "disk": "disk-unknown",
    "space": "no-space",
    "nfc": "vsphere-nfc-busy",
    "host": "vsphere-unreachable",
    "access": "vsphere-disk-denied",
    "parameters": "vddk-parameters",
}

# The first that fits wins: the narrow ones come before the wide ones.
CAUSES = (
    Cause(
        "program",
        Unavailable,
        _words(r"cannot open filter", r"cannot open plugin 'file'"),
        "nbdkit is installed without its standard filters or plugins",
        "install nbdkit's basic filters and plugins; see `sendense doctor`",
    ),
    Cause(
        "plugin",
        Unavailable,
        _words(r"cannot open plugin"),
        "nbdkit's vddk plugin is not installed",
        "see `sendense doctor` for the package of your distribution",
    ),
    Cause(
        "library",
        Unavailable,
        _words(
            r"required VDDK symbol",
            r"libvixDiskLib\.so.*(wrong ELF class|invalid ELF|file too short|undefined symbol)",
            r"error: VixDiskLib_InitEx",
        ),
        "the VDDK library cannot be used",
        "give the folder of an unpacked VDDK for Linux, 6.5 to 8; see `sendense doctor`",
    ),
    Cause(
        "libdir",
        Unavailable,
        _words(r"lib\w+\.so\S*: cannot open shared object", r"error: realpath", r"libdir="),
        "there is no VDDK library in the folder given",
        "unpack VMware's VDDK for Linux and set vddk_libdir to vmware-vix-disklib-distrib",
    ),
    Cause(
        "licence",
        Denied,
        _words(r"licen[sc]e or ESXi version prohibits", r"RestrictedVersion"),
        "the host's licence does not allow backups",
        "free ESXi has no API for backups; a missing privilege can read the same way",
    ),
    Cause(
        "login",
        Denied,
        _words(
            r"incorrect user ?name or password",
            r"cannot complete login",
            r"InvalidLogin",
            r"login failed",
            r"user account is locked",
        ),
        "vCenter did not accept the user name and password",
        "give the source the right credentials",
    ),
    Cause(
        "certificate",
        Denied,
        _words(
            r"thumbprint",
            r"verify (the )?(SSL|peer|host)? ?certificate",
            r"certificate (chain )?(is not|could not|cannot|verif)",
            r"SSL exception",
        ),
        "vCenter shows another certificate than the one agreed on",
        "if it was renewed, confirm the new one in the source's settings",
    ),
    Cause(
        "snapshot",
        NotFound,
        _words(r"snapshot\S* .*(not found|does not exist)", r"(not find|no such) snapshot"),
        "the snapshot is gone: somebody removed it, or it was reverted to",
        "run the backup again",
    ),
    Cause(
        "vm",
        NotFound,
        _words(
            r"already been deleted or has not been completely created",
            r"ManagedObjectNotFound",
            r"(not find|no such) (the )?(VM|virtual machine)",
        ),
        "vCenter does not know the VM or the snapshot any more",
        "discover the source again",
    ),
    Cause(
        "disk",
        NotFound,
        _words(
            r"a file was not found",
            r"file not found",
            r"cannot create disk spec",
            r"obtaining the file name",
        ),
        "the disk's file is not where the VM's configuration says",
        "the disk was moved or removed meanwhile, or it is independent; run the backup again",
    ),
    Cause(
        "space",
        NoSpace,
        _words(r"no space left", r"not enough space", r"insufficient disk space"),
        "the datastore is full",
        "make room on the datastore",
    ),
    Cause(
        "nfc",
        Unavailable,
        _words(
            r"failed to allocate",
            r"received NFC error 5\b",
            r"NFC_(NO_MEMORY|SESSION_ERROR|SERVER_BUSY)",
            r"(maximum|too many|limit).*(connection|session)",
            r"(connection|session).*(limit|maximum|too many)",
            r"vmware-authd socket.*temporarily unavailable",
        ),
        "the host serves no more NFC sessions at the moment",
        "lower disks_per_host of the source, or let fewer jobs run at once",
        again=True,
    ),
    Cause(
        "host",
        Unavailable,
        _words(
            r"failed to connect to (server|peer)",
            r"timed out connecting",
            r"connection (refused|timed out|reset)",
            r"no route to host",
            r"network is unreachable",
            r"(name or service not known|could not resolve|host address lookup)",
        ),
        "vCenter or the host that the VM is on did not answer",
        "this machine needs port 443 of vCenter and port 902 of every host, by their names there",
        again=True,
    ),
    Cause(
        "nfc",
        Unavailable,
        _words(r"\[NFC ERROR\]"),
        "the host broke off an NFC session",
        "see the host's hostd.log; too many disks open at once is a common reason",
        again=True,
    ),
    Cause(
        "access",
        Denied,
        _words(r"you do not have access rights", r"insufficient permission", r"NoPermission"),
        "vCenter did not let us open the disk",
        "check the role's privileges, and that no other product holds the disk",
    ),
    Cause(
        "parameters",
        Invalid,
        _words(r"one of the parameters was invalid"),
        "VDDK did not accept how the disk was named",
        "this is a mistake of ours: please report it",
    ),
)


@dataclass(slots=True)
class Findings:
    """The causes that were seen since the disk was last opened; the lines are not kept."""

    said: int = len(CAUSES)
    hinted: int = len(CAUSES)

    def look_at(self, line: str) -> None:
        """Take a line of nbdkit's into account."""
        is_error = "error: " in line
        if not is_error and not _COMPLAINT.search(line):
            return
        for rank, cause in enumerate(CAUSES):
            if cause.words.search(line):
                if is_error:
                    self.said = min(self.said, rank)
                else:
                    self.hinted = min(self.hinted, rank)
                return

    def find(self) -> Cause | None:
        """Return the most telling cause, or None where nobody said anything known."""
        rank = self.said if self.said < len(CAUSES) else self.hinted
        return CAUSES[rank] if rank < len(CAUSES) else None


def explain(cause: Cause | None, errors: Sequence[str], *, what: str) -> SendenseError:
    """Return the error for a cause; `errors` are redacted lines, shown where nothing else is."""
    text = "; ".join(errors[-TEXT_LINES_SHOWN:])
    if cause is None:
        return Unavailable(
            f"{what} could not be read: {text or 'nbdkit gave no reason'}",
            kind="vddk-failed",
            hint="the text is VDDK's own",
        )
    return cause.error(f"{what}: {cause.message}", hint=cause.hint, kind=cause.kind, said=text)
