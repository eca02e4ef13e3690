"""Runs nbdkit for one disk, on a unix socket of its own.

By `--exit-with-parent` the kernel tells nbdkit to end when the thread that started it is gone: VDDK
says goodbye to the host. nbdkit waits for requests before it ends, though, and one that hangs in
VDDK it awaits for ever (measured). So a guard, a shell that waits for the end of a pipe that only
this process holds, kills what is left a moment later.
"""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from sendense.connectors.vsphere.reader import causes
from sendense.connectors.vsphere.reader.causes import Findings
from sendense.connectors.vsphere.reader.messages import Messages
from sendense.core.errors import (
    Conflict,
    Invalid,
    NotFound,
    ProtocolError,
    SendenseError,
    Unavailable,
)
from sendense.nbd import folder
from sendense.nbd.address import Address
from sendense.nbd.client import Client

PROGRAM = "nbdkit"
LISTEN_SECONDS_MAX = 30.0  # milliseconds; loading VDDK from a slow disk takes seconds
OPEN_SECONDS_MAX = 180.0  # seconds; TCP gives a silent host up after two minutes
GOODBYE_SECONDS_MAX = 3.0  # VDDK says it to the host within a second, or never
STOP_SECONDS_MAX = 10.0
SECRET_BYTES_MAX = 4096  # fits a pipe whole, so writing it never waits
_END_SECONDS_MAX = 1.0  # the kernel writes a core file in between, at worst
_POLL_SECONDS = 0.01
_GUARD_SECONDS = f"{GOODBYE_SECONDS_MAX:.0f}"
# The plugin's first and last words on a connection, whether or not it came about.
_CONNECTING = "VDDK call: VixDiskLib_AllocateConnectParams"
_DISCONNECTED = "VDDK call: VixDiskLib_FreeConnectParams"
# $1 process, $2 seconds, $3 socket: the number may belong to another process by then, $4 folder.
_GUARD = """
read -r word && exit 0
sleep "$2"
grep -aqF -- "$3" "/proc/$1/cmdline" 2>/dev/null && kill -KILL "$1"
rm -rf -- "$4"
"""
# Nothing else of our environment, where keys and passwords may be, is VDDK's business.
_ENVIRONMENT_KEPT = ("PATH", "TZ")


class Server:
    """A running nbdkit. Once it is told that the disk is open, it may recover from failures."""

    def __init__(self, arguments: Sequence[str], place: Path, *, what: str, secret: str) -> None:
        self.address = Address(socket_path=str(place / "nbd.sock"))
        self._what = what
        self._findings = Findings()
        self._is_open = False
        self._tells_connections = "--verbose" in arguments
        self._connections: int | None = None  # of VDDK with the host, as far as it told
        self._lock = threading.Lock()
        self._disconnected = threading.Condition(self._lock)
        command = [PROGRAM, "--foreground", "--exit-with-parent"]
        command += [f"--unix={self.address.socket_path}", *arguments]
        self._process = _start(command, place, secret)
        assert self._process.stderr is not None
        try:
            self._guard = _start_guard(self._process.pid, self.address, place)
        except BaseException:
            self._process.kill()
            self._process.wait()
            self._process.stderr.close()
            raise
        self._messages = Messages(self._process.stderr, [secret], self._hear)

    def open(self, size_bytes: int) -> None:
        """Wait until the disk can be read, and see that it is the right one."""
        self._wait_for_socket()
        try:
            with Client.connect(self.address, timeout_seconds=OPEN_SECONDS_MAX) as client:
                found_bytes = client.size_bytes
        except SendenseError as error:
            raise self._explain_end() from error
        if found_bytes != size_bytes:
            raise Conflict(
                f"{self._what} is {found_bytes} bytes long, the snapshot says {size_bytes}",
                kind="disk-changed",
                hint="it was grown, replaced or moved meanwhile: run the backup again",
            )
        with self._lock:
            self._is_open = True
            self._findings = Findings()

    def explain(self) -> SendenseError | None:
        """Return why the server cannot go on or failed to read, or None where it said nothing."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            # A connection breaks a moment before the process that had it is gone.
            self._process.wait(_END_SECONDS_MAX)
            return self._explain_end()
        cause = self._findings.find()
        errors = self._messages.list_errors()
        return None if cause is None else causes.explain(cause, errors, what=self._what)

    def close(self) -> None:
        """End the process, whatever it does.

        nbdkit that is told to stop does not close what is open (measured), so the disks of clients
        that have just gone are awaited: the host keeps a session that nobody closed for minutes.
        """
        if self._process.poll() is None:
            if self._is_open and self._tells_connections:
                with self._disconnected:
                    self._disconnected.wait_for(lambda: self._connections == 0, GOODBYE_SECONDS_MAX)
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        self._guard.communicate(b"stopped\n")
        self._messages.finish()

    def _hear(self, line: str) -> None:
        """Look for causes; end a server that would only go on trying in vain.

        nbdkit's retry filter would repeat a refused login, which locks accounts.
        """
        with self._lock:
            if step := (_CONNECTING in line) - (_DISCONNECTED in line):
                self._connections = (self._connections or 0) + step
                self._disconnected.notify_all()
            self._findings.look_at(line)
            if not causes.OPENING_FAILED.search(line):
                return
            cause = self._findings.find()
            if not self._is_open or (cause is not None and not cause.again):
                self._process.kill()

    def _wait_for_socket(self) -> None:
        deadline = time.monotonic() + LISTEN_SECONDS_MAX
        while True:
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
                probe.connect(str(self.address.socket_path))
                return
            if self._process.poll() is not None:
                raise self._explain_end()
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"nbdkit did not serve {self._what} within {LISTEN_SECONDS_MAX:.0f} seconds",
                    kind="source-silent",
                )
            time.sleep(_POLL_SECONDS)

    def _explain_end(self) -> SendenseError:
        """Explain what is past mending: the process is ended first, to have all its words."""
        code = self._process.poll()
        self._process.kill()
        self._process.wait()
        self._messages.finish()
        cause, errors = self._findings.find(), self._messages.list_errors()
        is_crash = code is not None and code < 0 and -code not in {signal.SIGKILL, signal.SIGTERM}
        if cause is None and (is_crash or (self._is_open and code is not None)):
            how = f"of {signal.Signals(-code).name}" if code and code < 0 else f"with status {code}"
            return Unavailable(
                f"nbdkit died {how} while it read {self._what}",
                hint="VDDK crashed, somebody killed it, or the machine had no memory left",
                kind="reader-died",
                said="; ".join(errors[-causes.TEXT_LINES_SHOWN :]),
            )
        return causes.explain(cause, errors, what=self._what)


@contextlib.contextmanager
def serve(
    arguments: Sequence[str], *, what: str, size_bytes: int, secret: str = ""
) -> Iterator[Address]:
    """Serve a disk while the context is open; the server dies with the thread that opened it.

    Args:
        arguments: nbdkit's, without what this function adds.
        what: names the disk in errors.
        size_bytes: what it must be long.
        secret: given to the plugin as its `password`, through a pipe: never in arguments, the
            environment or a file.
    """
    with folder.open_private() as place:
        server = Server(arguments, place, what=what, secret=secret)
        try:
            server.open(size_bytes)
            try:
                yield server.address
            except (Unavailable, ProtocolError, NotFound) as error:
                # Whatever else fails in the body, such as a full repository, is not ours. A disk
                # that cannot be opened for one more client reads as an export that is not there.
                is_ours = error.kind.startswith("nbd-") or error.kind == "export-unknown"
                found = server.explain() if is_ours else None
                if found is None:
                    raise
                raise found from error
        finally:
            server.close()


def _start(command: list[str], place: Path, secret: str) -> "subprocess.Popen[bytes]":
    with contextlib.ExitStack() as stack:
        inherited = []
        if secret:
            reading = stack.enter_context(_open_pipe(secret))
            inherited = [reading]
            command = [*command, f"password=-{reading}"]
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=inherited,
                env=_make_environment(place),
            )
        except FileNotFoundError as error:
            raise Unavailable(
                "nbdkit is not installed",
                hint="see `sendense doctor` for the package of your distribution",
                kind="program-missing",
            ) from error
    raise AssertionError("the stack keeps no error")


def _start_guard(pid: int, address: Address, place: Path) -> "subprocess.Popen[bytes]":
    arguments = [str(pid), _GUARD_SECONDS, str(address.socket_path), str(place)]
    return subprocess.Popen(
        ["sh", "-c", _GUARD, "sendense-guard", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=_make_environment(place),
        start_new_session=True,  # Ctrl-C is for those whom it guards
    )


def _make_environment(place: Path) -> dict[str, str]:
    """Return what nbdkit gets; VDDK leaves its logs and settings in the private folder."""
    kept = {name: os.environ[name] for name in _ENVIRONMENT_KEPT if name in os.environ}
    return {**kept, "LANG": "C.UTF-8", "HOME": str(place), "TMPDIR": str(place)}


@contextlib.contextmanager
def _open_pipe(secret: str) -> Iterator[int]:
    """Give a descriptor from which the secret can be read once."""
    data = secret.encode() + b"\n"
    if "\n" in secret or "\0" in secret or len(data) > SECRET_BYTES_MAX:
        raise Invalid(
            "the password has a line break in it or is too long for nbdkit",
            kind="source-config-invalid",
            hint="give the vCenter user another password",
        )
    reading, writing = os.pipe()
    try:
        try:
            os.write(writing, data)
        finally:
            os.close(writing)
        yield reading
    finally:
        os.close(reading)
