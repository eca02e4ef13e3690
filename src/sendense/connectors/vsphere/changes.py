"""What changed on a disk since a change id. Rules 10 to 12 of the sources' design."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim, vmodl

from sendense.connectors.vsphere import failure
from sendense.connectors.vsphere.session import Login, Session
from sendense.core.errors import SendenseError, Unavailable
from sendense.core.extent import Extent

# vCenter tells 2000 areas a call: enough for changes in every 64 KiB of the largest disk, 62 TiB.
PAGES_MAX = 1_000_000
_NOT_OURS = (
    vim.fault.NotAuthenticated,
    vim.fault.NoPermission,
    vim.fault.RestrictedVersion,
    vmodl.fault.HostCommunication,
    vmodl.fault.NotEnoughLicenses,
)


@dataclass(frozen=True, slots=True)
class ChangeId:
    """A moment of a disk, `uuid/sequence`; the numbers of another uuid mean nothing."""

    uuid: str
    sequence: str


def parse(text: str) -> ChangeId:
    """Return the parts; a text without a number has the sequence ""."""
    uuid, _, sequence = text.rpartition("/")
    return ChangeId(uuid, sequence) if uuid else ChangeId(text, "")


def explain_lost(base: str, now: str | None) -> str | None:
    """Return why changes since `base` cannot be asked for at a snapshot with change id `now`.

    None where they can.
    """
    if now is None:
        return "change tracking is off: the snapshot has no change id"
    old, new = parse(base), parse(now)
    if old.uuid != new.uuid:
        return (
            "change tracking was reset since (a hard power-off, a move or a revert can do that):"
            f" {new.uuid} is not {old.uuid}"
        )
    is_counted = old.sequence.isdecimal() and new.sequence.isdecimal()
    # Each snapshot counts one up, so the number comes again only after a revert.
    if is_counted and int(new.sequence) <= int(old.sequence):
        return (
            "change tracking went back: the VM was reverted to a snapshot or restored"
            f" ({new.sequence} does not come after {old.sequence})"
        )
    return None


def list_changed(
    session: Session,
    *,
    vm_moref: str,
    snapshot_moref: str,
    key: int,
    base_change_id: str,
    size_bytes: int,
) -> Iterator[Extent]:
    """Yield the areas of a snapshot's disk that changed since a change id, in order.

    An empty page is not the end, a page's length says where the next one begins, and nothing is
    asked at or behind the end of the disk. Raises Unavailable, kind `tracking-lost`, where vCenter
    cannot tell, or tells what makes no sense: then all of the disk must be read.
    """
    doing = f"ask what changed on disk {key}"
    offset = position = 0
    for _ in range(PAGES_MAX):

        def ask(login: Login, start: int = offset) -> Any:
            snapshot = login.bind(vim.vm.Snapshot, snapshot_moref)
            vm = login.bind(vim.VirtualMachine, vm_moref)
            return vm.QueryChangedDiskAreas(snapshot, key, start, base_change_id)

        try:
            page = session.run(doing, ask)
        except SendenseError as error:
            cause = error.__cause__
            if not isinstance(cause, vmodl.MethodFault) or isinstance(cause, _NOT_OURS):
                raise
            raise _lost(failure.describe(cause)) from error
        end = int(page.startOffset) + int(page.length)
        for first, last in _check_areas(page, offset):
            # What reaches into the next page may be told there again.
            begin, stop = max(first, position), min(last, size_bytes)
            if begin < stop:
                yield Extent(begin, stop - begin)
                position = stop
        if end >= size_bytes:
            return
        if end <= offset:
            raise _lost(f"vCenter's answers do not get beyond {offset}")
        offset = end
    raise _lost(f"vCenter tells changes in more than {PAGES_MAX} parts")


def _check_areas(page: Any, start: int) -> list[tuple[int, int]]:
    """Return a page's areas, first and last byte's end, in the order of their starts."""
    if int(page.startOffset) > start:
        raise _lost(f"vCenter was asked about {start} and tells about {page.startOffset}")
    areas = [(int(one.start), int(one.start) + int(one.length)) for one in page.changedArea or ()]
    for first, last in areas:
        if first < int(page.startOffset) or last < first:
            raise _lost(f"an area from {first} to {last} makes no sense")
    if any(one[0] > other[0] for one, other in itertools.pairwise(areas)):
        raise _lost("areas are out of order")
    return areas


def _lost(why: str) -> Unavailable:
    return Unavailable(f"vCenter cannot tell what changed: {why}", kind="tracking-lost")
