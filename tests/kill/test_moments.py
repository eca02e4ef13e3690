"""Something is killed or frozen at random moments of a backup; `--seed N` repeats them."""

import random
import threading
import time

import pytest

from tests.kill import blows
from tests.kill.rig import Rig

pytestmark = [pytest.mark.guest, pytest.mark.timeout(3600)]

MOMENTS, MOMENTS_LONG = 2, 20
READ_SECONDS = 0.05  # makes reading last as long as the rest, so that moments fall into it


@pytest.mark.parametrize("kind", blows.KINDS)
def test_whatever_is_struck_at_random_moments_all_goes_on(
    rig: Rig, dice: random.Random, kind: str, *, long_run: bool
) -> None:
    if kind == "person" and not long_run:
        pytest.skip("only in a long run")
    if kind == "hub":
        rig.drop_spares()
    else:
        rig.ensure_workers(2)
    with rig.slow_reads(READ_SECONDS):
        first, began = rig.ask(rig.write()), time.monotonic()
        rig.hub.wait_for_job(first.job_id)
        usual = time.monotonic() - began
        rig.settle(first)
        for number in range(MOMENTS_LONG if long_run else MOMENTS):
            # The first ones are never mere freezes: the quick run has only these.
            blow = blows.KINDS[kind][0] if number < MOMENTS else dice.choice(blows.KINDS[kind])
            delay = dice.uniform(0, usual)
            started = rig.ask(rig.write())
            threading.Event().wait(delay)
            try:
                blows.strike(rig, blow, started, dice)
            except BaseException as error:
                error.add_note(f"moment {number}: {blow.__name__} after {delay:.3f} s")
                raise


def test_every_backup_that_was_committed_still_restores(rig: Rig) -> None:
    for kept in rig.history:
        rig.assert_restores(kept)
    rig.assert_repositories_whole()
