"""What every reader promises: one NBD address for each (VM, snapshot, disk)."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from sendense.nbd.address import Address

PORT = 443  # of vCenter's API, which VDDK uses before it goes to a host


@dataclass(frozen=True, slots=True)
class ReadTask:
    """One disk to open.

    Attributes:
        vm_moref: `vm-16`.
        snapshot_moref: `snapshot-21`, or None for a powered-off VM without one.
        disk_path: `[datastore1] folder/disk.vmdk`: for a snapshot, as its configuration names it.
        key: device key, 2000 and up.
        size_bytes: what the disk must be long; anything else is another disk.
        server: name or address of the vCenter.
        thumbprint: SHA-1 of the certificate that the server showed, `AA:BB:…` with 20 bytes.
        host_moref: the ESXi host that the VM is on: its limit of open disks counts. "" is a host
            of its own.
        writable: for a restore. Only without a snapshot.
    """

    vm_moref: str
    snapshot_moref: str | None
    disk_path: str
    key: int
    size_bytes: int
    server: str
    thumbprint: str
    username: str
    password: str = field(repr=False)
    port: int = PORT
    host_moref: str = ""
    writable: bool = False

    def __post_init__(self) -> None:
        assert not (self.writable and self.snapshot_moref), "a snapshot is never written"

    def __str__(self) -> str:
        at = f" of {self.snapshot_moref}" if self.snapshot_moref else ""
        return f"disk {self.key}{at} of {self.vm_moref}"


class Reader(Protocol):
    """A way to the bytes of disks."""

    @property
    def name(self) -> str:
        """As the configuration of a source names it: `vddk` or `file`."""
        ...

    @property
    def warning(self) -> str | None:
        """What everybody who sees the source must know, or None: shown in API, CLI and logs."""
        ...

    @property
    def connections_max(self) -> int:
        """How many connections an opened disk bears at once."""
        ...

    def probe(self) -> str:
        """Return one line on what there is on this machine, without contacting the platform.

        Raises Unavailable or Invalid, with a hint, where a disk could not be opened.
        """
        ...

    def open(self, task: ReadTask) -> AbstractContextManager[Address]:
        """Serve a disk while the context is open. Open and close it in one thread.

        Errors of the body are explained where the server's own messages say more. Raises Denied,
        NotFound, Invalid, Conflict (another size) or Unavailable, each with a kind of its own.
        """
        ...
