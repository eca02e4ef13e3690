"""Something is killed or frozen at each side of each step of a backup; nothing is lost by it."""

import random

import pytest

from tests.kill import blows
from tests.kill.blows import Blow
from tests.kill.rig import Rig

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

STEPS = (
    "plan",
    "take_snapshot",
    "decide",
    "transfer.disk-2000",
    "wait_transfers",
    "commit",
    "record",
    "remove_snapshot",
    "finish",
)
SIDES = [(when, step) for step in STEPS for when in ("before", "after")]
# Here the snapshot stands: what the guest writes is copied aside before it is overwritten.
STANDS = SIDES[SIDES.index(("after", "take_snapshot")) : SIDES.index(("after", "remove_snapshot"))]
KILLS_MAX = 4  # in one backup, below the take-overs after which a job is given up


def choose_boundaries(dice: random.Random, *, long_run: bool) -> list[tuple[str, str]]:
    """Return where to strike: at each boundary of steps once, in a long run on both its sides.

    Behind one step and before the next is one boundary; which side it is, the seed says.
    """
    if long_run:
        return SIDES
    between = zip(SIDES[1:-1:2], SIDES[2::2], strict=True)
    return [SIDES[0], *(dice.choice(pair) for pair in between), SIDES[-1]]


def overwrite(rig: Rig, when: str, step: str) -> None:
    """Let the guest write while the snapshot stands, which must not reach the backup."""
    if (when, step) in STANDS:
        rig.guest.shell("dd if=/dev/urandom of=/dev/vda bs=64k seek=3 count=4 conv=notrunc; sync")


def test_a_worker_killed_at_each_boundary_of_steps_is_replaced(
    rig: Rig, dice: random.Random, *, long_run: bool
) -> None:
    chosen = choose_boundaries(dice, long_run=long_run)
    for first in range(0, len(chosen), KILLS_MAX):
        sides = chosen[first : first + KILLS_MAX]
        for when, step in sides:
            rig.stop_at(when, step)
        started = rig.ask(rig.write())
        for when, step in sides:
            rig.wait_until_held(started.job_id)
            overwrite(rig, when, step)
            blows.kill_worker(rig, started, dice)
        repeats = sum(when == "after" and "transfer." not in step for when, step in sides)
        backup = rig.settle(started, repeats=repeats, kills=len(sides))
        assert backup["status"] == "completed"
        assert backup["disks"][0]["backup_type"] == "incremental", backup["disks"]


ALL = [(blow, side) for kind in blows.KINDS.values() for blow in kind for side in SIDES]
SAMPLE_SIZE = 2  # each takes some seconds
SAMPLE = [blows.freeze_worker, blows.kill_hub, blows.kill_guest, blows.cancel]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Strike everything everywhere in a long run; in a quick one some, where the seed says."""
    if "blow" not in metafunc.fixturenames:
        return
    dice = random.Random(metafunc.config.option.seed)
    chosen = ALL
    if not metafunc.config.option.long:
        chosen = [(blow, dice.choice(SIDES)) for blow in dice.sample(SAMPLE, SAMPLE_SIZE)]
    metafunc.parametrize(
        ("blow", "side"),
        [pytest.param(blow, side, id="-".join((blow.__name__, *side))) for blow, side in chosen],
    )


def test_whatever_is_struck_beside_a_step_all_goes_on(
    rig: Rig, dice: random.Random, blow: Blow, side: tuple[str, str]
) -> None:
    if blow in blows.KINDS["hub"]:
        rig.drop_spares()
    rig.stop_at(*side)
    started = rig.ask(rig.write())
    rig.wait_until_held(started.job_id)
    overwrite(rig, *side)
    blows.strike(rig, blow, started, dice)
