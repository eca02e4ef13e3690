"""Builds and runs govmomi's vCenter simulator, by a launcher of ours (tests/vcsim/launcher)."""

import uuid
from pathlib import Path

from demo import golang

LAUNCHER = golang.ROOT / "tests" / "vcsim" / "launcher"
USER = "backup@vsphere.local"


def build() -> Path:
    """Return the program, built once for each state of its source; see `golang.build`."""
    return golang.build(LAUNCHER, "vcsim")


class Simulator(golang.Program):
    """A running simulator on a free port of the loopback.

    Args:
        password: of `USER`.
        options: of the launcher, such as `-vms 1000`.
    """

    def __init__(self, program: Path, password: str, *options: str) -> None:
        self.password = password
        super().__init__(
            program,
            ["-user", USER, "-identity", str(uuid.uuid4()), *options],
            {"VCSIM_PASSWORD": password},
        )
