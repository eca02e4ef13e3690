"""What is inside a QEMU process: disks with their nodes, bitmaps and filters of ours.

`read` asks; everything else is pure and works on the answers.
"""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sendense.connectors.base import DISK_KEY_FIRST
from sendense.connectors.qemu import names
from sendense.connectors.qemu.qmp import CommandFailed, Qmp

# Where the node under a device can be exchanged while the guest runs; each was tried.
_TYPES_SUPPORTED = ("virtio-blk", "scsi-hd")
BACKING_DEPTH_MAX = 200  # QEMU opens no deeper chains in practice; ends a loop of images
_FILTER_DRIVER = "copy-before-write"


@dataclass(frozen=True, slots=True)
class Bitmap:
    """A dirty bitmap as QEMU reports it."""

    name: str
    recording: bool
    inconsistent: bool
    busy: bool
    persistent: bool


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of the VM.

    Attributes:
        node: the node that holds the disk's format, under any filter of ours.
        top: the node that the device uses now: `node`, or a filter of ours.
        qdev: the device's path in QEMU's object tree.
        keeps_bitmaps: whether the image can store bitmaps when QEMU ends.
        excluded_reason: why it cannot be backed up, or None.
    """

    key: int
    index: int
    qdev: str
    node: str
    top: str
    uuid: str
    size_bytes: int
    image: str
    image_format: str
    keeps_bitmaps: bool
    bitmaps: tuple[Bitmap, ...]
    excluded_reason: str | None = None

    @property
    def label(self) -> str:
        """The device's id as the administrator wrote it."""
        return self.qdev.removesuffix("/virtio-backend").rsplit("/", maxsplit=1)[-1]

    def find_bitmap(self, name: str) -> Bitmap | None:
        """Return the bitmap of this name on the disk's node, or None."""
        return next((bitmap for bitmap in self.bitmaps if bitmap.name == name), None)


@dataclass(frozen=True, slots=True)
class Layout:
    """All disks of a VM, and all named nodes.

    Attributes:
        nodes: by name, as `query-named-block-nodes` describes them.
    """

    disks: tuple[Disk, ...]
    nodes: dict[str, dict[str, Any]]

    def find_disk(self, key: int) -> Disk | None:
        """Return a disk by its key, or None."""
        return next((disk for disk in self.disks if disk.key == key), None)

    def list_own_nodes(self) -> list[names.NodeName]:
        """Return the names of all nodes that this connector made, of whatever snapshot."""
        found = (names.find_node_name(name) for name in self.nodes)
        return [name for name in found if name is not None]

    def find_bitmap_below(self, bitmap: str, disk: Disk) -> str | None:
        """Return the image under a disk's own one whose node carries a bitmap, or None."""
        node = self.nodes[disk.node]
        for _ in range(BACKING_DEPTH_MAX):
            image = node.get("backing_file")
            below = [other for other in self.nodes.values() if image and other["file"] == image]
            for other in below:
                if any(found.get("name") == bitmap for found in other.get("dirty-bitmaps", ())):
                    return str(image)
            if not below:
                return None
            # Format and protocol node name the same file; only the format's goes on downwards.
            node = next((other for other in below if "backing_file" in other), below[0])
        return None


def read(qmp: Qmp, vm_uuid: str) -> Layout:
    """Ask QEMU for all disks and nodes."""
    blocks = qmp.execute("query-block")
    nodes = {node["node-name"]: node for node in qmp.execute("query-named-block-nodes", flat=True)}
    below = {}
    if any(node["drv"] == _FILTER_DRIVER for node in nodes.values()):
        below = find_filtered(qmp.execute("x-debug-query-block-graph"))
    attached = [block for block in blocks if is_disk(block)]
    serials = {block["qdev"]: _find_property(qmp, block["qdev"], "serial") for block in attached}
    reasons = {block["qdev"]: _find_exclusion(qmp, block["qdev"]) for block in attached}
    identities = identify(vm_uuid, serials)
    disks = []
    # QEMU lists disks in the order in which they were attached: the guest's order at its start, and
    # what is plugged in later comes last.
    for index, block in enumerate(attached):
        top = block["inserted"]["node-name"]
        node = nodes[below.get(top, top)]
        disks.append(_describe(index, block["qdev"], top, node, identities, reasons))
    return Layout(tuple(disks), nodes)


def is_disk(block: dict[str, Any]) -> bool:
    """Whether an entry of `query-block` is a writable disk with something in it."""
    inserted = block.get("inserted")
    return bool(
        inserted and block.get("qdev") and not block.get("removable") and not inserted.get("ro")
    )


def identify(vm_uuid: str, serials: dict[str, str]) -> dict[str, str]:
    """Return each device's disk uuid, made from its serial number where unique, else its path."""
    given = list(serials.values())
    identities = {}
    for qdev, serial in serials.items():
        what = f"serial {serial}" if serial and given.count(serial) == 1 else f"device {qdev}"
        identities[qdev] = str(uuid.uuid5(names.NAMESPACE, f"{vm_uuid} {what}"))
    return identities


def find_filtered(graph: dict[str, Any]) -> dict[str, str]:
    """Return for each filter of ours the name of the node that it filters."""
    known = {node["id"]: node["name"] for node in graph["nodes"]}
    return {
        known[edge["parent"]]: known[edge["child"]]
        for edge in graph["edges"]
        if edge["name"] == "file"
        and (parsed := names.find_node_name(known.get(edge["parent"], "")))
        and parsed.role == names.FILTER
    }


def list_bitmaps(entries: Iterable[dict[str, Any]]) -> tuple[Bitmap, ...]:
    """Return what `query-named-block-nodes` says about the bitmaps of a node."""
    return tuple(
        Bitmap(
            name=entry["name"],
            recording=entry["recording"],
            inconsistent=entry.get("inconsistent", False),
            busy=entry["busy"],
            persistent=entry["persistent"],
        )
        for entry in entries
        if "name" in entry
    )


def _describe(
    index: int,
    qdev: str,
    top: str,
    node: dict[str, Any],
    identities: dict[str, str],
    reasons: dict[str, str | None],
) -> Disk:
    details = node["image"].get("format-specific", {}).get("data", {})
    return Disk(
        key=DISK_KEY_FIRST + index,
        index=index,
        qdev=qdev,
        node=node["node-name"],
        top=top,
        uuid=identities[qdev],
        size_bytes=node["image"]["virtual-size"],
        image=node["image"]["filename"],
        image_format=node["drv"],
        keeps_bitmaps=node["drv"] == "qcow2" and details.get("compat") != "0.10",
        bitmaps=list_bitmaps(node.get("dirty-bitmaps", ())),
        excluded_reason=reasons[qdev],
    )


def _find_exclusion(qmp: Qmp, qdev: str) -> str | None:
    """Return why a disk cannot be backed up, or None."""
    device = qdev.removesuffix("/virtio-backend")
    kind = _find_property(qmp, device, "type")
    if not kind.startswith(_TYPES_SUPPORTED):
        return (
            f"a {kind} cannot be snapshotted while the guest runs: attach the disk as "
            f"{' or '.join(_TYPES_SUPPORTED)}"
        )
    # A SCSI disk runs where its controller does.
    controller = _find_property(qmp, qdev, "parent_bus").rpartition("/")[0]
    owner = controller if kind.startswith("scsi") else qdev
    if _find_property(qmp, owner, "iothread"):
        # QEMU 7.2 aborts, and the guest with it, as soon as an NBD client of such a disk leaves
        # (nbd_blockdev_client_closed; also https://github.com/abbbi/virtnbdbackup/issues/254).
        return (
            "the disk's device uses an iothread, and reading such a disk over QEMU's NBD server "
            "can crash QEMU: start the VM without the iothread for this disk"
        )
    return None


def _find_property(qmp: Qmp, path: str, name: str) -> str:
    """Return a property of an object in QEMU's tree, "" where it has none."""
    try:
        return str(qmp.execute("qom-get", path=path, property=name) or "")
    except CommandFailed:
        return ""
