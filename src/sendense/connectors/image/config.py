"""The configuration of an image source: VMs by name, with the paths of their disks.

Besides, `impact`'s limit on how fast they are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sendense.connectors import config as fields
from sendense.connectors import impact
from sendense.connectors.config import PathPolicy, Problems

DISKS_MAX = 64  # more than any hypervisor gives a VM on one controller
RAW, QCOW2 = "raw", "qcow2"


@dataclass(frozen=True, slots=True)
class ImageDisk:
    """A disk of the configuration.

    Attributes:
        path: as the user wrote it; resolved anew at each use.
        image_format: `raw` or `qcow2`, never found by looking at the content, which belongs to a
            guest.
        stated: the user named the format; else it follows from the file's name.
    """

    path: str
    image_format: str
    stated: bool


@dataclass(frozen=True, slots=True)
class ImageVm:
    """A VM of the configuration."""

    name: str
    disks: tuple[ImageDisk, ...]


def parse(config: Mapping[str, Any], resolve: PathPolicy) -> tuple[ImageVm, ...]:
    """Return the VMs of a configuration.

    Raises Invalid naming each wrong field, and what `resolve` raises for a path.
    """
    problems = Problems()
    top = fields.check_keys(config, "config", problems, required={"vms"}, optional={*impact.FIELDS})
    impact.check(top, problems, measures="cannot be kept: image files have no guest to ask")
    items = fields.check_list(top.get("vms"), "config.vms", problems, most=fields.VMS_MAX)
    vms = tuple(
        _parse_vm(item, f"config.vms[{index}]", problems) for index, item in enumerate(items)
    )
    fields.check_names_unique([vm.name for vm in vms], problems)
    problems.raise_if_any()
    for vm in vms:
        for disk in vm.disks:
            resolve(disk.path)
    return vms


def _parse_vm(value: Any, field: str, problems: Problems) -> ImageVm:
    item = fields.check_keys(value, field, problems, required={"name", "disks"}, optional=set())
    name = fields.check_text(
        item.get("name"), f"{field}.name", problems, most=fields.NAME_LENGTH_MAX
    )
    disks = fields.check_list(item.get("disks"), f"{field}.disks", problems, most=DISKS_MAX)
    return ImageVm(
        name,
        tuple(
            _parse_disk(disk, f"{field}.disks[{index}]", problems)
            for index, disk in enumerate(disks)
        ),
    )


def _parse_disk(value: Any, field: str, problems: Problems) -> ImageDisk:
    if isinstance(value, str):
        path = fields.check_path(value, field, problems)
        return ImageDisk(path, QCOW2 if path.endswith(".qcow2") else RAW, stated=False)
    item = fields.check_keys(value, field, problems, required={"path"}, optional={"format"})
    path = fields.check_path(item.get("path"), f"{field}.path", problems)
    stated = item.get("format")
    if stated not in {None, RAW, QCOW2}:
        problems.add(f"{field}.format", f"must be {RAW} or {QCOW2}")
    chosen = stated or (QCOW2 if path.endswith(".qcow2") else RAW)
    return ImageDisk(path, chosen, stated=stated is not None)
