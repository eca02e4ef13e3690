"""What `sendense doctor` looks at for vSphere: nbdkit's plugins and the user's VDDK."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sendense.connectors.vsphere.reader import installation
from sendense.connectors.vsphere.reader.installation import Plugin

PLUGIN_HINT = (
    "Fedora, RHEL: dnf install nbdkit-vddk-plugin; Debian 13 (contrib), Ubuntu 25.04: "
    "apt install nbdkit-plugin-vddk; Debian 12 has no package: see docs/operations/vsphere.md"
)
LIBRARY_HINT = (
    "download VDDK 6.5 to 8 for Linux from Broadcom, unpack it, and give its folder "
    "vmware-vix-disklib-distrib as --vddk-libdir, and to the source as vddk_libdir"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One part; `version` is None where it is missing."""

    name: str
    version: str | None
    said: str
    needed_for: str
    licence: str
    hint: str


def look(libdir: Path | None) -> Iterator[Finding]:
    """Look at the plugins, then at the library. Contacts nobody."""
    if installation.find_nbdkit() is None:
        return  # the list of programs says so
    file = installation.look_at_plugin("file")
    yield Finding(
        "nbdkit file plugin",
        file.version,
        _first_line(file.said),
        "vSphere's reader for development",
        "BSD-3-Clause",
        "Fedora, RHEL: dnf install nbdkit-basic-plugins; Debian: apt install nbdkit",
    )
    vddk = installation.look_at_plugin("vddk", libdir=libdir)
    yield Finding(
        "nbdkit vddk plugin",
        vddk.version,
        _first_line(vddk.said),
        "reading disks of vSphere",
        "BSD-3-Clause",
        PLUGIN_HINT,
    )
    if vddk.version is not None:
        yield _look_at_library(vddk, libdir)


def _look_at_library(plugin: Plugin, libdir: Path | None) -> Finding:
    place = libdir or Path(plugin.facts.get("vddk_default_libdir", ""))
    present = ", ".join(installation.list_libraries(place))
    return Finding(
        "VDDK",
        plugin.library_version,
        f"the plugin loads none of {present} in {place}" if present else f"not in {place}",
        "reading disks of vSphere",
        "proprietary, VMware",
        LIBRARY_HINT,
    )


def _first_line(text: str) -> str:
    return text.partition("\n")[0] or "not found"
