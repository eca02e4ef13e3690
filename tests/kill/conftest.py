"""One guest, one hub and their workers for each file of tests: booting for each costs minutes.

Not for the whole run: spare workers and guests would take half a core from all tests after these.
"""

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.guest import image

pytest.register_assert_rewrite("tests.kill.rig")

from tests.kill.rig import Rig  # noqa: E402 - its assertions have to be rewritten first


@pytest.fixture(scope="module")
def shared_rig() -> Iterator[Rig]:
    # Not pytest's own folder: its path is too long for a unix socket's name.
    with tempfile.TemporaryDirectory(prefix="sendense-kill-") as name:
        rig = Rig(Path(name), image.build())
        try:
            yield rig
        finally:
            rig.close()


@pytest.fixture
def rig(shared_rig: Rig) -> Iterator[Rig]:
    """Return the rig with everything running and a backup to build on."""
    shared_rig.heal()
    yield shared_rig
    for left in shared_rig.stops.glob("stop-*"):
        left.unlink()
    shared_rig.release()


@pytest.fixture
def only_long(*, long_run: bool) -> None:
    """Skip a test in a quick run."""
    if not long_run:
        pytest.skip("only in a long run")


@pytest.fixture
def dice(request: pytest.FixtureRequest, seed: int) -> random.Random:
    """Return randomness of this run's seed, other for each test, the same for a test alone."""
    return random.Random(f"{seed} {request.node.name}")
