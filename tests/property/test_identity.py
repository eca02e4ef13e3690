"""Cut, pack and restore is the identity: any size, chunk size, level and pattern of changes."""

import random
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sendense.core import units
from sendense.core.clock import ManualClock
from sendense.core.ids import SeededIds
from sendense.repository import pack
from sendense.repository.check import check
from sendense.repository.descriptor import RepositorySettings
from sendense.repository.repository import NO_RESERVE, Repository
from sendense.repository.storage.base import Storage
from sendense.repository.storage.local import LocalStorage
from sendense.repository.storage.memory import MemoryStorage
from tests import repository_kit as kit

CHUNK_SIZES = [128 * units.KIB, 256 * units.KIB, units.MIB, 4 * units.MIB]
LEVELS = [0, 1, 3, 10]  # off, the default, and where compressing is first probed
CHUNKS_MAX = 3


@st.composite
def sizes(draw: st.DrawFn, chunk_size: int) -> int:
    """One byte, one sector, and what lies around the chunks' boundaries; not only whole sectors."""
    boundary = draw(st.integers(0, CHUNKS_MAX)) * chunk_size
    beside = st.sampled_from([0, 1, -1, 511, 512, -512, 513, 4096, 7 * 512, chunk_size // 2 + 512])
    return max(1, boundary + draw(beside))


def _paint(disk: bytearray, dice: random.Random) -> None:
    """Change a place: bytes that do not shrink, that do, that repeat, or none at all."""
    start = dice.randrange(len(disk))
    length = min(len(disk) - start, dice.choice([1, 512, 70_000, len(disk)]))
    repeats = length // 512 + 1
    made = [dice.randbytes(length), bytes(length), dice.randbytes(512) * repeats, b"text" * length]
    disk[start : start + length] = dice.choice(made)[:length]


@pytest.mark.share(2)
@pytest.mark.parametrize("kind", ["memory", "local"])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), st.sampled_from(CHUNK_SIZES), st.sampled_from(LEVELS), st.integers(0, 2**32))
def test_what_is_restored_is_what_was_backed_up(
    kind: str, data: st.DataObject, chunk_size: int, level: int, seed: int
) -> None:
    dice = random.Random(seed)
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(kit, "CHUNK", chunk_size),
        mock.patch.object(pack, "TARGET_BYTES", data.draw(st.sampled_from([1, 1 << 20, 1 << 25]))),
    ):
        storage: Storage = MemoryStorage() if kind == "memory" else LocalStorage(Path(folder))
        repository = Repository.create(
            storage,
            RepositorySettings(chunk_size=chunk_size, compression_level=level),
            clock=ManualClock(),
            ids=SeededIds(1),
            reserve=NO_RESERVE,
        )
        disk = bytearray(data.draw(sizes(chunk_size), label="size"))
        states: list[bytes] = []
        for number in range(data.draw(st.integers(1, 3), label="backups")):
            for _ in range(dice.randint(0, 3)):
                _paint(disk, dice)
            changed = None
            wanted: bool = data.draw(st.booleans(), label="incremental")
            if states and wanted:
                grown = data.draw(st.sampled_from([0, 1, 512, chunk_size]), label="grown")
                disk += bytes(grown)
                changed = kit.changed_chunks(states[-1], bytes(disk))
            parent = f"b{number - 1}" if states else None
            kit.back_up(repository, f"b{number}", bytes(disk), parent=parent, changed=changed)
            states.append(bytes(disk))
        opened = Repository.open(storage, clock=ManualClock(), ids=SeededIds(2))
        for number, state in enumerate(states):
            assert kit.restore(opened, f"b{number}") == state
        assert check(opened, read_data=True).problems == ()
        storage.close()
