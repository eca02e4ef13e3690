"""A repository in a real S3 server, behind a network that fails."""

import contextlib
import random

import pytest

from sendense.core.errors import Corrupt, SendenseError
from sendense.repository.check import check
from sendense.repository.gc import run
from sendense.repository.storage import probe
from sendense.repository.storage.object_store import ObjectStorage
from tests import gc_kit
from tests import repository_kit as kit
from tests.repository_kit import Kit
from tests.s3.fixtures import open_impatient
from tests.s3.proxy import Asked, Fault, Proxy

FAULTS = (Fault.BUSY, Fault.SLOW_DOWN, Fault.LOST, Fault.CUT)
SHARE = 0.2  # of all requests; ten tries in a row fail once in ten million
NUMBERS = range(1, 41)


def fail_by_chance(proxy: Proxy, seed: int, faults: tuple[Fault, ...] = FAULTS) -> None:
    """Let requests meet faults by chance."""
    dice = random.Random(seed)

    def choose(_: Asked) -> Fault | None:
        return dice.choice(faults) if dice.random() < SHARE else None

    proxy.choose = choose


def test_everything_works_behind_a_network_that_fails(
    behind_proxy: ObjectStorage, proxy: Proxy, seed: int
) -> None:
    fail_by_chance(proxy, seed)
    one, two = gc_kit.data(*NUMBERS), gc_kit.data(*NUMBERS[:20], *range(101, 121))
    repository = Kit(behind_proxy, clock=gc_kit.CLOCK).create()
    kit.back_up(repository, "one", one)
    kit.back_up(repository, "two", two, parent="one", changed=range(20, 40))
    kit.back_up(repository, "three", one, parent="two", changed=range(20, 40))
    gc_kit.assert_sound(behind_proxy, one=one, two=two, three=one)
    before = gc_kit.packs(behind_proxy)
    gc_kit.delete(behind_proxy, "two")
    report = run.run(gc_kit.opened(behind_proxy), gc_kit.SPARSE)
    assert report.is_done
    assert report.backup_count == 1
    assert before - gc_kit.packs(behind_proxy)
    gc_kit.assert_sound(behind_proxy, one=one, three=one)
    assert all(proxy.happened[fault] for fault in FAULTS)
    assert behind_proxy.requests["retry"] >= sum(proxy.happened.values()) / 2
    assert set(behind_proxy.requests) == {"put", "get", "head", "list", "delete", "retry"}


def test_garbage_collection_by_old_listings_loses_nothing(
    behind_proxy: ObjectStorage, proxy: Proxy, seed: int
) -> None:
    """A store that lists late is none of those that pass; should one do it, no backup may go."""
    one, two = gc_kit.data(*NUMBERS[:4]), gc_kit.data(*NUMBERS[2:6])
    Kit(behind_proxy, clock=gc_kit.CLOCK).create()
    content: dict[str, bytes] = {}
    dice = random.Random(seed)
    for number in range(6):
        name = f"backup-{number}"
        content[name] = dice.choice((one, two, gc_kit.data(*range(number, number + 4))))
        kit.back_up(gc_kit.opened(behind_proxy), name, content[name])
        if number % 2:
            gone = dice.choice(sorted(content))
            gc_kit.delete(behind_proxy, gone)
            del content[gone]
        fail_by_chance(proxy, dice.randrange(1 << 30), (Fault.STALE,))
        with contextlib.suppress(Corrupt):  # a run that misses what must be there stops
            gc_kit.collect(behind_proxy, gc_kit.SPARSE)
        proxy.choose = lambda _: None
        gc_kit.assert_sound(behind_proxy, **content)
    assert proxy.happened[Fault.STALE]


def test_a_store_that_is_away_for_good_is_reported_and_nothing_is_half_done(
    behind_proxy: ObjectStorage, proxy: Proxy
) -> None:
    data = gc_kit.data(1, 2, 3)
    repository = Kit(behind_proxy, clock=gc_kit.CLOCK).create()
    kit.back_up(repository, "one", data)
    proxy.choose = lambda asked: Fault.BUSY if asked.method == "PUT" else None
    with pytest.raises(SendenseError) as caught:
        kit.back_up(repository, "two", gc_kit.data(4, 5, 6))
    assert caught.value.kind == "storage-failed"
    proxy.choose = lambda _: None
    gc_kit.assert_sound(behind_proxy, one=data)
    kit.back_up(gc_kit.opened(behind_proxy), "two", gc_kit.data(4, 5, 6))
    assert check(gc_kit.opened(behind_proxy), read_data=True).clean


def test_the_server_of_the_tests_is_fit_for_a_repository(s3_url: str) -> None:
    storage = open_impatient(s3_url)
    found = probe.probe(storage, "trial")
    assert found.failures == ()
    assert (found.rounds, found.writers) == (50, 16)
    assert storage.list_top() == []
    assert storage.requests["retry"] < found.rounds  # of 800 puts that race
