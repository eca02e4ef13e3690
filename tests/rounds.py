"""Random tests repeated with fresh seeds until a long run's time is used up; see docs/testing.md.

Two kinds take part: every test of hypothesis, and every test that asks for the fixture `rounds`.
They share the minutes of `--long-minutes`, by the weights of their marker
`share`. A quick run does one round of each. The first round has the run's own seed, so `--seed N`
with a round's seed repeats that round at once.
"""

import gc
import random
import time
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

SEED_BITS = 32  # fits what every generator here takes
SLACK_SECONDS = 300.0  # a round that began in time may end late; pytest's own limit besides
ROUNDS = "rounds"  # of what is reported, and of the fixture


class Rounds:
    """Seeds for one test, one round each: `for seed in rounds`.

    Attributes:
        seconds: no round begins later than so many seconds after the first; 0 gives one round.
        count: rounds that began. seed: of the newest one.
    """

    def __init__(self, seed: int, *, seconds: float) -> None:
        self.seconds = seconds
        self.count = 0
        self.seed = seed
        self._first = seed

    def __iter__(self) -> Iterator[int]:
        chooser = random.Random(self._first)
        self.seed = self._first
        end = time.monotonic() + self.seconds
        while not self.count or time.monotonic() < end:
            self.count += 1
            gc.collect()  # what a round leaves behind in cycles holds its disks
            yield self.seed
            self.seed = chooser.getrandbits(SEED_BITS)


_ROUNDS = pytest.StashKey[Rounds]()


def is_random(item: pytest.Item) -> bool:
    """Whether a test takes part."""
    return ROUNDS in getattr(item, "fixturenames", ()) or _is_hypothesis(item)


def _is_hypothesis(item: pytest.Item) -> bool:
    return bool(getattr(getattr(item, "obj", None), "is_hypothesis_test", False))


def _weigh(item: pytest.Item) -> float:
    marker = item.get_closest_marker("share")
    return float(marker.args[0]) if marker else 1.0


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, and repeat what is random in a long run."""
    if config.option.long:
        config.pluginmanager.register(RepeatedProperties(), "repeated-properties")
    config.addinivalue_line(
        "markers", "share(weight): how much of a long run's time a random test gets, 1 if not said"
    )


def pytest_collection_finish(session: pytest.Session) -> None:
    """Give each random test its share of the time, and a limit that fits it."""
    option = session.config.option
    chosen = [item for item in session.items if is_random(item)]
    weights = sum(map(_weigh, chosen))
    # With `-n` each process collects all tests and runs a part of them.
    processes = getattr(session.config, "workerinput", {}).get("workercount", 1)
    for item in chosen:
        seconds = 0.0
        if option.long:
            seconds = option.long_minutes * 60 * processes * _weigh(item) / weights
            known = item.get_closest_marker("timeout")
            limit = max(seconds + SLACK_SECONDS, known.args[0] if known and known.args else 0)
            item.add_marker(pytest.mark.timeout(limit), append=False)
        item.stash[_ROUNDS] = Rounds(option.seed, seconds=seconds)


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> Rounds:
    """Return the seeds to try: one in a quick run, fresh ones for a share of a long run."""
    mine: Rounds = request.node.stash[_ROUNDS]
    return mine


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """Say with a failure which round it was, and how to come back to it."""
    try:
        return (yield)
    except BaseException as error:
        mine = pyfuncitem.stash.get(_ROUNDS, None)
        if mine is not None and mine.count:
            depth = " --long" if pyfuncitem.config.option.long else ""
            error.add_note(f"round {mine.count}: repeat it with{depth} --seed {mine.seed}")
        raise
    finally:
        mine = pyfuncitem.stash.get(_ROUNDS, None)
        if mine is not None:
            pyfuncitem.user_properties.append((ROUNDS, mine.count))


class RepeatedProperties:
    """Calls the tests of hypothesis once for each round; registered in long runs only."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool | None:
        """Take the call over from pytest."""
        mine = pyfuncitem.stash.get(_ROUNDS, None)
        if mine is None or not _is_hypothesis(pyfuncitem):
            return None
        test: Any = pyfuncitem.obj
        names = pyfuncitem._fixtureinfo.argnames  # as pytest's own implementation does
        arguments = {name: pyfuncitem.funcargs[name] for name in names}
        for seed in mine:
            hypothesis.seed(seed)(test)(**arguments)
        return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List how many rounds each random test had in a long run."""
    option = terminalreporter.config.option
    if not option.long:
        return
    lines = [
        f"{dict(report.user_properties)[ROUNDS]:6} rounds  {report.nodeid}"
        for state in ("passed", "failed")
        for report in terminalreporter.stats.get(state, [])
        if ROUNDS in dict(report.user_properties) and report.when == "call"
    ]
    if lines:
        terminalreporter.section(f"random suites, seed {option.seed}")
        for line in lines:
            terminalreporter.write_line(line)
