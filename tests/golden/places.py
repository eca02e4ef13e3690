"""The golden repositories: where they lie, and what of them a test knows."""

import hashlib
import json
import random
import tarfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sendense.core.clock import ManualClock
from sendense.core.ids import SeededIds
from sendense.repository.manifest import Manifest, VmRecord
from sendense.repository.repository import NO_RESERVE, Repository
from sendense.repository.storage.base import Storage
from sendense.repository.storage.local import LocalStorage
from tests import repository_kit as kit

FOLDER = Path(__file__).parent
SUMS = "SHA256SUMS"
LATER = datetime(2026, 6, 1, tzinfo=UTC)  # months after all of them were made
UNIT_BYTES = 64 * 1024


@dataclass(frozen=True)
class Golden:
    """A golden repository, and the facts written down when it was made.

    Attributes:
        facts: as in its file: `backups` with their `disks`, keys, the session that was cut off.
    """

    name: str
    facts: dict[str, Any]

    @property
    def root_key(self) -> bytes | None:
        """The key of an encrypted one."""
        return bytes.fromhex(self.facts["root_key"]) if self.facts["root_key"] else None

    @property
    def chunk_size(self) -> int:
        """Of all its disks."""
        size: int = self.facts["chunk_size"]
        return size

    def unpack(self, folder: Path) -> Path:
        """Make a copy below a folder and return where it lies."""
        with tarfile.open(FOLDER / f"{self.name}.tar") as archive:
            archive.extractall(folder, filter="data")
        return folder / self.name

    def open(self, place: Path, *, seed: int = 77) -> Repository:
        """Open a copy."""
        return open_repository(
            LocalStorage(place), self.root_key, clock=ManualClock(LATER), seed=seed
        )


def list_golden() -> list[Golden]:
    """Return all of them."""
    return [
        Golden(path.stem, json.loads(path.read_text())) for path in sorted(FOLDER.glob("*.json"))
    ]


def hash_files() -> dict[str, str]:
    """Return the SHA-256 of all files that must never change, by name."""
    paths = sorted([*FOLDER.glob("*.tar"), *FOLDER.glob("*.json")])
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def read_sums() -> dict[str, str]:
    """Return the hashes written down when they were made, by name."""
    lines = (FOLDER / SUMS).read_text().splitlines() if (FOLDER / SUMS).exists() else []
    return {name: digest for digest, name in (line.split("  ") for line in lines)}


def open_repository(
    storage: Storage, root_key: bytes | None, *, clock: ManualClock, seed: int
) -> Repository:
    """Open a repository as another process would."""
    return Repository.open(
        storage, root_key=root_key, clock=clock, ids=SeededIds(seed), reserve=NO_RESERVE
    )


# The content of disks, and backups of it.


def text(number: int, size: int) -> bytes:
    """Return bytes that are stored as a few KiB, whatever their size; others for each number."""
    block = random.Random(number).randbytes(600).hex().encode()
    unit = (block * (UNIT_BYTES // len(block) + 1))[: UNIT_BYTES - 8]
    return b"".join(b"%08d" % at + unit for at in range(-(-size // UNIT_BYTES)))[:size]


def noise(number: int, size: int) -> bytes:
    """Return bytes that do not compress."""
    return random.Random(number).randbytes(size)


def changed(old: bytes, new: bytes, chunk_size: int) -> set[int]:
    """Return the chunks in which two disks differ, what was added included."""
    return {
        start // chunk_size
        for start in range(0, max(len(old), len(new)), chunk_size)
        if old[start : start + chunk_size] != new[start : start + chunk_size]
    }


def vm(name: str) -> VmRecord:
    """Return a VM whose record has all that a record may have."""
    config = {
        "cpus": 2,
        "firmware": {"type": "efi", "nvram": "AAEC"},
        "text": 'ä"\\\n\x01€',
        "x": 1.5,
    }
    return VmRecord("image", "lab", "source-1", f"uuid-of-{name}", name, config)


def back_up(
    repository: Repository,
    name: str,
    disks: dict[int, bytes],
    *,
    parent: str | None = None,
    dirty: Mapping[int, Collection[int]] | None = None,
    **more: Any,
) -> Manifest:
    """Make a backup `<vm>-<number>`; with `dirty`, an incremental of disks that changed there."""
    moment = f"at-{name}"
    repository.begin_session(name, parents=[parent] if parent else [])
    for key, data in disks.items():
        kit.write_disk(
            repository,
            name,
            data,
            moment=moment,
            parent=parent,
            changed=dirty.get(key, ()) if dirty is not None else None,
            key=key,
        )
    draft = kit.draft(repository, name, moment, tuple(disks))
    return repository.commit(name, replace(draft, vm=vm(name.partition("-")[0]), **more))
