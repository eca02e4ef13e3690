"""Reading one disk of a snapshot over QEMU's NBD server."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sendense.connectors.qemu.meter import Meter, Statistics
from sendense.core import extent
from sendense.core.errors import Denied, NoSpace, NotFound, SendenseError, Unavailable
from sendense.core.extent import Extent
from sendense.core.units import SECTOR
from sendense.nbd.address import Address
from sendense.nbd.client import Client

CONNECTIONS_MAX = 8  # QEMU serves all of them from one thread; more gain nothing
READ_REFUSED = ("nbd-read-error", "nbd-read-only")  # the server answers, and refuses
_CHANGED = 1  # flag of the context qemu:dirty-bitmap


@dataclass(frozen=True, slots=True)
class QemuDiskView:
    """A disk of a snapshot, as `DiskView` and `Measuring` promise."""

    address: Address
    size_bytes: int
    bitmap: str | None
    meter: Meter
    connections_max: int = CONNECTIONS_MAX

    def list_allocated(self) -> Iterator[Extent]:
        """Yield extents that cover the disk; holes and zeros of the image are `zero`."""
        with Client.connect(self.address, contexts=["base:allocation"]) as client:
            yield from extent.merge(client.list_allocated())

    def list_changed(self) -> Iterator[Extent]:
        """Yield the extents changed since the base change id; what reads as zeros is `zero`."""
        context = f"qemu:dirty-bitmap:{self.bitmap}"
        with contextlib.ExitStack() as stack:
            # Two connections, since a client's replies come in the order of one stream.
            client = stack.enter_context(Client.connect(self.address, contexts=[context]))
            if self.bitmap is None or context not in client.contexts:
                raise Unavailable(
                    "QEMU does not offer the change tracking of this snapshot",
                    kind="tracking-lost",
                )
            changed = (
                Extent(start, length)
                for start, length, flags in client.list_extents(context)
                if flags & _CHANGED
            )
            yield from extent.mark_zeros(
                extent.merge(extent.clip(changed, size=self.size_bytes)), self.list_allocated()
            )

    def measure_write_latency(self) -> float | None:
        """Return what the guest's writes to the device took on average since the last call."""
        return self.meter.measure()


@contextlib.contextmanager
def open_view(
    record: dict[str, Any], key: int, ask: Callable[[], Statistics]
) -> Iterator[QemuDiskView]:
    """Open a disk of a snapshot; errors of the body are explained where the snapshot is broken.

    Raises NotFound, kind `snapshot-lost`, where the snapshot is gone, and NoSpace, kind
    `fleecing-full`, where QEMU gave it up because the fleecing file could not be written. Neither
    comes back by trying again.
    """
    disk = next((disk for disk in record["disks"] if disk["key"] == key), None)
    if disk is None:
        raise NotFound(f"the snapshot holds no disk with key {key}", kind="disk-unknown")
    address = Address(export=disk["export"], socket_path=record["socket"])
    # A snapshot that an earlier version took does not say which device it is of.
    meter = Meter(ask, disk.get("qdev", ""))
    view = QemuDiskView(address, disk["size_bytes"], disk["base"], meter)
    fault = find_fault(view)
    if fault is not None:
        raise fault
    try:
        yield view
    except SendenseError as error:
        fault = find_fault(view) if isinstance(error, Unavailable | Denied) else None
        if fault is None:
            raise
        raise fault from error


def find_fault(view: QemuDiskView) -> SendenseError | None:
    """Return what is wrong with a snapshot, or None where it can be read, or nobody can tell now.

    QEMU does not report a broken snapshot, but refuses every read of it.
    """
    try:
        client = Client.connect(view.address)
    except (NotFound, Unavailable) as error:
        is_gone = isinstance(error.__cause__, FileNotFoundError | ConnectionRefusedError)
        if isinstance(error, NotFound) or is_gone:
            return NotFound(
                "the snapshot is gone: QEMU ended, or somebody removed it", kind="snapshot-lost"
            )
        return None
    with client:
        try:
            client.read(0, min(SECTOR, view.size_bytes))
        except (Unavailable, Denied) as error:
            if error.kind not in READ_REFUSED:
                return None
            return NoSpace(
                "QEMU gave up the snapshot: what the guest overwrites could not be saved",
                kind="fleecing-full",
                hint="give the scratch folder more room; the guest was not disturbed",
            )
    return None
