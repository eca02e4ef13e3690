"""How much is measured, and where it lies meanwhile."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sendense.core import units

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "bench"


@dataclass(frozen=True)
class Scale:
    """The size of a run; figures of different scales are never compared.

    Attributes:
        content_bytes: of real data in the image.
        places: of 64 KiB that an incremental has changed.
        rounds: how often each contender runs.
        is_thorough: whether what takes long to make is measured too: artificial disks, Benji, the
            metadata of a full disk, lists of a large catalog, discovery.
    """

    name: str
    content_bytes: int
    places: int
    rounds: int
    is_thorough: bool


WHOLE = Scale("whole", 2 * units.GIB, 1638, rounds=5, is_thorough=True)  # places: 0.1 % of 100 GiB
QUICK = Scale("quick", 256 * units.MIB, 400, rounds=3, is_thorough=False)  # under three minutes


@contextmanager
def work_folder() -> Iterator[Path]:
    """Give a folder that goes at the end, on the disk of everything that is kept."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="run-") as folder:
        yield Path(folder)
