"""Runs `qemu-nbd` for one image file, on a unix socket of its own."""

import contextlib
import ctypes
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from sendense.core.errors import Conflict, Denied, Invalid, NotFound, SendenseError, Unavailable
from sendense.nbd.address import Address

START_SECONDS_MAX = 20.0  # it takes 30 ms; a loaded machine or a slow NFS server takes longer
STOP_SECONDS_MAX = 10.0  # it flushes the image when told to end
CLIENTS_MAX = 16
_POLL_SECONDS = 0.005
_STDERR_BYTES_MAX = 4096
_PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None, use_errno=True)  # loaded here: between fork and exec it must not be


@contextlib.contextmanager
def serve_image(path: Path, *, image_format: str, writable: bool = False) -> Iterator[Address]:
    """Serve an image by NBD while the context is open; the server dies with this process.

    The format is never probed: a guest can write any header into a raw disk. The image is locked
    as QEMU locks images, so one that a running VM writes is refused.

    Raises Conflict, kind `image-in-use`; NotFound, kind `image-missing`; Denied, kind
    `image-denied`; Invalid, kind `image-broken`; Unavailable where qemu-nbd cannot be run.
    """
    folder = Path(tempfile.mkdtemp(prefix="sendense-nbd-"))  # 0700: nobody else may connect
    try:
        socket_path = folder / "nbd.sock"
        errors = folder / "stderr"
        process = _start(path, image_format, socket_path, errors, writable=writable)
        try:
            _wait_until_listening(process, socket_path, errors, path)
            yield Address(socket_path=str(socket_path))
        finally:
            _stop(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(
    path: Path, image_format: str, socket_path: Path, errors: Path, *, writable: bool
) -> "subprocess.Popen[bytes]":
    # Writing goes through the page cache; the one flush at the end makes it durable.
    mode = ["--cache=writeback", "--discard=unmap"] if writable else ["--read-only"]
    command = [
        "qemu-nbd",
        *mode,
        "--persistent",
        f"--shared={CLIENTS_MAX}",
        f"--format={image_format}",
        f"--socket={socket_path}",
        "--",
        str(path),
    ]
    try:
        with errors.open("wb") as stderr:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - one system call, no lock, no allocation
            )
    except FileNotFoundError as error:
        raise Unavailable(
            "qemu-nbd is not installed",
            hint="install qemu-utils",
            kind="program-missing",
        ) from error


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_until_listening(
    process: "subprocess.Popen[bytes]", socket_path: Path, errors: Path, path: Path
) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        if process.poll() is not None:
            raise _explain(errors, path)
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(str(socket_path))
            return
        if time.monotonic() > deadline:
            raise Unavailable(
                f"qemu-nbd did not serve {path} within {START_SECONDS_MAX:.0f} seconds",
                kind="source-silent",
            )
        time.sleep(_POLL_SECONDS)


def _explain(errors: Path, path: Path) -> SendenseError:
    with errors.open("rb") as file:
        text = file.read(_STDERR_BYTES_MAX).decode(errors="replace").strip()
    if 'Failed to get "write" lock' in text or 'Failed to get shared "write" lock' in text:
        return Conflict(
            f"image {path} is in use by another program",
            hint="a running VM is backed up through its hypervisor: register it as type qemu",
            kind="image-in-use",
        )
    if "No such file" in text:
        return NotFound(f"image {path} does not exist", kind="image-missing")
    if "Permission denied" in text:
        return Denied(f"image {path} may not be read", kind="image-denied")
    return Invalid(
        f"image {path} cannot be opened: {text or 'qemu-nbd ended'}", kind="image-broken"
    )


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
