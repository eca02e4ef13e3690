"""The `image` connector: full reads through qemu-nbd, deduplicated by the repository.

There is no snapshot to take: its reference says which files were meant and how they looked. Where
one was written before the reading ended, `open_disk` cannot know; `was_written` tells afterwards.
"""

import contextlib
import hashlib
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sendense.connectors.base import (
    DISK_KEY_FIRST,
    Consistency,
    ConsistencyWish,
    DiskDescription,
    DiskSnapshot,
    DiskView,
    Snapshot,
    SnapshotOutcome,
    SnapshotRequest,
    Tracking,
    VmDescription,
)
from sendense.connectors.config import PathPolicy
from sendense.connectors.image import config as configuration
from sendense.connectors.image import image
from sendense.connectors.image.config import ImageDisk, ImageVm
from sendense.core.errors import Conflict, NotFound, SendenseError, Unavailable
from sendense.core.extent import Extent
from sendense.nbd import process
from sendense.nbd.address import Address
from sendense.nbd.client import Client
from sendense.nbd.protocol import ALLOCATION

_NAMESPACE = uuid.UUID("6f1a3a52-6b0c-4f0e-9f7e-5b7d2b1f6a11")
_CONNECTIONS_MAX = 8  # half of what qemu-nbd is told to bear, so that extents can be listed beside

# Linux before 6.13 moves the times of files in ticks, 10 ms at most. What is written after this
# wait has another time than the stamp, so it is noticed; what was written within it is read.
_TICK_SECONDS = 0.02


def describe_uuid(*parts: str) -> str:
    """Return a stable uuid for a name: the same VM or disk at each discovery."""
    return str(uuid.uuid5(_NAMESPACE, "\0".join(parts)))


@dataclass(frozen=True, slots=True)
class ImageView:
    """An image that qemu-nbd serves; see DiskView."""

    address: Address
    size_bytes: int
    connections_max: int = _CONNECTIONS_MAX

    def list_allocated(self) -> Iterator[Extent]:
        """Yield what qemu-nbd tells about holes and zeros."""
        with Client.connect(self.address, contexts=[ALLOCATION]) as client:
            yield from client.list_allocated()

    def list_changed(self) -> Iterator[Extent]:
        """Raise Unavailable: nothing tracks changes of a file."""
        raise Unavailable("the source has no change tracking", kind="tracking-lost")


class ImageSource:
    """Image files of this machine as VMs; see Source."""

    def __init__(self, config: Mapping[str, Any], resolve: PathPolicy) -> None:
        self._vms = {describe_uuid(vm.name): vm for vm in configuration.parse(config, resolve)}
        self._resolve = resolve

    def probe(self) -> str:
        """Look at every image."""
        count = 0
        for vm in self._vms.values():
            for disk in vm.disks:
                image.inspect(disk, self._resolve, shared=True)
                count += 1
        return f"{count} images of {len(self._vms)} VMs are readable"

    def list_vms(self) -> list[VmDescription]:
        """Return the configured VMs; an unreadable image is a disk that says why."""
        return [
            VmDescription(
                uuid=vm_uuid,
                name=vm.name,
                power_state="unknown",
                disks=tuple(
                    self._describe(vm_uuid, index, disk) for index, disk in enumerate(vm.disks)
                ),
            )
            for vm_uuid, vm in self._vms.items()
        ]

    def confirm_gone(self, vm_uuids: Collection[str]) -> frozenset[str]:
        """Return all: what is not listed is not there."""
        return frozenset(vm_uuids)

    def take_snapshot(self, request: SnapshotRequest) -> Snapshot:
        """Note which images are meant and how they look now; nothing is held."""
        vm = self._get_vm(request.vm_uuid)
        if request.consistency is ConsistencyWish.REQUIRE:
            raise Conflict(
                f"image files of {vm.name} cannot be made file-system consistent",
                hint="ask for consistency `prefer`, or back up through the hypervisor",
                kind="consistency-impossible",
            )
        disks: dict[str, Any] = {}
        snapshots: list[DiskSnapshot] = []
        for wanted in request.disks:
            disk = self._get_disk(vm, wanted.key)
            found = image.inspect(disk, self._resolve)
            disks[str(wanted.key)] = {
                "path": disk.path,
                "format": disk.image_format,
                "stated": disk.stated,
                "size_bytes": found.size_bytes,
                "stamp": found.stamp,
            }
            snapshots.append(
                DiskSnapshot(
                    key=wanted.key,
                    size_bytes=found.size_bytes,
                    uuid=_disk_uuid(request.vm_uuid, disk),
                    change_id=None,
                    base_lost_reason="the source has no change tracking"
                    if wanted.base_change_id is not None
                    else None,
                )
            )
        time.sleep(_TICK_SECONDS)
        reference = {"vm_uuid": request.vm_uuid, "name": request.name, "disks": disks}
        stamps = "\n".join(one["stamp"] for one in disks.values())
        return Snapshot(
            reference=reference,
            # The same moment only while no file was written: a resumed run must not mix two states.
            moment=f"{request.name}-{hashlib.sha256(stamps.encode()).hexdigest()[:16]}",
            consistency=Consistency.CRASH,
            disks=tuple(snapshots),
        )

    @contextlib.contextmanager
    def open_disk(self, reference: dict[str, Any], key: int) -> Iterator[DiskView]:
        """Serve the image by qemu-nbd while the context is open."""
        held = reference["disks"].get(str(key))
        if held is None:
            raise NotFound(f"disk {key} is not in the snapshot", kind="disk-unknown")
        disk = ImageDisk(held["path"], held["format"], stated=True)
        found = image.inspect(disk, self._resolve)
        if found.size_bytes != held["size_bytes"]:
            raise Unavailable(
                f"image {found.path} changed its size while it was backed up",
                hint="start the backup again",
                kind="snapshot-lost",
            )
        with process.serve_image(
            found.path, image_format=found.image_format, allow=self._resolve
        ) as address:
            yield ImageView(address, found.size_bytes)

    def was_written(self, reference: dict[str, Any], key: int) -> bool:
        """Whether the image was written since the snapshot: then no one moment was read."""
        held = reference["disks"][str(key)]
        disk = ImageDisk(held["path"], held["format"], stated=True)
        try:
            return image.inspect(disk, self._resolve, shared=True).stamp != str(held["stamp"])
        except SendenseError:
            return True

    def remove_snapshot(
        self,
        reference: dict[str, Any],
        outcome: SnapshotOutcome,
        live_change_ids: frozenset[str],
    ) -> None:
        """Do nothing: nothing was held."""

    def find_snapshot(self, vm_uuid: str, name: str) -> dict[str, Any] | None:
        """Return None: a snapshot of images leaves nothing to clean up."""
        del vm_uuid, name
        return None

    def close(self) -> None:
        """Do nothing: nothing is held."""

    def _describe(self, vm_uuid: str, index: int, disk: ImageDisk) -> DiskDescription:
        size: int | None = None
        reason: str | None = None
        try:
            size = image.inspect(disk, self._resolve, shared=True).size_bytes
        except SendenseError as error:
            reason = error.message
        return DiskDescription(
            key=DISK_KEY_FIRST + index,
            index=index,
            label=f"Disk {index}",
            uuid=_disk_uuid(vm_uuid, disk),
            capacity_bytes=size,
            tracking=Tracking.UNSUPPORTED,
            datastore=disk.path,
            excluded_reason=reason,
        )

    def _get_vm(self, vm_uuid: str) -> ImageVm:
        vm = self._vms.get(vm_uuid)
        if vm is None:
            raise NotFound(f"VM {vm_uuid} is not in the source any more", kind="vm-gone")
        return vm

    @staticmethod
    def _get_disk(vm: ImageVm, key: int) -> ImageDisk:
        index = key - DISK_KEY_FIRST
        if not 0 <= index < len(vm.disks):
            raise NotFound(f"VM {vm.name} has no disk with key {key}", kind="disk-unknown")
        return vm.disks[index]


def _disk_uuid(vm_uuid: str, disk: ImageDisk) -> str:
    return describe_uuid(vm_uuid, disk.path)
