"""Makes golden repositories: `python -m tests.golden.make NAME`. What exists is never made anew.

A golden repository is how the format's first final version looked on the day that it became final;
one that is made again shows only what today's program does. So this refuses to replace one, and is
kept to show how they came to be, and for those of later versions.
"""

import argparse
import hashlib
import json
import sys
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import sendense
from sendense.core import units
from sendense.core.clock import ManualClock
from sendense.core.ids import SeededIds
from sendense.repository import hub_exports, pack, quarantine, recipients, recovery
from sendense.repository.descriptor import RepositorySettings
from sendense.repository.gc import records
from sendense.repository.gc import run as collection
from sendense.repository.gc.protocol import Options
from sendense.repository.gc.verdict import Limits
from sendense.repository.keyed import Keyed
from sendense.repository.keys import DomainKeys
from sendense.repository.manifest import Manifest, SkippedDisk
from sendense.repository.repository import NO_RESERVE, Repository
from sendense.repository.storage.local import LocalStorage
from sendense.repository.verify.run import verify
from tests import repository_kit as kit
from tests.golden import places
from tests.golden.places import noise, text

FIRST, SECOND = kit.KEY, kit.KEY + 1
PASSPHRASE = "four wörds you keep"  # noqa: S105 - of a repository that everybody may read
COLLECT = Options(
    grace_seconds=0, limits=Limits(sparse_share=0.9, condemn_bytes=1 << 40), is_confirmed=True
)


@dataclass(frozen=True)
class Recipe:
    """What tells one golden repository from the others."""

    chunk_size: int
    root_key: bytes | None = None
    passphrase: str | None = None
    immutable_days: int = 0
    level: int = 1

    @property
    def pack_bytes(self) -> int:
        """Where packs are sealed: at some chunks, so that backups of few bytes have several."""
        return 8 * units.KIB if self.chunk_size > units.MIB else 2 * units.KIB


RECIPES = {
    "v1-plain-128k": Recipe(128 * units.KIB),
    "v1-plain-512k": Recipe(512 * units.KIB, level=3),
    "v1-sealed-256k": Recipe(256 * units.KIB, bytes(range(32)), PASSPHRASE),
    "v1-sealed-512k": Recipe(512 * units.KIB, bytes(range(32, 64)), immutable_days=1, level=19),
    "v1-sealed-4m": Recipe(4 * units.MIB, bytes(range(64, 96))),
}


@dataclass
class Maker:
    """Makes one repository in a folder, step by step."""

    recipe: Recipe
    storage: LocalStorage
    clock: ManualClock = field(default_factory=ManualClock)
    content: dict[str, dict[int, bytes]] = field(default_factory=dict)
    interrupted: dict[str, Any] = field(default_factory=dict)
    seed: int = 100

    def make(self) -> None:
        """Let everything happen that leaves a trace."""
        Repository.create(
            self.storage,
            RepositorySettings(
                chunk_size=self.recipe.chunk_size,
                compression_level=self.recipe.level,
                root_key=self.recipe.root_key,
                immutable_days=self.recipe.immutable_days,
            ),
            clock=self.clock,
            ids=SeededIds(1),
            reserve=NO_RESERVE,
        )
        self._make_keys()
        self._back_up_twice()
        self._collect()
        self._go_on()
        self._leave_open()

    def open(self) -> Repository:
        """Open it as another process would."""
        self.seed += 1
        return places.open_repository(
            self.storage, self.recipe.root_key, clock=self.clock, seed=self.seed
        )

    def _make_keys(self) -> None:
        root, phrase = self.recipe.root_key, self.recipe.passphrase
        if root and phrase:
            for seed, (label, one) in enumerate((("ops", phrase), ("löst", phrase[::-1]))):
                made = recipients.add_passphrase(
                    self.storage, root, one, label=label, clock=self.clock, ids=SeededIds(seed)
                )
            recipients.remove(self.storage, made.recipient_id)

    def _back_up(self, name: str, disks: dict[int, bytes], **more: Any) -> Manifest:
        """Make a backup; where an earlier one of the VM is known, an incremental on that."""
        self.clock.advance(3600.25)
        size = self.recipe.chunk_size
        machine, _, number = name.partition("-")
        parent = f"{machine}-{int(number) - 1}"
        before = self.content.get(parent)
        self.content[name] = disks
        if before is None:
            return places.back_up(self.open(), name, disks, **more)
        dirty = {key: places.changed(before[key], data, size) for key, data in disks.items()}
        return places.back_up(self.open(), name, disks, parent=parent, dirty=dirty, **more)

    def _back_up_twice(self) -> None:
        """Two VMs, and one whose backup goes: full, then incremental with all that can change."""
        size = self.recipe.chunk_size
        one, two, three = (text(number, size) for number in (1, 2, 3))
        tail = noise(1, 20_011)  # the last chunk is short, and stored as it is
        web = one + two + bytes(size) + three + one + bytes(size) + tail
        self._back_up("web-1", {FIRST: web, SECOND: bytes(3 * size + 512)})
        lone = noise(2, size) if size <= 128 * units.KIB else noise(2, 3000).ljust(size, b".")
        database = two + text(4, size) + lone + text(5, size)
        self._back_up(
            "db-1",
            {FIRST: database},
            warnings=("it was busy",),
            skipped=(SkippedDisk(2005, 5, "raw device", "it has no snapshots"),),
        )
        old = b"".join(text(20 + number, size) for number in range(5))
        self._back_up("old-1", {FIRST: old})
        grown = tail + text(6, size - len(tail)) + text(7, size) + text(8, 512)
        web = one + text(9, size) + bytes(size) + bytes(size) + one + bytes(size) + grown
        self._back_up("web-2", {FIRST: web, SECOND: bytes(3 * size + 512)})
        self._back_up("db-2", {FIRST: text(21, size) + database[size:]})

    def _collect(self) -> None:
        """Collect the garbage of a backup of which another one still needs a chunk."""
        self.clock.advance(3 * 86_400)
        repository = self.open()
        repository.backups.hold("web-1", who="court", why="case 7")
        repository.backups.hold("db-1", who="court", why="case 8")
        repository.backups.release("db-1", who="court", why="over")
        repository.delete_backup("old-1", who="me", why="retention")
        del self.content["old-1"]
        report = collection.run(self.open(), COLLECT)
        assert (report.generation, report.is_done, report.backup_count) == (1, True, 1)
        assert records.get(records.Condemned, self.open().storage, 1).copies
        assert not list(self.storage.list_objects("tombs/"))

    def _go_on(self) -> None:
        """Back up after the collection, abort, delete, verify, mark a bad pack, export a hub."""
        size = self.recipe.chunk_size
        web = text(10, size) + self.content["web-2"][FIRST][size:]
        second = bytes(size) + text(11, size) + bytes(size + 512)
        more = {"later": {"words": ["that", "nobody", "knows"]}}
        self._back_up("web-3", {FIRST: web, SECOND: second}, more=more)
        self._back_up("old-2", {FIRST: text(22, size) + text(30, 700)})
        repository = self.open()
        repository.begin_session("aborted")
        kit.write_disk(repository, "aborted", text(31, 2 * size + 9), moment="m")
        listed = {ref.name for one in self.open().segments.counted for ref in one.packs()}
        repository.abort("aborted", "for the record")
        stray = next(
            stored.name
            for stored in self.storage.list_objects("packs/")
            if stored.name not in listed
        )
        bad = pack.read_ref(repository.storage, stray)
        quarantine.put(repository.storage, bad, at=self.clock.now(), why="it was on a bad disk")
        self.clock.advance(3 * 86_400)
        repository.delete_backup("old-2", who="me", why="retention")
        del self.content["old-2"]
        assert verify(self.open()).clean
        hub = Keyed(self.storage, DomainKeys(bytes(range(96, 128))))
        about = hub_exports.About("hub-1", self.clock.now(), "0.1", "0011", {"settings": {}})
        rows = hub_exports.compress([("vms", {"id": one, "name": "wéb"}) for one in range(9)])
        hub_exports.put(hub, about, rows, SeededIds(4))

    def _leave_open(self) -> None:
        """Leave a writer's session cut off behind a checkpoint, and a reader's."""
        size = self.recipe.chunk_size
        whole = b"".join(text(40 + number, size) for number in range(9))
        repository = self.open()
        repository.begin_session("cut-1")
        kit.write_disk(repository, "cut-1", whole, moment="at-cut-1", stop=7)
        assert [one for one in self.storage.list_objects("sessions/") if "/000001-" in one.name]
        self.interrupted = {"session": "cut-1", "sha256": hashlib.sha256(whole).hexdigest()}
        repository.open_disk_reader("web-1", FIRST)


def describe(made: Maker) -> dict[str, Any]:
    """Return what tests compare with."""
    root = made.recipe.root_key
    return {
        "program": sendense.__version__,
        "chunk_size": made.recipe.chunk_size,
        "root_key": root.hex() if root else None,
        "recovery_key": recovery.to_text(root) if root else None,
        "passphrase": made.recipe.passphrase,
        "hub_key": bytes(range(96, 128)).hex(),
        "held": ["web-1"],
        "deleted": ["old-2"],
        "generation": 1,
        "interrupted": made.interrupted,
        "backups": [
            {
                "backup_id": one.backup_id,
                "completed_at": one.completed_at.isoformat(),
                "disks": [
                    {
                        "key": disk.key,
                        "size_bytes": disk.size_bytes,
                        "mode": disk.mode,
                        "sha256": hashlib.sha256(made.content[one.backup_id][disk.key]).hexdigest(),
                    }
                    for disk in one.disks
                ],
            }
            for one in made.open().list_backups()
        ],
    }


def write(name: str, folder: Path, facts: dict[str, Any]) -> None:
    """Put a repository into the tree, with nothing of today or of this machine but its bytes."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        member.mode = 0o755 if member.isdir() else 0o644
        return member

    with tarfile.open(places.FOLDER / f"{name}.tar", "x", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.add(path, f"{name}/{path.relative_to(folder)}", filter=plain)
    with (places.FOLDER / f"{name}.json").open("x") as file:
        file.write(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    sums = {**places.hash_files(), **places.read_sums()}
    lines = (f"{digest}  {one}\n" for one, digest in sorted(sums.items()))
    (places.FOLDER / places.SUMS).write_text("".join(lines))


def main(name: str) -> int:
    """Make one; return 2 where it is there already."""
    if name in places.read_sums() or (places.FOLDER / f"{name}.tar").exists():
        print(f"{name} exists, and golden repositories are never made anew", file=sys.stderr)  # noqa: T201 - a program
        return 2
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / name
        place.mkdir()
        made = Maker(RECIPES[name], LocalStorage(place))
        with (
            mock.patch.object(pack, "TARGET_BYTES", made.recipe.pack_bytes),
            mock.patch.object(pack, "META_TARGET_BYTES", made.recipe.pack_bytes),
        ):
            made.make()
        write(name, place, describe(made))
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=RECIPES)
    sys.exit(main(parser.parse_args().name))
