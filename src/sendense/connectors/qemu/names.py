"""The names of everything that the connector makes inside and beside a QEMU process.

All are derived from the snapshot's name, so that any process finds again what another one made.
QEMU bounds node names to 31 bytes and bitmap names to 1023.
"""

import hashlib
import re
import uuid
from dataclasses import dataclass

PREFIX = "sendense-"
TOKEN_LENGTH = 12  # 48 bits: enough to tell the few snapshots that one VM ever has at once
NODE_NAME_LENGTH_MAX = 31
NO_PARENT = "none"
FLEECE, FILTER, ACCESS = "f", "c", "a"

# Identities of VMs without a uuid, and of disks, are made below this arbitrary, fixed namespace.
NAMESPACE = uuid.UUID("5e9de95e-0c5a-4f7b-9c39-2f1d8a1f6a11")

_NODE = re.compile(rf"{PREFIX}([0-9a-f]{{{TOKEN_LENGTH}}})-(\d+)-([{FLEECE}{FILTER}{ACCESS}])")
_BITMAP = re.compile(
    rf"{PREFIX}([a-z0-9-]{{1,32}})-([0-9a-f]{{{TOKEN_LENGTH}}})"
    rf"-([0-9a-f]{{{TOKEN_LENGTH}}}|{NO_PARENT})"
)
_CHANGE_ID = re.compile(r"qemu:([0-9a-f-]{36}):(\d+):(\S{1,1023})")


def token(snapshot_name: str) -> str:
    """Return the short form of a snapshot's name that all other names carry."""
    return hashlib.sha256(snapshot_name.encode()).hexdigest()[:TOKEN_LENGTH]


@dataclass(frozen=True, slots=True)
class NodeName:
    """A block node of ours: `role` is one of FLEECE, FILTER and ACCESS."""

    token: str
    key: int
    role: str

    def __str__(self) -> str:
        name = f"{PREFIX}{self.token}-{self.key}-{self.role}"
        assert len(name) <= NODE_NAME_LENGTH_MAX, f"QEMU takes no node name as long as {name}"
        return name


def find_node_name(name: str) -> NodeName | None:
    """Read a node's name; None where the node is not ours."""
    match = _NODE.fullmatch(name)
    return NodeName(match[1], int(match[2]), match[3]) if match else None


@dataclass(frozen=True, slots=True)
class BitmapName:
    """A dirty bitmap of ours.

    Attributes:
        token: of the snapshot with which it began to record.
        parent: token of the bitmap of the same lineage that this snapshot closed, or `NO_PARENT`.
            It proves that nothing lies between the two.
    """

    lineage: str
    token: str
    parent: str = NO_PARENT

    def __str__(self) -> str:
        return f"{PREFIX}{self.lineage}-{self.token}-{self.parent}"


def find_bitmap_name(name: str) -> BitmapName | None:
    """Read a bitmap's name; None where the bitmap is not ours."""
    match = _BITMAP.fullmatch(name)
    return BitmapName(match[1], match[2], match[3]) if match else None


@dataclass(frozen=True, slots=True)
class ChangeId:
    """What a backup remembers: the bitmap that records since then, on which disk of which size."""

    disk_uuid: str
    size_bytes: int
    bitmap: str

    def __str__(self) -> str:
        return f"qemu:{self.disk_uuid}:{self.size_bytes}:{self.bitmap}"


def find_change_id(text: str) -> ChangeId | None:
    """Read a change id; None where it is not one of this connector."""
    match = _CHANGE_ID.fullmatch(text)
    return ChangeId(match[1], int(match[2]), match[3]) if match else None
