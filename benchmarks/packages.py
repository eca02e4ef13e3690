"""What benchmarks put into their disk images: named Debian packages, a database and a log of them.

Packages are unpacked as their maintainers made them, in the order given, as many as the wanted size
takes: a root file system and servers first, then tools, applications, fonts and pictures. A release
that lacks one goes without it; which ones it were, and in which versions, is told with results.
"""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import blake3

from sendense.core import units

NAMES = Path(__file__).with_name("packages.txt").read_text().split()
DATABASE, LOG = "var/lib/inventory.sqlite", "var/log/unpacked.log"
EPOCH = 1_700_000_000  # of the log's first line


@dataclass(frozen=True)
class Package:
    """A package of this machine's Debian release."""

    name: str
    version: str
    installed_bytes: int


def choose(*, bytes_max: int) -> list[Package]:
    """Return the packages, in order, that fit into a size together."""
    chosen: list[Package] = []
    left = bytes_max
    for one in _list_known():
        if one.installed_bytes <= left:
            chosen.append(one)
            left -= one.installed_bytes
    return chosen


def unpack(packages: Sequence[Package], tree: Path) -> None:
    """Download packages and unpack them into a folder, with a database and a log of their files."""
    archives = tree.with_name("packages")
    shutil.rmtree(archives, ignore_errors=True)
    archives.mkdir(parents=True)
    wanted = [f"{one.name}={one.version}" for one in packages]
    # Debian's sandbox user cannot write into every folder that a developer may have.
    as_oneself = ["-o", "APT::Sandbox::User=root"]
    _run(["apt-get", "--quiet", "--quiet", *as_oneself, "download", *wanted], within=archives)
    for one in packages:
        (found,) = archives.glob(f"{one.name}_*.deb")
        _run(["dpkg-deb", "--extract", str(found), str(tree)])
        found.unlink()
    archives.rmdir()
    _write_inventory(tree)


def _list_known() -> Iterator[Package]:
    if shutil.which("apt-cache") is None:
        raise SystemExit("benchmarks unpack Debian packages: apt-cache is missing here")
    told = _run(["apt-cache", "show", "--no-all-versions", *NAMES])
    found: dict[str, Package] = {}
    for paragraph in told.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line)
        if "Installed-Size" in fields:
            size = int(fields["Installed-Size"]) * units.KIB
            found[fields["Package"]] = Package(fields["Package"], fields["Version"], size)
    if not found:
        raise SystemExit("apt-cache knows no packages: run apt-get update")
    yield from (found[name] for name in NAMES if name in found)


def _write_inventory(tree: Path) -> None:
    """Write what was unpacked into an SQLite database and, as a service would, into a log."""
    files = [path for path in sorted(tree.rglob("*")) if path.is_file() and not path.is_symlink()]
    for place in (tree / DATABASE, tree / LOG):
        place.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(tree / DATABASE) as database, (tree / LOG).open("w") as log:
        database.execute("create table file (path text, mode int, size int, changed real, id blob)")
        for number, path in enumerate(files):
            told, name = path.stat(), f"/{path.relative_to(tree)}"
            found = blake3.blake3(path.read_bytes()).digest()
            row = (name, told.st_mode, told.st_size, told.st_mtime, found)
            database.execute("insert into file values (?, ?, ?, ?, ?)", row)
            log.write(
                f"{EPOCH + number / 1000:.3f} host unpack[{number}]: info: {name} mode="
                f"{told.st_mode:o} size={told.st_size} id={found.hex()[:16]}\n"
            )
        database.execute("create index by_path on file (path)")
        database.execute("create index by_id on file (id)")
    database.close()
    for place in (tree / DATABASE, tree / LOG):
        os.utime(place, (EPOCH, EPOCH))


def _run(command: Sequence[str], *, within: Path | None = None) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=within)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    return done.stdout
