"""What VMs and disks a vCenter has, by identities that survive renaming and moving.

Rules 3, 4, 5, 6, 7 and 17 of the sources' design.
"""

import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from sendense.connectors.base import DiskDescription, Tracking, VmDescription
from sendense.connectors.vsphere import properties, readiness
from sendense.connectors.vsphere.properties import Found
from sendense.connectors.vsphere.session import Login, Session, moref_of
from sendense.core.errors import NotFound
from sendense.core.units import KIB, MIB

_log = logging.getLogger(__name__)

NAME, PARENT = "name", "parent"
INSTANCE_UUID = "config.instanceUuid"
DEVICES = "config.hardware.device"
HOST = "runtime.host"
TEMPLATE_REASON = (
    "its VM is a template, of which no snapshot can be taken: convert it to a virtual machine, or"
    " clone it and back up the clone"
)
# The second is what vCenter keeps of a VM whose files cannot be reached at the moment.
_IDENTITIES = (INSTANCE_UUID, "summary.config.instanceUuid")
# What vCenter writes for these in names, which are parts of paths.
_ESCAPED = re.compile("%(2f|5c|25)", re.IGNORECASE)
# A role may let a user see just the way to what is his; who may read the root was given all of it.
_SEES = ["System.View", "System.Read"]
_PATHS = (
    NAME,
    PARENT,
    *_IDENTITIES,
    DEVICES,
    "config.hardware.numCPU",
    "config.hardware.memoryMB",
    "config.guestFullName",
    "network",
    readiness.TEMPLATE,
    readiness.TRACKING_SUPPORTED,
    readiness.POWER,
)
_POWER = {"poweredOn": "on", "poweredOff": "off", "suspended": "paused"}
_FOLDERS_DEEP_MAX = 64  # vCenter allows fewer; a ring of parents must not be followed for ever

_Disk = vim.vm.device.VirtualDisk


@dataclass(frozen=True, slots=True)
class Inventory:
    """All VMs with an identity, and what a person should know about others.

    Attributes:
        notices: why some VM is not in the list, in words.
    """

    vms: tuple[VmDescription, ...]
    notices: tuple[str, ...] = ()


def read(session: Session) -> Inventory:
    """Return all VMs that the user sees, of all datacenters.

    Those that have no identity, or share one, are named in the notices instead: a backup of one of
    them could be taken for one of the other.
    """
    found = properties.read(session, vim.VirtualMachine, None, _PATHS, doing="list the VMs")
    names = _read_names(session)
    vms, notices = [], []
    for moref, told in found.values.items():
        if _find_uuid(told) is None:
            why = found.missing.get(moref, "vCenter does not tell its instance uuid now")
            notices.append(f"VM {unescape(str(told.get(NAME, moref)))} is left out: {why}")
            continue
        vms.append(_describe(told, names))
    counts = Counter(vm.uuid for vm in vms)
    notices += [
        f"VM {vm.name} is left out: it shares its instance uuid {vm.uuid} with another VM; give one"
        " of them a new one"
        for vm in vms
        if counts[vm.uuid] > 1
    ]
    for notice in notices:
        _log.warning("%s", notice)
    return Inventory(tuple(vm for vm in vms if counts[vm.uuid] == 1), tuple(notices))


def confirm_gone(session: Session, vm_uuids: Collection[str]) -> frozenset[str]:
    """Return those VMs of which it is certain that the vCenter has none.

    Rule 3: that a listing leaves out a VM is no proof. Each is looked for by its identity, in a
    session that is seen to live before and after, by a user who sees the whole inventory; and any
    of them may be a VM that does not tell its identity now, as one on a datastore that is away.
    """
    doing = "look for VMs that were not listed"

    def look(login: Login) -> frozenset[str]:
        login.require_alive()
        if not _sees_everything(login):
            _log.warning("nothing is known to be gone: the user may not see the whole inventory")
            return frozenset()
        gone = [one for one in vm_uuids if find_by_uuid(login, one) is None]
        login.require_alive()
        return frozenset(gone)

    gone = session.run(doing, look)
    if not gone:
        return gone
    # Read last: a VM that lost its identity meanwhile, and was hence not found, is seen here.
    found = properties.read(session, vim.VirtualMachine, None, _IDENTITIES, doing=doing)
    unknown = [moref for moref, told in found.values.items() if _find_uuid(told) is None]
    if unknown:
        _log.warning("nothing is known to be gone: %s tell no identity now", ", ".join(unknown))
        return frozenset()
    return gone


def find_by_uuid(login: Login, vm_uuid: str) -> str | None:
    """Return the reference of the VM with an instance uuid, or None; for use in an action."""
    found = login.content.searchIndex.FindByUuid(
        datacenter=None, uuid=vm_uuid, vmSearch=True, instanceUuid=True
    )
    return None if found is None else moref_of(found)


def get_moref(session: Session, vm_uuid: str) -> str:
    """Return the reference of a VM. Raises NotFound, kind `vm-missing`."""

    def find(login: Login) -> str | None:
        login.require_alive()
        return find_by_uuid(login, vm_uuid)

    moref = session.run("find the VM", find)
    if moref is None:
        raise NotFound(
            f"vCenter has no VM with the instance uuid {vm_uuid}",
            kind="vm-missing",
            hint="discover the source again",
        )
    return moref


def identify(session: Session) -> str:
    """Return the identity of the vCenter, or of the ESXi host where there is none above it."""

    def ask(login: Login) -> str | None:
        return login.content.about.instanceUuid or None

    uuid = session.run("ask for the identity", ask)
    if uuid is not None:
        return uuid
    path = "hardware.systemInfo.uuid"
    hosts = properties.read(session, vim.HostSystem, None, [path], doing="ask for the identity")
    found = [told[path] for told in hosts.values.values() if path in told]
    if len(found) != 1:
        raise NotFound(
            "the host does not tell its identity",
            kind="source-without-identity",
            hint="is it a vCenter or an ESXi host?",
        )
    return str(found[0])


def list_disks(devices: Sequence[Any]) -> list[Any]:
    """Return the virtual disks among devices, by their keys."""
    return sorted((one for one in devices if isinstance(one, _Disk)), key=lambda one: one.key)


def host_of(told: Mapping[str, Any]) -> str:
    """Return the reference of the host that a VM is on, "" where vCenter does not tell."""
    host = told.get(HOST)
    return "" if host is None else moref_of(host)


def size_of(disk: Any) -> int | None:
    """Return a disk's capacity in bytes; platforms before 5.5 tell KiB alone."""
    if disk.capacityInBytes:
        return int(disk.capacityInBytes)
    return int(disk.capacityInKB) * KIB if disk.capacityInKB else None


def uuid_of(disk: Any) -> str:
    """Return the identity of a disk, "" where its backing has none."""
    return str(getattr(disk.backing, "uuid", None) or "")


def explain_exclusion(disk: Any, devices: Sequence[Any]) -> str | None:
    """Return why a disk is not part of snapshots, or cannot be told from others; else None."""
    backing = disk.backing
    mode = str(getattr(backing, "diskMode", None) or "")
    if mode.startswith("independent") or mode in {"nonpersistent", "undoable"}:
        return (
            f"its mode is {mode}, so snapshots leave it out: make it dependent (persistent) while"
            " the VM is off, or back it up from inside"
        )
    if str(getattr(backing, "compatibilityMode", None) or "") == "physicalMode":
        return (
            "it is a raw device mapping in physical mode, which snapshots leave out: use virtual"
            " mode, or back it up from inside"
        )
    if str(getattr(backing, "sharing", None) or "") == "sharingMultiWriter":
        return "several VMs may write it (multi-writer), so no snapshot can be taken of it"
    bus = {str(getattr(one, "sharedBus", "")) for one in devices if one.key == disk.controllerKey}
    if bus & {"physicalSharing", "virtualSharing"}:
        return "its controller shares its bus with other VMs, so no snapshot can be taken of it"
    if not uuid_of(disk):
        return f"its backing ({type(backing).__name__.rpartition('.')[2]}) has no identity"
    return None


def _find_uuid(told: Mapping[str, Any]) -> str | None:
    return next((told[path] for path in _IDENTITIES if told.get(path)), None)


def unescape(name: str) -> str:
    """Return a name as a person typed it: vCenter writes `%2f` for a slash."""
    return _ESCAPED.sub(lambda found: chr(int(found.group(1), 16)), name)


def _describe(told: Mapping[str, Any], names: "_Names") -> VmDescription:
    devices = told.get(DEVICES, ())
    is_template = bool(told.get(readiness.TEMPLATE))
    tracks = told.get(readiness.TRACKING_SUPPORTED) is not False
    memory = told.get("config.hardware.memoryMB")
    return VmDescription(
        uuid=str(_find_uuid(told)),
        name=unescape(str(told.get(NAME, ""))),
        power_state=_POWER.get(str(told.get(readiness.POWER)), "unknown"),
        disks=tuple(
            DiskDescription(
                key=disk.key,
                index=index,
                label=str(getattr(disk.deviceInfo, "label", "") or f"disk {disk.key}"),
                uuid=uuid_of(disk),
                capacity_bytes=size_of(disk),
                tracking=Tracking.SUPPORTED if tracks else Tracking.UNSUPPORTED,
                datastore=_find_datastore(disk),
                excluded_reason=TEMPLATE_REASON
                if is_template
                else explain_exclusion(disk, devices),
            )
            for index, disk in enumerate(list_disks(devices))
        ),
        path=names.path_of(told.get(PARENT), str(told.get(NAME, ""))),
        guest_os=told.get("config.guestFullName"),
        cpu_count=told.get("config.hardware.numCPU"),
        memory_bytes=None if memory is None else memory * MIB,
        networks=tuple(sorted(names.name_of(one) for one in told.get("network", ()))),
    )


def _find_datastore(disk: Any) -> str | None:
    """Return `ds` of `[ds] folder/disk.vmdk`."""
    path = str(getattr(disk.backing, "fileName", None) or "")
    return path[1:].partition("]")[0] if path.startswith("[") else None


class _Names:
    """Names and parents of what VMs lie in and are attached to."""

    def __init__(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        self._values = values

    def name_of(self, entity: Any) -> str:
        moref = moref_of(entity)
        return unescape(str(self._values.get(moref, {}).get(NAME, moref)))

    def path_of(self, parent: Any, name: str) -> str | None:
        """Return `/datacenter/vm/folder/name`, or None for a VM in none, as one in a vApp."""
        parts = [name]
        while parent is not None and len(parts) < _FOLDERS_DEEP_MAX:
            told = self._values.get(moref_of(parent))
            if told is None:  # the root folder, which no view holds
                break
            parts.append(str(told.get(NAME, "")))
            parent = told.get(PARENT)
        return "/" + "/".join(reversed(parts)) if len(parts) > 1 else None


def _read_names(session: Session) -> _Names:
    values: dict[str, dict[str, Any]] = {}
    for found in (_read_kind(session, kind) for kind in (vim.Folder, vim.Datacenter, vim.Network)):
        values |= found.values
    return _Names(values)


def _read_kind(session: Session, kind: type) -> Found:
    return properties.read(session, kind, None, [NAME, PARENT], doing="list folders and networks")


def _sees_everything(login: Login) -> bool:
    """Whether the user sees the inventory from its root: else a VM may be there, but hidden."""
    content = login.content
    if content.authorizationManager is None:  # a host by itself has none of its own
        return True
    current = content.sessionManager.currentSession
    granted = content.authorizationManager.HasPrivilegeOnEntity(
        content.rootFolder, current.key, _SEES
    )
    return all(granted)
