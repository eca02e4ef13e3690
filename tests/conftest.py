"""What every test may rely on: printed seeds, `--long`, and the coverage gates.

One seed drives hypothesis and every test that asks for `seed`; it is printed in the header, and
`--seed N` repeats a run. How a long run spends its time is in tests/rounds.py.
"""

import io
import random
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

pytest_plugins = [
    "tests.servers.fixtures",
    "tests.servers.catalogs",
    "tests.vcsim.fixtures",
    "tests.s3.fixtures",
    "tests.rounds",
]

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "src" / "sendense"
SEED_MAX = 2**32 - 1  # fits what every generator here takes
# Minutes each: begun last, one process would still run them when the other has nothing left.
SLOWEST = ("kill", "workflow", "system", "faults", "crash", "property")
LONG_MINUTES = 60.0  # of a long run for the random suites together


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that the justfile's recipes pass through."""
    group = parser.getgroup("sendense")
    group.addoption("--long", action="store_true", help="run the same suites deeper")
    group.addoption(
        "--long-minutes", type=float, default=LONG_MINUTES, help="of --long, for the random suites"
    )
    group.addoption("--seed", type=int, default=None, help="repeat a run's randomness")


def is_part(config: pytest.Config) -> bool:
    """Whether this process runs a part of the tests for another one (`-n`)."""
    return hasattr(config, "workerinput")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a process that runs a part of the tests the seed of the whole run."""
    node.workerinput["seed"] = node.config.option.seed


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Choose the seed before hypothesis reads its own option."""
    if config.option.seed is None and is_part(config):
        config.option.seed = getattr(config, "workerinput")["seed"]  # noqa: B009 - the plugin adds it
    if config.option.seed is None:
        config.option.seed = random.SystemRandom().randint(0, SEED_MAX)
    if config.getoption("hypothesis_seed", None) is None:
        config.option.hypothesis_seed = str(config.option.seed)
    hypothesis.settings.register_profile("ours", deadline=None, print_blob=True)
    hypothesis.settings.load_profile("ours")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slowest folders; the rest stays in its order."""
    rank = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(
        key=lambda item: rank.get(item.path.relative_to(ROOT / "tests").parts[0], len(SLOWEST))
    )


def pytest_report_header(config: pytest.Config) -> str:
    """Print the seed, so that any failure can be repeated."""
    minutes = config.option.long_minutes
    depth = f"long, {minutes:g} minutes" if config.option.long else "quick"
    return f"seed: {config.option.seed} (repeat with --seed {config.option.seed}), depth: {depth}"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Return the run's seed, for tests that make their own random data."""
    return int(request.config.option.seed)


@pytest.fixture
def long_run(request: pytest.FixtureRequest) -> bool:
    """Whether to look deeper than a quick run does."""
    return bool(request.config.option.long)


@pytest.fixture
def untraced() -> Iterator[None]:
    """Do not measure coverage meanwhile: for tests that take the same lines over and over again.

    Measuring doubles their time. The gates rest on tests that say what a line is for.
    """
    tracer, of_threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    yield
    threading.settrace(of_threads)
    sys.settrace(tracer)


def _is_whole_run(config: pytest.Config) -> bool:
    option = config.option
    chosen = config.args_source is not pytest.Config.ArgsSource.TESTPATHS
    failed = getattr(option, "lf", False)  # there is none without pytest's cache
    narrowed = option.keyword or option.markexpr or failed or option.deselect or option.ignore
    return not (chosen or narrowed or option.collectonly)


def _list_missed_gates(config: pytest.Config) -> list[str]:
    """Return a line per package or module whose coverage fell below its gate in pyproject.toml."""
    controller = getattr(config.pluginmanager.getplugin("_cov"), "cov_controller", None)
    if controller is None or is_part(config) or not _is_whole_run(config):
        return []
    gates = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["sendense"]["coverage"]
    missed = []
    for package, gate in gates.items():
        text = io.StringIO()
        reached = controller.cov.report(
            include=[str(SOURCES / package / "*"), f"{SOURCES / package}.py"],
            file=text,
            show_missing=True,
            skip_covered=True,
        )
        if reached < gate:
            missed.append(
                f"{package}: {reached:.1f} % covered, the gate is {gate} %\n{text.getvalue()}"
            )
    return missed


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a whole run, measured with `--cov`, in which a finished package lost coverage."""
    if session.exitstatus == pytest.ExitCode.OK:
        missed = _list_missed_gates(session.config)
        session.config.stash[_MISSED] = missed
        if missed:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


_MISSED = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which gates were missed, above pytest's closing line."""
    missed = terminalreporter.config.stash.get(_MISSED, [])
    if missed:
        terminalreporter.section("coverage gates missed", red=True)
        for line in missed:
            terminalreporter.write_line(line)
