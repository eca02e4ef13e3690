"""Debian packages without installing them: resolve, download, unpack. Needs no root.

Where apt has never fetched its package lists, root fetches them; another user is told to.
"""

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from sendense.core.errors import Unavailable

APT_SECONDS_MAX = 300  # package lists and 45 MB of packages over a slow line
_DEPENDENCY = re.compile(r"^\s+(?:Pre)?Depends: ([a-z0-9][a-z0-9+.-]*)$", re.MULTILINE)


def _run(*command: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            check=True,
            capture_output=True,
            text=True,
            timeout=APT_SECONDS_MAX,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise Unavailable(
            f"program {command[0]} is missing", hint="the guest is built on Debian with apt"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{command[0]} took more than {APT_SECONDS_MAX} s") from error
    except subprocess.CalledProcessError as error:
        raise Unavailable(
            f"{' '.join(command[:3])} failed: {error.stderr.strip()[-500:]}"
        ) from error
    return done.stdout


def list_dependencies(*names: str) -> list[str]:
    """Return the packages that some need directly, as far as they are no virtual ones."""
    return _DEPENDENCY.findall(
        _run("apt-cache", "depends", "--no-recommends", "--no-suggests", *names)
    )


def list_libraries(package: str) -> list[str]:
    """Return the library packages in the dependency closure of one, itself excluded, sorted."""
    found: set[str] = set()
    level = [package]
    while level:  # one call a level: apt-cache takes a second to start
        names = {name for name in list_dependencies(*level) if name.startswith("lib")}
        level = sorted(name for name in names - found if not name.endswith("-perl"))
        found.update(level)
    return sorted(found)


def ensure_lists(probe: str) -> None:
    """Make sure that apt knows the package `probe`; root fetches the lists where it does not."""
    if "Candidate:" in _run("apt-cache", "policy", probe):
        return
    if os.geteuid() != 0:
        raise Unavailable(f"apt does not know {probe}", hint="run as root: apt-get update")
    _run("apt-get", "update", "--quiet")


def download(packages: Iterable[str], folder: Path) -> list[Path]:
    """Download packages into an empty folder and return their files."""
    # apt's own user may not reach a private folder; as root apt then warns and reads it as root.
    _run("apt-get", "download", "--quiet", *packages, cwd=folder)
    return sorted(folder.glob("*.deb"))


def unpack(files: Iterable[Path], folder: Path) -> None:
    """Unpack packages into one tree."""
    for file in files:
        _run("dpkg-deb", "--extract", str(file), str(folder))
