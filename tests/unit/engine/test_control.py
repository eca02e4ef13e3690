import contextvars
import threading
import time

import pytest

from sendense.core.errors import Cancelled, Unavailable
from sendense.engine.control import Control


def test_a_control_that_nobody_touched_lets_everything_pass() -> None:
    control = Control()
    control.check()
    control.wait(0)
    assert not control.is_cancelled


def test_the_first_reason_to_cancel_is_the_one_that_is_told() -> None:
    control = Control()
    control.cancel("the user asked")
    control.cancel("too late")
    with pytest.raises(Cancelled, match="the user asked"):
        control.check()


def test_what_the_guard_raises_stops_the_transfer() -> None:
    def guard() -> None:
        raise Unavailable("the lease is lost")

    with pytest.raises(Unavailable, match="lease"):
        Control(guard).check()


def test_waiting_ends_when_somebody_cancels() -> None:
    control = Control()
    threading.Timer(0.05, control.cancel).start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        control.wait(60)
    assert time.monotonic() - started < 2


def test_work_apart_returns_its_result_and_raises_its_error() -> None:
    control = Control()
    assert control.run_apart(lambda: 7, name="t") == 7

    def fail() -> None:
        raise Unavailable("gone")

    with pytest.raises(Unavailable, match="gone"):
        control.run_apart(fail, name="t")


def test_cancelling_does_not_wait_for_work_apart_that_hangs() -> None:
    control = Control()
    release = threading.Event()
    threading.Timer(0.05, control.cancel).start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        control.run_apart(lambda: release.wait(60), name="t")
    assert time.monotonic() - started < 2
    release.set()


def test_work_apart_knows_in_whose_name_it_is_done() -> None:
    job = contextvars.ContextVar("job", default="nobody")
    within = contextvars.copy_context()
    within.run(job.set, "job-1")
    assert within.run(lambda: Control().run_apart(job.get, name="t")) == "job-1"
