"""The tiny guest under QEMU: start, talk to it, stop it in every way that a test may want."""

import base64
import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from demo.guest.image import GuestImage
from sendense.connectors.qemu.agent import Agent, AgentSilent
from sendense.connectors.qemu.qmp import Qmp
from sendense.core.errors import Unavailable

BOOT_SECONDS_MAX = 90.0  # two seconds on an idle machine under TCG; many more where tests share it
SHELL_SECONDS_MAX = 120.0
EXIT_SECONDS_MAX = 15.0
KVM_SECONDS_MAX = 4.0  # a guest under KVM is up within a second
POLL_SECONDS = 0.02
TCG = "tcg,thread=multi"


@functools.cache
def choose_accelerator(image: GuestImage) -> str:
    """Return `kvm` where the guest really boots under it, else `tcg,thread=multi`.

    The presence of /dev/kvm says little: in nested set-ups it may exist and hang, even after the
    firmware has run. So the guest itself has to come up under it, in time.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return TCG
    try:
        process = subprocess.Popen(
            ["qemu-system-x86_64", "-accel", "kvm", "-machine", "q35", "-m", "192",
             "-display", "none", "-nodefaults", "-no-user-config", "-no-reboot",
             "-kernel", str(image.kernel), "-initrd", str(image.initrd),
             "-append", "console=ttyS0 quiet panic=-1", "-serial", "stdio"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise Unavailable(
            "qemu-system-x86_64 is missing", hint="apt-get install qemu-system-x86"
        ) from error
    assert process.stdout is not None
    try:
        return "kvm" if _says(process.stdout, b"sendense-guest: ready", KVM_SECONDS_MAX) else TCG
    finally:
        process.kill()
        process.stdout.close()
        # A process stuck in the kernel's KVM code may not even die in time; it is left to init.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=KVM_SECONDS_MAX)


def _says(stream: IO[bytes], word: bytes, seconds_max: float) -> bool:
    deadline = time.monotonic() + seconds_max
    heard = b""
    while word not in heard:
        ready, _, _ = select.select([stream], [], [], max(0, deadline - time.monotonic()))
        data = os.read(stream.fileno(), 4096) if ready else b""
        if not data:
            return False
        heard += data
    return True


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of the guest: an image, and how it is attached.

    Attributes:
        name: the node's name; its device is `<name>-device`.
    """

    name: str
    path: Path
    image_format: str
    serial: str = ""

    def blockdev(self) -> dict[str, Any]:
        """Return the node as `-blockdev` and `blockdev-add` want it."""
        return {
            "driver": self.image_format,
            "node-name": self.name,
            "discard": "unmap",
            "file": {"driver": "file", "filename": str(self.path), "discard": "unmap"},
        }

    def device(self) -> dict[str, Any]:
        """Return the device as `-device` and `device_add` want it."""
        device = {"driver": "virtio-blk-pci", "id": f"{self.name}-device", "drive": self.name}
        return device | ({"serial": self.serial} if self.serial else {})


@dataclass
class Guest:
    """A guest in a folder of its own. `start` and `stop` may be repeated; disks stay.

    Attributes:
        mounts: `(device, directory)` pairs of ext4 file systems to mount at boot.
        ports: free PCIe ports for disks that are plugged in while the guest runs.
        arguments: further arguments for QEMU.
    """

    name: str
    uuid: str
    folder: Path
    image: GuestImage
    disks: list[Disk]
    mounts: Sequence[tuple[str, str]] = ()
    memory_mib: int = 192
    ports: int = 1
    arguments: Sequence[str] = ()
    has_agent: bool = True
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _monitor: Qmp | None = field(default=None, init=False, repr=False)

    @property
    def qmp_socket(self) -> Path:
        """The monitor for the hub."""
        return self.folder / "hub.qmp"

    @property
    def agent_socket(self) -> Path:
        """The guest agent's channel; shared, so only one may use it at a time."""
        return self.folder / "agent"

    @property
    def process_id(self) -> int:
        """QEMU's process."""
        assert self._process is not None
        return self._process.pid

    @property
    def monitor(self) -> Qmp:
        """The tester's own monitor."""
        assert self._monitor is not None, "the guest is not running"
        return self._monitor

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not been stopped since."""
        return self._process is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def start(self) -> float:
        """Boot the guest, wait for its agent, and return the seconds that this took."""
        assert self._process is None, "the guest is running"
        started = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        for socket in (self.qmp_socket, self.agent_socket, self.folder / "tester.qmp"):
            socket.unlink(missing_ok=True)
        with (self.folder / "qemu.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                restore_signals=False,  # a limit on file sizes shall be an error, not a signal
            )  # fmt: skip
        try:
            self._wait_until_ready(started + BOOT_SECONDS_MAX)
        except BaseException:
            self.kill()
            raise
        return time.monotonic() - started

    def shell(self, script: str, *, seconds_max: float = SHELL_SECONDS_MAX) -> str:
        """Run a script in the guest and return its output. Raises Unavailable where it fails."""
        with Agent(self.agent_socket, seconds_max=SHELL_SECONDS_MAX) as agent:
            arguments = {"path": "/bin/sh", "arg": ["-c", script], "capture-output": True}
            pid = agent.execute("guest-exec", arguments, seconds_max=seconds_max)["pid"]
            deadline = time.monotonic() + seconds_max
            while time.monotonic() < deadline:
                state = agent.execute("guest-exec-status", {"pid": pid}, seconds_max=seconds_max)
                if state["exited"]:
                    break
                time.sleep(POLL_SECONDS)
            else:
                raise Unavailable(f"the guest did not finish in {seconds_max:g} s: {script}")
        output = b"".join(
            base64.b64decode(state.get(stream, "")) for stream in ("out-data", "err-data")
        ).decode(errors="replace")
        if state.get("exitcode", 1) != 0:
            raise Unavailable(f"the guest failed at {script!r}: {output.strip()[-300:]}")
        return output

    def spawn(self, script: str) -> None:
        """Start a script in the guest and leave it running."""
        self.shell(f"({script}) </dev/null >/dev/null 2>&1 &")

    def pause(self) -> None:
        """Stop the guest's CPUs and write out what QEMU holds."""
        self.monitor.execute("stop")

    def resume(self) -> None:
        """Let the guest run on."""
        self.monitor.execute("cont")

    def plug(self, disk: Disk) -> None:
        """Attach another disk to the running guest."""
        self.monitor.execute("blockdev-add", **disk.blockdev())
        port = f"port{sum(1 for known in self.disks if known.name.startswith('plugged'))}"
        self.monitor.execute("device_add", bus=port, **disk.device())
        self.disks.append(disk)

    def quit(self) -> None:
        """End QEMU in order: images are closed, persistent bitmaps are stored."""
        self.monitor.execute("quit")
        self._reap()

    def kill(self) -> None:
        """End QEMU at once, as a power cut would; nothing where it does not run."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._reap()

    def _reap(self) -> None:
        assert self._process is not None
        self._process.wait(timeout=EXIT_SECONDS_MAX)
        self._process = None
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None

    def _wait_until_ready(self, deadline: float) -> None:
        while self._monitor is None:
            try:
                self._monitor = Qmp(self.folder / "tester.qmp")
            except Unavailable:
                self._check_progress(deadline)
        while self.has_agent:
            try:
                Agent(self.agent_socket, seconds_max=1).close()
            except AgentSilent:
                self._check_progress(deadline)
            else:
                break

    def _check_progress(self, deadline: float) -> None:
        assert self._process is not None
        time.sleep(POLL_SECONDS)
        if self._process.poll() is None and time.monotonic() < deadline:
            return
        said = (self.folder / "qemu.log").read_text(errors="replace")[-500:]
        serial = self.folder / "serial.log"
        shown = serial.read_text(errors="replace")[-1000:] if serial.exists() else ""
        raise Unavailable(f"guest {self.name} did not start: {said}{shown}")

    def _command(self) -> list[str]:
        line = "console=ttyS0 quiet panic=-1"
        if self.mounts:
            line += " mounts=" + ",".join(f"{device}:{where}:ext4" for device, where in self.mounts)
        command = [
            "qemu-system-x86_64", "-accel", choose_accelerator(self.image), "-machine", "q35",
            "-name", self.name, "-uuid", self.uuid, "-m", str(self.memory_mib), "-smp", "1",
            "-display", "none", "-nodefaults", "-no-user-config", "-no-reboot",
            "-kernel", str(self.image.kernel), "-initrd", str(self.image.initrd), "-append", line,
            "-chardev", f"file,id=serial,path={self.folder}/serial.log", "-serial",
            "chardev:serial",
            "-qmp", f"unix:{self.qmp_socket},server=on,wait=off",
            "-qmp", f"unix:{self.folder}/tester.qmp,server=on,wait=off",
            "-device", "virtio-serial-pci",
            "-chardev", f"socket,id=agent,path={self.agent_socket},server=on,wait=off",
            "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
        ]  # fmt: skip
        for port in range(self.ports):
            command += ["-device", f"pcie-root-port,id=port{port},chassis={port + 1}"]
        for disk in self.disks:
            command += ["-blockdev", json.dumps(disk.blockdev())]
            command += ["-device", json.dumps(disk.device())]
        return [*command, *self.arguments]
