"""A folder like that of an unpacked VDDK, with the double in it, under the real plugin.

Debian 12 has no package of nbdkit's vddk plugin, but the file in Debian 13's (37 KB) runs under
Debian 12's nbdkit. It is fetched once by apt, which checks its signature, and never installed.
"""

import fcntl
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from sendense.connectors.vsphere.reader import installation

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / ".cache" / "vddk"
SOURCE = Path(__file__).with_name("double.c")
COMMAND_SECONDS_MAX = 60.0  # the slowest is a mirror's index of contrib, 200 KB
PACKAGE, SUITE = "nbdkit-plugin-vddk", "trixie"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")  # of package and archive alike
COMPILER_FLAGS = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC")


class Missing(Exception):
    """Why the plugin cannot be had here; a reason to skip."""


def find_plugin() -> str:
    """Return the name or the file of a plugin that nbdkit loads. Raises Missing."""
    if installation.look_at_plugin("vddk").version is not None:
        return "vddk"
    CACHE.mkdir(parents=True, exist_ok=True)
    file = CACHE / "nbdkit-vddk-plugin.so"
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes start at once
        if not file.exists():
            _fetch_plugin(file)
    if installation.look_at_plugin(str(file)).version is None:
        raise Missing("nbdkit here does not load the vddk plugin of Debian 13")
    return str(file)


def _fetch_plugin(file: Path) -> None:
    if platform.machine() != "x86_64" or shutil.which("apt-get") is None:
        raise Missing("nbdkit's vddk plugin is not installed, and this is no Debian on x86-64")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for folder in ("lists/partial", "cache/archives/partial"):
            (place / folder).mkdir(parents=True)
        (place / "status").touch()
        signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
        (place / "sources.list").write_text(f"deb {signed}{_find_mirror()} {SUITE} contrib\n")
        options = [
            f"Dir::Etc::sourcelist={place}/sources.list",
            "Dir::Etc::sourceparts=/dev/null",
            f"Dir::State::lists={place}/lists",
            f"Dir::State::status={place}/status",
            f"Dir::Cache={place}/cache",
            "Acquire::Languages=none",
            "Debug::NoLocking=1",
        ]
        apt = ["apt-get", "-q", *(word for option in options for word in ("-o", option))]
        _run([*apt, "update"], place)
        _run([*apt, "download", PACKAGE], place)
        (package,) = place.glob("*.deb")
        _run(["dpkg-deb", "--extract", str(package), str(place / "content")], place)
        (plugin,) = (place / "content").rglob("nbdkit-vddk-plugin.so")
        shutil.copyfile(plugin, file.with_suffix(".draft"))
        file.with_suffix(".draft").replace(file)


def _find_mirror() -> str:
    """Return the address of the Debian archive that this machine uses."""
    form = "$(ORIGIN) $(COMPONENT) $(REPO_URI)"
    listing = _run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"], ROOT)
    for line in listing.splitlines():
        origin, component, address = line.split(maxsplit=2)
        if (origin, component) == ("Debian", "main") and "security" not in address:
            return address
    raise Missing("nbdkit's vddk plugin is not installed, and apt knows no Debian mirror")


def _run(command: list[str], folder: Path) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise Missing(f"no vddk plugin: {command[0]}: {error.stderr.strip()[-300:]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"no vddk plugin: {error}") from error
    return done.stdout


def build(libdir: Path, *, major: int = 8) -> None:
    """Compile the double into a folder with the shape of VDDK's."""
    library = libdir / "lib64" / f"libvixDiskLib.so.{major}"
    library.parent.mkdir(parents=True)
    command = ["gcc", *COMPILER_FLAGS, "-fvisibility=hidden", f"-Wl,-soname,{library.name}"]
    subprocess.run([*command, "-o", str(library), str(SOURCE)], check=True)


class Vddk:
    """A libdir of one test: its settings, its disks and its log. See double.c."""

    def __init__(self, libdir: Path) -> None:
        self.libdir = libdir
        self._settings: list[str] = []

    def set(self, **settings: object) -> None:
        """Add settings, such as `fail_open="…"`."""
        self._settings += [f"{name}={value}" for name, value in settings.items()]
        self._write()

    def unset(self, name: str) -> None:
        """Take a setting back."""
        self._settings = [line for line in self._settings if not line.startswith(f"{name}=")]
        self._write()

    def add_disk(self, vm: str, snapshot: str | None, path: str, file: Path) -> None:
        """Let a file be a disk."""
        self.set(disk=f"{vm}\t{snapshot or '-'}\t{path}\t{file}")

    def list_calls(self, name: str = "") -> list[str]:
        """Return the log's lines that begin with a word."""
        log = self.libdir / "double.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line for line in lines if line.startswith(name)]

    def _write(self) -> None:
        draft = self.libdir / f"double.conf.{os.getpid()}"
        draft.write_text("".join(f"{line}\n" for line in self._settings))
        draft.replace(self.libdir / "double.conf")
