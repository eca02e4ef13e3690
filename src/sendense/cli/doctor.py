"""`sendense doctor`: is everything here that the product needs on this machine?"""

import json
import os
import platform
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import httpx
import typer

import sendense
from sendense.cli import text
from sendense.cli.client import is_loopback
from sendense.cli.command import Session, command
from sendense.cli.failure import ExitCode, Failure
from sendense.cli.output import Column
from sendense.core import units
from sendense.core.errors import Invalid

_PYTHON_MIN = (3, 11)
_PROGRAM_SECONDS = 10.0  # `--version` of a healthy program takes milliseconds
_FREE_BYTES_MIN = units.GIB  # the catalog, logs and a scratch file; less and a backup soon fails


class Verdict(StrEnum):
    """What a check found."""

    OK = "ok"
    WARNING = "warning"  # works, and somebody should look
    MISSING = "missing"  # optional; what needs it does not work
    FAILED = "failed"  # the product does not work like this


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        found: version, place or state.
        needed_for: what does not work without it, or "".
        licence: SPDX expression of a part that is not ours, or "".
        hint: what to do, or "".
    """

    name: str
    verdict: Verdict
    found: str
    needed_for: str = ""
    licence: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Program:
    """A program of another project that we start, never link."""

    name: str
    needed_for: str
    licence: str
    package: str
    required: bool = False


PROGRAMS = (
    Program(
        "qemu-img", "qcow2 images, restores to qcow2", "GPL-2.0-only", "qemu-utils", required=True
    ),
    Program("qemu-nbd", "reading and writing images", "GPL-2.0-only", "qemu-utils", required=True),
    Program(
        "qemu-storage-daemon", "exports beside a running QEMU", "GPL-2.0-only", "qemu-system-common"
    ),
    Program("qemu-system-x86_64", "the demonstration's guest", "GPL-2.0-only", "qemu-system-x86"),
    Program("nbdkit", "tests of the NBD client; VDDK reader", "BSD-3-Clause", "nbdkit"),
    Program("nbdinfo", "tests against libnbd", "LGPL-2.1-or-later", "libnbd-bin"),
    Program("nbdcopy", "tests and benchmarks", "LGPL-2.1-or-later", "libnbd-bin"),
    Program("mkfs.ext4", "the demonstration's guest disks", "GPL-2.0-only", "e2fsprogs"),
    Program("dpkg", "unpacking the demonstration's guest", "GPL-2.0-or-later", "dpkg"),
)

_SBIN = ("/usr/sbin", "/sbin")  # not on every user's PATH, but where Debian keeps mkfs


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    command(app, "doctor", examples=["sendense doctor", "sendense doctor --json"])(doctor)


def doctor(
    session: Session,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data-dir",
            help="The server's data directory to look at; by default as `sendense serve` takes it.",
        ),
    ] = None,
    vddk_libdir: Annotated[
        Path | None,
        typer.Option("--vddk-libdir", help="The unpacked VDDK that sources of vSphere name."),
    ] = None,
) -> None:
    """Check this machine and the server; name the licences of optional parts.

    Exits with 1 if something is wrong that keeps the product from working; what is only missing
    for optional features is listed and does not count.
    """
    checks = look(session, data_dir, vddk_libdir)
    healthy = all(check.verdict is not Verdict.FAILED for check in checks)
    if session.output.as_json:
        document = {
            "version": sendense.__version__,
            "healthy": healthy,
            "checks": [asdict(check) for check in checks],
        }
        session.output.json(json.dumps(document, ensure_ascii=False, indent=2))
    else:
        _print(session, checks)
    if not healthy:
        raise typer.Exit(ExitCode.FAILED)


def look(session: Session, data_dir: Path | None, vddk_libdir: Path | None = None) -> list[Check]:
    """Return what there is on this machine, and how the server is."""
    return [
        _check_python(),
        *(_check_program(program) for program in PROGRAMS),
        *_check_vsphere(vddk_libdir),
        *_check_settings(data_dir),
        _check_server(session),
    ]


def _print(session: Session, checks: list[Check]) -> None:
    session.output.line(f"sendense {sendense.__version__}, licence Apache-2.0", style="bold")
    session.output.table(
        [
            Column("CHECK"),
            Column("STATE"),
            Column("FOUND"),
            Column("NEEDED FOR"),
            Column("LICENCE"),
        ],
        [
            (
                check.name,
                check.verdict,
                check.found,
                check.needed_for or text.MISSING,
                check.licence or text.MISSING,
            )
            for check in checks
        ],
    )
    for check in checks:
        if check.hint and check.verdict is not Verdict.OK:
            session.output.line(f"{check.name}: {check.hint}")


def _check_python() -> Check:
    version = platform.python_version()
    if sys.version_info < _PYTHON_MIN:
        wanted = ".".join(str(part) for part in _PYTHON_MIN)
        return Check("python", Verdict.FAILED, version, hint=f"needs Python {wanted} or newer")
    return Check("python", Verdict.OK, version, licence="PSF-2.0")


def _check_program(program: Program) -> Check:
    place = shutil.which(program.name) or shutil.which(program.name, path=os.pathsep.join(_SBIN))
    if place is None:
        return Check(
            program.name,
            Verdict.FAILED if program.required else Verdict.MISSING,
            "not found",
            program.needed_for,
            program.licence,
            hint=f"on Debian: apt install {program.package}",
        )
    version = _read_version(place)
    if version is None:
        return Check(
            program.name,
            Verdict.FAILED if program.required else Verdict.WARNING,
            f"{place} does not run",
            program.needed_for,
            program.licence,
            hint=f"on Debian: apt install --reinstall {program.package}",
        )
    return Check(program.name, Verdict.OK, version, program.needed_for, program.licence)


def _check_vsphere(libdir: Path | None) -> Iterator[Check]:
    from sendense.cli import doctor_vsphere  # the connector: other commands need none of it

    for found in doctor_vsphere.look(libdir):
        verdict = Verdict.OK if found.version else Verdict.MISSING
        said = found.version or found.said
        yield Check(found.name, verdict, said, found.needed_for, found.licence, found.hint)


def _read_version(place: str) -> str | None:
    """Return the version a program tells, its path where it tells none, None where it fails."""
    flag = "-V" if Path(place).name.startswith("mkfs") else "--version"
    try:
        done = subprocess.run(
            [place, flag],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROGRAM_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    found = re.search(r"\d+\.\d+(?:\.\d+)*", done.stdout + done.stderr)
    return found.group() if found else place


def _check_settings(data_dir: Path | None) -> Iterator[Check]:
    """Look at the environment's settings, then at the data directory."""
    from sendense.cli import effective_settings  # pydantic: costs every other command 0.1 s

    try:
        place = data_dir or effective_settings.read_settings().data_dir
    except Invalid as error:
        yield Check("settings", Verdict.FAILED, error.message, hint=error.hint)
        return
    yield from _check_data_dir(place)


def _check_data_dir(path: Path) -> Iterator[Check]:
    name = "data directory"
    try:
        status = path.stat()
    except FileNotFoundError:
        yield _check_missing_data_dir(path)
        return
    except OSError as error:
        yield Check(name, Verdict.FAILED, f"{path}: {error.strerror}", hint="let this user read it")
        return
    if not stat.S_ISDIR(status.st_mode):
        yield Check(name, Verdict.FAILED, f"{path} is not a directory")
        return
    yield _check_permissions(path, status.st_mode)
    free = shutil.disk_usage(path).free
    yield Check(
        "free space",
        Verdict.OK if free >= _FREE_BYTES_MIN else Verdict.WARNING,
        f"{text.size(free)} in {path}",
        hint=f"less than {text.size(_FREE_BYTES_MIN)}: backups will soon fail",
    )


def _check_missing_data_dir(path: Path) -> Check:
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if os.access(parent, os.W_OK | os.X_OK):
        return Check("data directory", Verdict.OK, f"{path} will be made by the first start")
    return Check(
        "data directory",
        Verdict.WARNING,
        f"{path} is not there",
        hint=f"this user may not make it in {parent}; give `sendense serve` another --data-dir",
    )


def _check_permissions(path: Path, mode: int) -> Check:
    name = "data directory"
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return Check(name, Verdict.FAILED, f"{path} is not writable", hint="let this user write it")
    if mode & (stat.S_IWGRP | stat.S_IRWXO):
        return Check(
            name,
            Verdict.WARNING,
            f"{path} has mode {stat.S_IMODE(mode):04o}",
            hint=f"others can reach the catalog: chmod 0700 {path}",
        )
    return Check(name, Verdict.OK, str(path))


def _check_server(session: Session) -> Check:
    """Ask the server how it is; where none answers here, see whether its port is free."""
    try:
        answer = session.api.get("health")
    except Failure as problem:
        if problem.body:  # it answers, and says that it is not well
            return Check(
                "server", Verdict.FAILED, f"{session.url}: {problem.message}", hint=problem.hint
            )
        return _check_port(session)
    version = answer.data.get("version", "")
    return Check("server", Verdict.OK, f"{session.api.url} answers, version {version}")


def _check_port(session: Session) -> Check:
    url = session.api.url
    if not is_loopback(url):
        return Check(
            "server", Verdict.FAILED, f"{url} does not answer", hint="see --url, SENDENSE_URL"
        )
    address = httpx.URL(url)
    port = address.port or (443 if address.scheme == "https" else 80)
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, port))
        except OSError as error:
            return Check(
                "server",
                Verdict.FAILED,
                f"port {port} is not free: {error.strerror}",
                hint="another program has it; start `sendense serve` with another --port",
            )
    return Check("server", Verdict.OK, f"not running; port {port} is free")
