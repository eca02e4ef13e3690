"""A server process of the tests: unprivileged, on a free port, gone with the test process.

A guard, a shell in a session of its own, waits on a pipe that only the test process holds open.
When that ends, however it ends, the guard kills the server and removes its folder.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import psutil

START_SECONDS_MAX = 120.0  # a second on an idle machine
STOP_SECONDS_MAX = 60.0
POLL_SECONDS = 0.02
START_ATTEMPTS_MAX = 5  # somebody else may take the free port in between
UNPRIVILEGED_USER = "nobody"  # what servers run as where the tests run as root
LOG_LINES_SHOWN = 20

# The children of a frozen server survive it, so they are looked up first: $1 process, $2 folder.
GUARD = """
read -r word
if [ "$word" != stopped ]; then
    kill -STOP "$1" 2>/dev/null
    kill -KILL $(cat /proc/"$1"/task/*/children 2>/dev/null) "$1" 2>/dev/null
    rm -rf -- "$2"
fi
"""


class Process:
    """One running server process with its guard."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._log: IO[bytes] = (folder.parent / "log").open("ab")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C is for the tests
            **unprivileged(),
        )
        self._guard = subprocess.Popen(
            ["sh", "-c", GUARD, "guard", str(self.process.pid), str(folder.parent)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    @property
    def ended(self) -> bool:
        """Whether the server is gone."""
        return self.process.poll() is not None

    def end(self, number: signal.Signals) -> None:
        """Send a signal that ends the server, and wait for it and its children."""
        everything = self.list_all()
        if not self.ended:
            self.process.send_signal(number)
        for one in everything:  # a test that failed may have left them frozen
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGCONT)
        _, alive = psutil.wait_procs(everything, timeout=STOP_SECONDS_MAX)
        for left in alive:
            left.kill()
        self.process.wait(timeout=STOP_SECONDS_MAX)
        self._guard.communicate(b"stopped\n", timeout=STOP_SECONDS_MAX)
        self._log.close()
        assert not alive, f"{alive} did not end"

    def send_to_all(self, number: signal.Signals) -> None:
        """Send a signal to the server, then to its children: none is born in between."""
        if self.ended:
            return
        self.process.send_signal(number)
        for one in self.list_all()[1:]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(number)

    def list_all(self) -> list[psutil.Process]:
        """Return the server and its children."""
        try:
            server = psutil.Process(self.process.pid)
            return [server, *server.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


class Server:
    """A database server on 127.0.0.1 that can be stopped, killed and frozen.

    Subclasses say how it is initialised, started and asked. It keeps its port over restarts.
    """

    name = "server"
    stop_signal = signal.SIGTERM

    def __init__(self) -> None:
        self.root = make_folder(self.name)
        self.folder = self.root / "data"
        self.port = 0
        self._process: Process | None = None
        self._databases = 0
        try:
            self.initialise()
            self._start_on_a_free_port()
        except BaseException:
            self.close()
            raise

    def initialise(self) -> None:
        """Make the data folder."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """Return what starts the server."""
        raise NotImplementedError

    def ask(self, statement: str) -> Any:
        """Execute a statement as the superuser; its first value, if it has any."""
        raise NotImplementedError

    def create_database(self) -> str:
        """Create an empty database and return the URL of its owner."""
        raise NotImplementedError

    @property
    def process(self) -> Process:
        """The running process."""
        assert self._process is not None, f"{self.name} does not run"
        return self._process

    def start(self) -> None:
        """Start the server and wait until it answers."""
        assert self._process is None, f"{self.name} runs already"
        self._process = process = Process(self.command(), self.folder)
        wait_until(lambda: process.ended or self._answers(), START_SECONDS_MAX, self.name)
        if process.ended:
            self.stop()
            raise RuntimeError(f"{self.name} did not start:\n{self.log()}")

    def stop(self) -> None:
        """Let the server end its work: connections are closed, nothing confirmed is lost."""
        process, self._process = self.process, None
        process.end(self.stop_signal)

    def kill(self) -> None:
        """Kill the server; what it confirmed is in the files, but has to be recovered."""
        process, self._process = self.process, None
        process.end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start on the same port."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Let the server stand still: the kernel takes its packets, nobody answers them."""
        self.process.send_to_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        self.process.send_to_all(signal.SIGCONT)

    def close(self) -> None:
        """End the server and remove its folder."""
        if self._process is not None:
            self.kill()
        shutil.rmtree(self.root, ignore_errors=True)

    def log(self) -> str:
        """Return the last lines of the server's log."""
        lines = (self.root / "log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES_SHOWN:])

    def run(self, command: list[str]) -> None:
        """Run a program that initialises the server, as the server's user."""
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd=self.root,
            timeout=START_SECONDS_MAX,
            **unprivileged(),
        )
        assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"

    def _answers(self) -> bool:
        try:
            self.ask("SELECT 1")
        except Exception:  # noqa: BLE001 - the driver's own errors: whatever it is, not yet
            return False
        return True

    def _start_on_a_free_port(self) -> None:
        for attempt in range(START_ATTEMPTS_MAX):
            with socket.socket() as listening:
                listening.bind(("127.0.0.1", 0))
                self.port = listening.getsockname()[1]
            try:
                self.start()
            except RuntimeError:
                if attempt == START_ATTEMPTS_MAX - 1:
                    raise
            else:
                return


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for a condition, for a limited time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(POLL_SECONDS)


def unprivileged() -> dict[str, Any]:
    """Return the arguments of subprocess that make root's child a plain user's."""
    if os.geteuid() != 0:
        return {}
    return {"user": UNPRIVILEGED_USER, "group": _group(), "extra_groups": []}


def make_folder(name: str) -> Path:
    """Return a new folder that only the server's user may enter, below open folders."""
    places = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]  # noqa: S108 - mkdtemp
    place = next(place for place in places if os.geteuid() != 0 or _is_open(place))
    folder = Path(tempfile.mkdtemp(prefix=f"sendense-{name}-", dir=place))
    if os.geteuid() == 0:
        shutil.chown(folder, UNPRIVILEGED_USER, _group())
    return folder


def _is_open(place: Path) -> bool:
    """Whether everybody may pass: pytest's own folders are root's alone."""
    return all(step.stat().st_mode & stat.S_IXOTH for step in (place, *place.resolve().parents))


def _group() -> int:
    return pwd.getpwnam(UNPRIVILEGED_USER).pw_gid
