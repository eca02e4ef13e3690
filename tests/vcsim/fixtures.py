"""Fixtures of simulated vCenters; see demo/vcenter.

`vcenter` is shared by the tests of a file: each makes VMs of its own names, and leaves no trouble.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from demo.golang import CannotFetch
from demo.vcenter import simulator
from demo.vcenter.lab import Vcenter


def require_simulator() -> None:
    """Skip where no Go module can be fetched, but never where a whole run is the point."""
    require(simulator.build)


def require(build: Callable[[], Path]) -> None:
    """Skip where a Go program cannot be fetched, but never where a whole run is the point."""
    try:
        build()
    except CannotFetch as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def shared_vcenter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vcenter]:
    """A vCenter without VMs."""
    require_simulator()
    with Vcenter(tmp_path_factory.mktemp("vcenter")) as lab:
        yield lab


@pytest.fixture
def vcenter(shared_vcenter: Vcenter) -> Iterator[Vcenter]:
    """A vCenter with the VMs of other tests of the file, and without trouble."""
    shared_vcenter.clear_trouble()
    yield shared_vcenter
    shared_vcenter.clear_trouble()
    assert shared_vcenter.is_running, f"vcsim died of this test: {shared_vcenter.read_log()}"


@pytest.fixture
def make_vcenter(tmp_path: Path) -> Iterator[Callable[..., Vcenter]]:
    """Give a vCenter of its own with each call, with the launcher's options."""
    require_simulator()
    with ExitStack() as stack:

        def make(*options: str) -> Vcenter:
            number = len(list(tmp_path.glob("vcenter-*")))
            return stack.enter_context(Vcenter(tmp_path / f"vcenter-{number}", *options))

        yield make
