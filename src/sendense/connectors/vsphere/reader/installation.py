"""What nbdkit, its vddk plugin and VDDK are on this machine."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from sendense.connectors.vsphere.reader import causes
from sendense.connectors.vsphere.reader.causes import Findings
from sendense.connectors.vsphere.reader.nbdkit import PROGRAM
from sendense.core.errors import Unavailable

SECONDS_MAX = 30.0  # milliseconds; VDDK from a slow disk takes seconds
LIBRARY_MAJOR_MIN = 6  # the oldest that nbdkit's plugin knows
_DISTRIBUTED = Path("lib64")  # where VDDK's archive has its libraries
_LIBRARY = re.compile(r"libvixDiskLib\.so\.(\d+)")


@dataclass(frozen=True, slots=True)
class Plugin:
    """What `nbdkit PLUGIN --dump-plugin` tells.

    Attributes:
        version: of the plugin, or None where nbdkit cannot load it.
        said: nbdkit's own words where it failed.
        facts: everything else, by its names.
    """

    version: str | None
    said: str
    facts: dict[str, str]

    @property
    def library_major(self) -> int | None:
        """VDDK's major version, or None where the plugin found no library."""
        found = self.facts.get("vddk_library_version", "")
        return int(found) if found.isdigit() else None

    @property
    def library_version(self) -> str | None:
        """VDDK's version as exactly as the name of its file tells it: `8.0.3`."""
        found = re.search(r"\.so\.(\d+(?:\.\d+)*)$", self.facts.get("vddk_dll", ""))
        return found[1] if found else self.facts.get("vddk_library_version")


def find_nbdkit() -> str | None:
    """Return nbdkit's version, or None where it is not installed or does not run."""
    done = _run([PROGRAM, "--version"])
    found = re.search(r"\d+\.\d+(?:\.\d+)*", done.stdout) if done is not None else None
    return found.group() if found and done is not None and done.returncode == 0 else None


def look_at_plugin(plugin: str, *, libdir: Path | None = None) -> Plugin:
    """Ask nbdkit for a plugin. Contacts nobody."""
    options = [] if libdir is None else [f"libdir={libdir}"]
    done = _run([PROGRAM, plugin, "--dump-plugin", *options])
    if done is None:
        return Plugin(None, "nbdkit does not run", {})
    facts = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    version = facts.get("version") if done.returncode == 0 else None
    return Plugin(version, done.stderr.strip(), facts)


def list_libraries(libdir: Path) -> list[str]:
    """Return the names of VDDK's libraries in its folder, whether the plugin knows them or not."""
    places = (libdir / _DISTRIBUTED, libdir)
    return sorted(
        {path.name for place in places for path in place.glob("libvixDiskLib.so.*")},
    )


def require_nbdkit() -> str:
    """Return nbdkit's version. Raises Unavailable, kind `program-missing`."""
    version = find_nbdkit()
    if version is None:
        raise Unavailable(
            "nbdkit is not installed",
            hint="see `sendense doctor` for the package of your distribution",
            kind="program-missing",
        )
    return version


def require(libdir: Path | None, *, plugin: str = "vddk") -> str:
    """Return one line with all versions.

    Raises Unavailable of kind `program-missing`, `vddk-plugin-missing`, `vddk-library-missing` or
    `vddk-library-unusable`.
    """
    version = require_nbdkit()
    found = look_at_plugin(plugin, libdir=libdir)
    place = libdir or Path(found.facts.get("vddk_default_libdir", ""))
    if found.version is None:
        findings = Findings()
        findings.look_at(f"nbdkit: error: {found.said}")
        errors = found.said.splitlines()[:1]
        raise causes.explain(findings.find(), errors, what="the vddk reader")
    if found.library_major is None:
        raise _explain_library(place)
    return f"nbdkit {version}, vddk plugin {found.version}, VDDK {found.library_version}"


def _explain_library(place: Path) -> Unavailable:
    libraries = list_libraries(place)
    if libraries:
        return Unavailable(
            f"the vddk plugin can load none of {', '.join(libraries)} in {place}",
            hint="it knows VDDK 6.5 to 8; a newer VDDK needs a newer nbdkit",
            kind="vddk-library-unusable",
        )
    return Unavailable(
        f"there is no VDDK library in {place}",
        hint="unpack VMware's VDDK for Linux and set vddk_libdir to vmware-vix-disklib-distrib",
        kind="vddk-library-missing",
    )


def _run(command: list[str]) -> "subprocess.CompletedProcess[str] | None":
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS_MAX,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
