"""Fixtures of the fault tests: a hub on a disk that fails when it is told to."""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults import served
from tests.faults.served import Served


@dataclass(frozen=True)
class Disk:
    """Tells the shim in the hub and its worker what fails; see disk.c."""

    control: Path

    def fail(self, path: Path, number: int, *, milliseconds: int = 0) -> None:
        """Let each call on files below a path fail, from now on."""
        scratch = self.control.with_suffix(".new")
        scratch.write_text(f"{number} {milliseconds} {path}")
        scratch.rename(self.control)

    def slow(self, path: Path, milliseconds: int) -> None:
        """Let whatever changes a file below a path take longer, so that there is a middle."""
        self.fail(path, 0, milliseconds=milliseconds)

    def mend(self) -> None:
        """Let all be well again."""
        self.control.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = served.build_shim(tmp_path_factory.mktemp("shim"))
    if library is None:
        if os.environ.get("CI"):
            pytest.fail("no C compiler, and CI tests failing disks")
        pytest.skip("no C compiler: install gcc")
    return library


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    return Disk(tmp_path_factory.mktemp("control") / "faults")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, shim: Path, disk: Disk) -> Iterator[Served]:
    """One hub for the tests of a module: each fault must leave it fit for the next."""
    folder = tmp_path_factory.mktemp("hub")
    environment = {"LD_PRELOAD": str(shim), "SENDENSE_FAULTS": str(disk.control)}
    with served.serve(folder, environment=environment) as running:
        running.add_repository("main", folder / "repository")
        yield running


FAULTS = [
    pytest.param(errno.ENOSPC, id="disk-full"),
    pytest.param(errno.EROFS, id="read-only"),
    pytest.param(errno.EIO, id="io-error"),
]


@pytest.fixture(autouse=True)
def _mended(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that fails leaves no failing disk to the next one."""
    yield
    if "disk" in request.fixturenames:
        request.getfixturevalue("disk").mend()
