"""Whatever a guest does between backups, every backup comes back as the disk was then."""

import random

import hypothesis
from hypothesis import strategies as st

from sendense.core import extent, units
from sendense.core.extent import Extent
from sendense.engine.plan import Mode
from tests.engine_kit import CHUNK, PAGE, Lab, SparseDisk

SIZE_MAX = 3 * units.MIB
SECTORS_MAX = SIZE_MAX // units.SECTOR

writes = st.tuples(
    st.just("write"), st.integers(0, SECTORS_MAX), st.integers(1, 600), st.integers(0, 3)
)
trims = st.tuples(st.just("trim"), st.integers(0, SECTORS_MAX), st.integers(1, 1200), st.just(0))
steps = st.lists(st.one_of(writes, trims), max_size=6)
sizes = st.integers(1, SECTORS_MAX).map(lambda sectors: sectors * units.SECTOR)
rounds = st.tuples(st.none() | sizes, steps)


class Guest:
    """A disk and an oracle of its bytes, with true change tracking."""

    def __init__(self, size_bytes: int) -> None:
        self.oracle = bytearray(size_bytes)
        self._dirty: dict[int, bool] = {}  # sector → whether it was trimmed
        self.resized = False

    def resize(self, size_bytes: int) -> None:
        """Grow or shrink the disk; what is new reads as zeros."""
        self.resized = self.resized or size_bytes != len(self.oracle)
        self.oracle = self.oracle[:size_bytes].ljust(size_bytes, b"\0")

    def apply(self, kind: str, sector: int, count: int, pattern: int) -> None:
        """Write or trim sectors; what lies behind the end is cut off."""
        start = min(sector * units.SECTOR, len(self.oracle))
        end = min(start + count * units.SECTOR, len(self.oracle))
        if kind == "trim":
            self.oracle[start:end] = bytes(end - start)
        elif pattern:  # few patterns, so that equal chunks come up; 0 writes zeros
            chooser = random.Random(pattern)
            self.oracle[start:end] = chooser.randbytes(units.SECTOR) * ((end - start) // 512)
        else:
            self.oracle[start:end] = bytes(end - start)
        for place in range(start // units.SECTOR, end // units.SECTOR):
            self._dirty[place] = kind == "trim"

    def take_changes(self) -> list[Extent]:
        """Return what changed since the last call, as a platform would tell."""
        changes = [
            Extent(sector * units.SECTOR, units.SECTOR, zero=trimmed)
            for sector, trimmed in sorted(self._dirty.items())
        ]
        self._dirty.clear()
        self.resized = False
        return list(extent.merge(changes))

    def snapshot(self) -> SparseDisk:
        """Return the disk as it is now."""
        disk = SparseDisk(len(self.oracle))
        for start in range(0, len(self.oracle), PAGE):
            data = bytes(self.oracle[start : start + PAGE])
            if any(data):
                disk.write_page(start // PAGE, data)
        return disk


@hypothesis.given(size=sizes, history=st.lists(rounds, min_size=1, max_size=4))
def test_writes_trims_and_resizes_over_several_backups_restore_bit_for_bit(
    size: int, history: list[tuple[int | None, list[tuple[str, int, int, int]]]]
) -> None:
    guest, lab = Guest(size), Lab()
    expected: dict[str, bytes] = {}
    parent: str | None = None
    for new_size, changes in history:
        if new_size is not None:
            guest.resize(new_size)
        for change in changes:
            guest.apply(*change)
        full = guest.resized
        parent, done = lab.back_up(
            guest.snapshot(), parent=parent, changes=guest.take_changes(), full=full
        )
        expected[parent] = bytes(guest.oracle)
        wanted = Mode.FULL if full or len(expected) == 1 else Mode.INCREMENTAL
        assert done.record.mode is wanted, done.decision
    for backup_id, data in expected.items():
        assert lab.read_back(backup_id) == data


@hypothesis.given(
    size=sizes, changes=steps, hidden=st.integers(0, SIZE_MAX // CHUNK), seed=st.integers(0, 99)
)
def test_a_disk_small_enough_to_be_sampled_whole_never_hides_a_change(
    size: int, changes: list[tuple[str, int, int, int]], hidden: int, seed: int
) -> None:
    size = min(size, 10 * CHUNK)  # ten samples are all there is
    guest, lab = Guest(size), Lab()
    first, _ = lab.back_up(guest.snapshot())
    for change in changes:
        guest.apply(*change)
    told = guest.take_changes()
    place = hidden * CHUNK % size
    # A trimmed place that does not read as zeros is not tracking that leaves something out.
    hypothesis.assume(not any(one.zero and one.start <= place < one.end for one in told))
    guest.oracle[place] ^= 1 + seed % 255
    backup_id, _ = lab.back_up(guest.snapshot(), parent=first, changes=told)
    assert lab.read_back(backup_id) == bytes(guest.oracle)
