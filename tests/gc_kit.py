"""Garbage in a repository, and the shortest ways to collect it."""

import itertools
import random

from sendense.core.clock import ManualClock
from sendense.repository.check import check
from sendense.repository.gc.protocol import Collector, Options, Stage
from sendense.repository.gc.verdict import Limits
from sendense.repository.repository import Repository
from sendense.repository.storage.base import Storage
from tests import repository_kit as kit
from tests.repository_kit import CHUNK, Kit

CLOCK = ManualClock()  # of all processes: it never goes back
NOW = Options(grace_seconds=0, limits=Limits(sparse_share=0, condemn_bytes=1 << 40))
SPARSE = Options(grace_seconds=0, limits=Limits(sparse_share=0.9, condemn_bytes=1 << 40))
STEPS_MAX = 100  # of a generation of these small repositories


def data(*numbers: int) -> bytes:
    """Return a disk of chunks that differ where their numbers do; zeros for 0."""
    return b"".join(
        random.Random(number).randbytes(CHUNK) if number else bytes(CHUNK) for number in numbers
    )


SEEDS = itertools.count(1000)


def opened(storage: Storage) -> Repository:
    """Open the repository as another process would, with random numbers of its own."""
    return Kit(storage, clock=CLOCK).open(seed=next(SEEDS))


def collect(storage: Storage, options: Options = NOW) -> list[Stage]:
    """Run a generation to its end, or to where it waits."""
    collector = Collector(opened(storage), options)
    stages: list[Stage] = []
    while not stages or not (stages[-1] is Stage.DONE or stages[-1].waits):
        stages.append(collector.step())
        assert len(stages) < STEPS_MAX, "a generation does not end"
    return stages


def packs(storage: Storage) -> set[str]:
    """Return the names of all packs."""
    return {
        found.name for found in storage.list_objects() if found.name.startswith(("packs/", "meta/"))
    }


def delete(storage: Storage, *names: str) -> None:
    """Delete backups."""
    repository = opened(storage)
    for name in names:
        repository.delete_backup(name, who="tester", why="test")


def assert_sound(storage: Storage, **content: bytes) -> None:
    """Assert that exactly these backups are there, bit for bit."""
    repository = opened(storage)
    report = check(repository, read_data=True)
    assert report.problems == ()
    assert {one.backup_id for one in repository.list_backups()} == set(content)
    for name, expected in content.items():
        assert kit.restore(repository, name) == expected
