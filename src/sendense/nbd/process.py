"""Runs `qemu-nbd` for one image file, on a unix socket of its own."""

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sendense.core.errors import Conflict, Denied, Invalid, NotFound, SendenseError, Unavailable
from sendense.nbd import folder
from sendense.nbd.address import Address

START_SECONDS_MAX = 20.0  # it takes 30 ms; a loaded machine or a slow NFS server takes longer
STOP_SECONDS_MAX = 10.0  # it flushes the image when told to end
CLIENTS_MAX = 16
_POLL_SECONDS = 0.005
_STDERR_BYTES_MAX = 4096
_PR_SET_PDEATHSIG = 1  # prctl(2)
_QEMU_WRITER_BYTE = 101  # QEMU's block/file-posix.c: who may write holds a lock on this byte
_FLOCK = struct.Struct("hhqqi4x")  # fcntl(2): type, whence, start, length, process
_LIBC = ctypes.CDLL(None, use_errno=True)  # loaded here: between fork and exec it must not be


@contextlib.contextmanager
def serve_image(
    path: Path,
    *,
    image_format: str,
    writable: bool = False,
    allow: Callable[[str], object] | None = None,
) -> Iterator[Address]:
    """Serve an image by NBD while the context is open; the server dies with this process.

    Open and close the context in one thread: the kernel ends the server with the *thread* that
    started it, so the server also never outlives a thread that forgot to close.

    `allow` is asked for every file that the server has really opened, by the name the kernel knows
    it by, before a byte of it is served; it raises for one that must not be read. Whatever was
    found by looking at headers and links may have been swapped before the server opened them.

    The format is never probed: a guest can write any header into a raw disk. An image
    that a running VM or another server may write is refused, by the lock QEMU marks it with.

    Raises Conflict, kind `image-in-use`; NotFound, kind `image-missing`; Denied, kind
    `image-denied`; Invalid, kind `image-broken`; Unavailable where qemu-nbd cannot be run.
    """
    with folder.open_private() as place:
        _refuse_written(path)
        socket_path = place / "nbd.sock"
        errors = place / "stderr"
        process = _start(path, image_format, socket_path, errors, writable=writable)
        try:
            _wait_until_listening(process, socket_path, errors, path)
            if allow is not None:
                _check_opened(process.pid, path, own=place.resolve(), allow=allow)
            yield Address(socket_path=str(socket_path))
        finally:
            _stop(process)


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
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # pragma: no cover - runs in the child only


def _wait_until_listening(
    process: "subprocess.Popen[bytes]", socket_path: Path, errors: Path, path: Path
) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        if process.poll() is not None:
            raise _explain(errors, path)
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.settimeout(START_SECONDS_MAX)
            probe.connect(str(socket_path))
            # It listens before it has opened the image, but greets only afterwards.
            if probe.recv(1):
                return
        if time.monotonic() > deadline:
            raise Unavailable(
                f"qemu-nbd did not serve {path} within {START_SECONDS_MAX:.0f} seconds",
                kind="source-silent",
            )
        time.sleep(_POLL_SECONDS)


def _check_opened(pid: int, path: Path, *, own: Path, allow: Callable[[str], object]) -> None:
    """Ask `allow` for every file and block device that the process holds open."""
    for name in _list_opened(pid, path):
        if Path(name).parent == own:
            continue
        if name.endswith(" (deleted)"):
            raise Unavailable(f"image {path} was replaced meanwhile", kind="snapshot-lost")
        allow(name)


def _list_opened(pid: int, path: Path) -> list[str]:
    found = []
    try:
        entries = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError as error:
        raise Unavailable(f"qemu-nbd ended while it opened {path}", kind="source-silent") from error
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            mode = entry.stat().st_mode
            if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
                found.append(str(entry.readlink()))
    return found


def _refuse_written(path: Path) -> None:
    """Raise Conflict for an image that another QEMU may write.

    qemu-nbd itself does not: a raw image it reads, and even writes, beside another.
    """
    with contextlib.suppress(OSError):  # what cannot be opened or locked, qemu-nbd will explain
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _QEMU_WRITER_BYTE, 1, 0)
            answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, wanted)
        finally:
            os.close(descriptor)
        if _FLOCK.unpack(answer)[0] != fcntl.F_UNLCK:
            raise _in_use(path)


def _in_use(path: Path) -> Conflict:
    return Conflict(
        f"image {path} is in use by another program",
        hint="a running VM is backed up through its hypervisor: register it as type qemu",
        kind="image-in-use",
    )


def _explain(errors: Path, path: Path) -> SendenseError:
    with errors.open("rb") as file:
        text = file.read(_STDERR_BYTES_MAX).decode(errors="replace").strip()
    if 'Failed to get "write" lock' in text or 'Failed to get shared "write" lock' in text:
        return _in_use(path)
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
