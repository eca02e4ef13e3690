"""Disks of vSphere by VMware's own library: nbdkit's vddk plugin over the user's VDDK."""

import contextlib
import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sendense.connectors.vsphere.reader import installation, limits, nbdkit
from sendense.connectors.vsphere.reader.base import PORT, ReadTask
from sendense.connectors.vsphere.reader.limits import Limit, Slots
from sendense.core.clock import Clock
from sendense.core.errors import SendenseError, Unavailable
from sendense.nbd.address import Address

CONNECTIONS_MAX = 2  # each is an NFC session with buffers of its own on the host
ATTEMPTS_MAX = 4  # with pauses of 1 to 8 seconds: a host that is busy for longer is left alone
# Together 30 seconds, within the minute for which our NBD client waits.
RETRY = ("retries=4", "retry-delay=2", "retry-exponential=yes")
# What VDDK does and why, without a line for each read.
VERBOSITY = ("--verbose", "-D", "nbdkit.backend.datapath=0", "-D", "vddk.datapath=0")


@dataclass(frozen=True, slots=True)
class VddkReader:
    """The production reader, as `Reader` promises.

    Attributes:
        libdir: the unpacked VDDK, or None for the place that the plugin was built for.
        slots: shared by all readers of one vCenter on this machine.
        plugin: nbdkit's plugin, by name or by the path of its file.
    """

    libdir: Path | None
    slots: Slots
    clock: Clock
    chance: random.Random
    disks_per_host: int = limits.DISKS_PER_HOST
    sessions_per_vcenter: int = limits.SESSIONS_PER_VCENTER
    connections_max: int = CONNECTIONS_MAX
    plugin: str = "vddk"

    @property
    def name(self) -> str:
        """`vddk`."""
        return "vddk"

    @property
    def warning(self) -> str | None:
        """Nothing: this is how it is meant to be."""
        return None

    def probe(self) -> str:
        """Return the versions of nbdkit, plugin and library."""
        return installation.require(self.libdir, plugin=self.plugin)

    @contextlib.contextmanager
    def open(self, task: ReadTask) -> Iterator[Address]:
        """Serve a disk as soon as the host and the vCenter have a place for it.

        A host that cannot serve now is asked again a few times; the slots are free meanwhile.
        """
        delays = limits.list_delays(ATTEMPTS_MAX, self.chance)
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    with contextlib.ExitStack() as opening:
                        opening.enter_context(self.slots.hold(self._list_limits(task)))
                        address = opening.enter_context(self._serve(task))
                        stack.enter_context(opening.pop_all())
                    break
                except Unavailable as error:
                    pause = next(delays, None) if _may_pass(error) else None
                    if pause is None:
                        raise
                self.clock.sleep(pause)
            yield address

    def _serve(self, task: ReadTask) -> contextlib.AbstractContextManager[Address]:
        return nbdkit.serve(
            list_arguments(task, libdir=self.libdir, plugin=self.plugin),
            what=str(task),
            size_bytes=task.size_bytes,
            secret=task.password,
        )

    def _list_limits(self, task: ReadTask) -> list[Limit]:
        vcenter = f"{task.server}:{task.port}"
        return [
            Limit(f"open disks of host {task.host_moref or vcenter}", self.disks_per_host),
            Limit(
                f"NFC sessions of {vcenter}", self.sessions_per_vcenter, count=self.connections_max
            ),
        ]


def list_arguments(task: ReadTask, *, libdir: Path | None, plugin: str) -> list[str]:
    """Return nbdkit's arguments for a disk, without a secret.

    `snapshot` and `transports` always come together: with one alone VDDK crashes or reads the
    running disk.
    """
    filters = ["--filter=retry", "--filter=blocksize"]
    if not task.writable:
        filters.insert(1, "--filter=cacheextents")
    arguments = [*VERBOSITY, *([] if task.writable else ["--readonly"]), *filters, plugin]
    if libdir is not None:
        arguments.append(f"libdir={libdir}")
    arguments += [f"server={task.server}", f"user={task.username}"]
    if task.port != PORT:
        arguments.append(f"port={task.port}")
    arguments += [f"thumbprint={task.thumbprint}", f"vm=moref={task.vm_moref}"]
    if task.snapshot_moref is not None:
        arguments.append(f"snapshot={task.snapshot_moref}")
    arguments += ["transports=nbdssl:nbd", "compression=skipz", "minblock=512", "maxdata=2M"]
    return [*arguments, *RETRY, f"file={task.disk_path}"]


def make_thumbprint(certificate_der: bytes) -> str:
    """Return the SHA-1 by which VDDK knows a certificate: `AA:BB:…`.

    A name, not a proof: our own session to the vCenter has checked the certificate before.
    """
    digest = hashlib.sha1(certificate_der, usedforsecurity=False).hexdigest().upper()
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))


def _may_pass(error: SendenseError) -> bool:
    return error.kind in {"vsphere-nfc-busy", "vsphere-unreachable", "vddk-failed"}
