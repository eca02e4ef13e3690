"""A hub whose nbdkit has the vddk plugin, or has none, and the command line against it."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from demo.hub import Hub
from demo.vcenter.lab import Vcenter

COMMAND_SECONDS_MAX = 120.0
ANSWER_SECONDS_MAX = 60.0
ABSENT = "vddk-plugin-that-is-not-here"
# nbdkit finds plugins in the folder that it was built for, where a test has no business.
# What each is started with is written down: some live for less than a look at all processes takes.
_PROGRAM = """#!/bin/sh
cat "/proc/$$/cmdline" "/proc/$$/environ" >>"{starts}"
read -r plugin <"{choice}"
for word do
    shift
    [ "$word" = vddk ] && word=$plugin
    set -- "$@" "$word"
done
exec "{nbdkit}" "$@"
"""


class Nbdkit:
    """A folder for PATH with an nbdkit that takes another plugin than `vddk` where it is told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._choice = folder / "choice"
        self._starts = folder / "starts"
        self._starts.touch()
        self.choose(ABSENT)
        program = folder / "nbdkit"
        nbdkit = shutil.which("nbdkit")
        assert nbdkit is not None, "the tests need nbdkit"
        program.write_text(_PROGRAM.format(choice=self._choice, starts=self._starts, nbdkit=nbdkit))
        program.chmod(0o755)

    def choose(self, plugin: str) -> None:
        """Let `vddk` be a plugin of this name or file."""
        self._choice.write_text(f"{plugin}\n")

    @property
    def starts(self) -> bytes:
        """Command line and environment of every one so far."""
        return self._starts.read_bytes()

    @property
    def environment(self) -> dict[str, str]:
        """What finds it before the machine's own."""
        return {"PATH": f"{self.folder}:{os.environ['PATH']}"}


@dataclass
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass
class Client:
    """The API and the command line of a hub.

    Attributes:
        seen: all answers and outputs so far.
    """

    hub: Hub
    seen: list[str] = field(default_factory=list)

    def ask(self, method: str, path: str, body: object = None) -> httpx.Response:
        """Return an answer, whatever its status."""
        answer = httpx.request(
            method,
            f"{self.hub.address}/api/v1{path}",
            json=body,
            trust_env=False,
            timeout=ANSWER_SECONDS_MAX,
        )
        self.seen.append(answer.text)
        return answer

    def probe(self, config: dict[str, Any], credentials: dict[str, str]) -> httpx.Response:
        """Ask whether a vCenter answers."""
        body = {"type": "vsphere", "config": config, "credentials": credentials}
        return self.ask("POST", "/sources/test", body)

    def register(self, config: dict[str, Any], credentials: dict[str, str]) -> tuple[str, str]:
        """Register a source, or change the one of this host; return id and name."""
        sources = self.hub.get("/sources")["sources"]
        for one in sources:
            if one["config"]["host"] == config["host"]:
                changes = {"config": config, "credentials": credentials}
                answer = self.ask("PATCH", f"/sources/{one['id']}", changes)
                break
        else:
            body = {"name": f"vc{len(sources)}", "type": "vsphere", "config": config}
            answer = self.ask("POST", "/sources", {**body, "credentials": credentials})
        assert answer.is_success, answer.text
        return str(answer.json()["id"]), str(answer.json()["name"])

    def discover(self, source_id: str) -> dict[str, Any]:
        """Return a discovery that has ended."""
        started = self.ask("POST", f"/sources/{source_id}/discover", {}).json()
        return self.hub.wait_for_end(started["job_id"])

    def run(self, *arguments: str, typed: str = "") -> Result:
        """Run a command; `typed` comes from its standard input."""
        done = subprocess.run(
            [sys.executable, "-m", "sendense.cli.main", *arguments],
            input=typed,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
            check=False,
            cwd=self.hub.folder,
            env={**os.environ, "SENDENSE_URL": self.hub.address},
        )
        self.seen += [done.stdout, done.stderr]
        return Result(done.returncode, done.stdout, done.stderr)


def describe_vddk(vcenter: Vcenter, libdir: Path) -> dict[str, Any]:
    """Return the configuration of a source that reads a vCenter's disks by VDDK."""
    given = vcenter.describe(reader="vddk", vddk_libdir=str(libdir))
    del given["file_dir"]
    return given
