"""What was written when the format became final is read, verified, restored and continued.

The repositories are never made anew: a test that fails here says that a program of today no longer
understands what users have stored.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sendense.repository import hub_exports, recipients, recovery, standalone_reader
from sendense.repository.check import check
from sendense.repository.gc import run as collection
from sendense.repository.gc.protocol import Options
from sendense.repository.gc.verdict import Limits
from sendense.repository.repository import Repository
from sendense.repository.verify.run import verify
from tests import repository_kit as kit
from tests.golden import make, places
from tests.golden.places import Golden, text

SECONDS_MAX = 120
NOW = Options(
    grace_seconds=0,
    fence_seconds=0,
    limits=Limits(sparse_share=0.9, condemn_bytes=1 << 40),
    is_confirmed=True,
)
# Imported, not run for each disk: most of the time would be Python's start. It knows no sendense.
DRIVER = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
reader = importlib.import_module(sys.argv[2])
assert not any(name.split(".")[0] == "sendense" for name in sys.modules)
sys.exit(max(reader.main(one) for one in json.load(sys.stdin)))
"""


@pytest.fixture(scope="module", params=places.list_golden(), ids=lambda one: one.name)
def golden(request: pytest.FixtureRequest) -> Golden:
    found: Golden = request.param
    return found


@pytest.fixture(scope="module")
def copy(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy that is read only."""
    place = golden.unpack(tmp_path_factory.mktemp("golden"))
    before = _hash_tree(place)
    yield place
    after = _hash_tree(place)
    # Locks of readers come and go, and a verification's record takes the place of the one before.
    lasting = [name for name in before if not name.startswith("health/")]
    assert {name: after.get(name) for name in lasting} == {name: before[name] for name in lasting}


def _hash_tree(place: Path) -> dict[str, str]:
    return {
        str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in place.rglob("*")
        if path.is_file()
    }


def _sums(golden: Golden) -> dict[tuple[str, int], str]:
    return {
        (one["backup_id"], disk["key"]): disk["sha256"]
        for one in golden.facts["backups"]
        for disk in one["disks"]
    }


def _restore(repository: Repository, wanted: dict[tuple[str, int], str]) -> None:
    """Assert that each disk reads as the one that was backed up."""
    found = {
        (name, key): hashlib.sha256(kit.restore(repository, name, key=key)).hexdigest()
        for name, key in wanted
    }
    assert found == wanted


def test_golden_files_never_change() -> None:
    assert places.hash_files() == places.read_sums(), (
        "files in tests/golden/ have changed. They are what users' repositories looked like on the "
        "day when the format became final: they must never change, nor be made anew. Bring them "
        "back with git, and mend the program so that it reads them as they are; a new layout is a "
        "new version with golden repositories of its own, beside these"
    )


def test_golden_repositories_are_never_made_anew(capsys: pytest.CaptureFixture[str]) -> None:
    before = places.hash_files()
    assert {make.main(one.name) for one in places.list_golden()} == {2}
    assert "never made anew" in capsys.readouterr().err
    assert places.hash_files() == before


def test_there_are_golden_repositories_of_many_kinds() -> None:
    found = [(bool(one.root_key), one.chunk_size) for one in places.list_golden()]
    assert {size for is_sealed, size in found if is_sealed} == {1 << 18, 1 << 19, 1 << 22}
    assert {size for is_sealed, size in found if not is_sealed} == {1 << 17, 1 << 19}


def test_a_golden_repository_holds_everything_that_a_repository_may(copy: Path) -> None:
    folders = {path.name for path in copy.iterdir() if path.is_dir()}
    assert folders >= {
        "packs", "meta", "index", "backups", "outcomes", "tombs", "sessions", "gc", "quarantine",
        "health", "hub", "holds",
    }  # fmt: skip


def test_it_is_whole(golden: Golden, copy: Path) -> None:
    with golden.open(copy) as repository:
        listed = {one.backup_id: one for one in repository.list_backups()}
        assert list(listed) == [one["backup_id"] for one in golden.facts["backups"]]
        for one in golden.facts["backups"]:
            told = [
                (disk.key, disk.size_bytes, disk.mode) for disk in listed[one["backup_id"]].disks
            ]
            assert told == [
                (disk["key"], disk["size_bytes"], disk["mode"]) for disk in one["disks"]
            ]
        assert listed["web-3"].more == {"later": {"words": ["that", "nobody", "knows"]}}
        assert [one.backup_id for one in repository.backups.list_deleted()] == (
            golden.facts["deleted"]
        )
        assert list(repository.backups.list_held()) == golden.facts["held"]
        assert repository.collected.refresh().generation == golden.facts["generation"]
        assert check(repository, read_data=True).problems == ()


def test_every_disk_of_every_backup_is_restored(golden: Golden, copy: Path) -> None:
    with golden.open(copy) as repository:
        _restore(repository, _sums(golden))


@pytest.mark.parametrize("reader", ["ours", "its own"])
def test_the_standalone_readers_restore_every_disk(
    golden: Golden, copy: Path, tmp_path: Path, reader: str
) -> None:
    ours = Path(standalone_reader.__file__)
    shutil.copy(ours if reader == "ours" else copy / "restore.py", tmp_path / "alone.py")
    options = listing = ["--repository", str(copy)]
    if golden.root_key is not None:
        key, phrase = tmp_path / "key", tmp_path / "phrase"
        key.write_text(golden.facts["recovery_key"])
        phrase.write_text(golden.facts["passphrase"] or "")
        options = [*options, "--recovery-key-file", str(key)]
        # Once: opening by a passphrase is slow on purpose.
        by_phrase = ["--repository", str(copy), "--passphrase-file", str(phrase)]
        listing = by_phrase if golden.facts["passphrase"] else options
    wanted = _sums(golden)
    targets = {one: tmp_path / f"{one[0]}-{one[1]}.raw" for one in wanted}
    runs = [
        ["restore", *options, "--backup", name, "--disk", str(key), "--to", str(target)]
        for (name, key), target in targets.items()
    ]
    done = subprocess.run(
        [sys.executable, "-I", "-B", "-c", DRIVER, str(tmp_path), "alone"],
        input=json.dumps([["list", *listing], *runs]),
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
    )
    assert done.returncode == 0, done.stderr
    listed = {(line.split("\t")[1], int(line.split("\t")[3])) for line in done.stdout.splitlines()}
    assert listed == set(wanted)
    found = {
        one: hashlib.sha256(target.read_bytes()).hexdigest() for one, target in targets.items()
    }
    assert found == wanted


def test_its_keys_open_it(golden: Golden, copy: Path) -> None:
    with golden.open(copy) as repository:
        hub = hub_exports.open_place(repository.storage, bytes.fromhex(golden.facts["hub_key"]))
        (export,), damaged = hub_exports.scan(hub)
        assert damaged == []
        assert list(hub_exports.read(hub, export))[8] == ("vms", {"id": 8, "name": "wéb"})
        if golden.root_key is None:
            return
        assert recovery.parse(golden.facts["recovery_key"]) == golden.root_key
        phrase = golden.facts["passphrase"]
        if phrase is not None:
            found = recipients.open_by_passphrase(repository.storage, phrase)
            assert found == golden.root_key


def test_it_is_verified(golden: Golden, copy: Path) -> None:
    with golden.open(copy) as repository:
        report = verify(repository)
        assert (report.clean, report.bad, report.left_count) == (True, (), 0)
        assert report.verified_count == report.pack_count > 0


def test_it_is_continued_and_collected(golden: Golden, tmp_path: Path) -> None:
    """The session that was cut off goes on; then come another backup and a collection."""
    place = golden.unpack(tmp_path)
    wanted, size = _sums(golden), golden.chunk_size
    cut = golden.facts["interrupted"]["session"]
    whole = b"".join(text(40 + number, size) for number in range(9))
    assert hashlib.sha256(whole).hexdigest() == golden.facts["interrupted"]["sha256"]
    with golden.open(place, seed=80) as repository:
        repository.begin_session(cut)
        disk = kit.identity(len(whole))
        with repository.open_disk_writer(cut, disk, moment=f"at-{cut}") as writer:
            assert writer.resume_index > 0
        kit.write_disk(repository, cut, whole, moment=f"at-{cut}")
        repository.commit(cut, kit.draft(repository, cut, f"at-{cut}"))
    wanted[cut, kit.KEY] = golden.facts["interrupted"]["sha256"]
    with golden.open(place, seed=81) as repository:
        before = kit.restore(repository, "web-3")
        after = text(99, size) + before[size:] + text(98, size + 1)
        dirty = {kit.KEY: places.changed(before, after, size)}
        made = places.back_up(repository, "web-4", {kit.KEY: after}, parent="web-3", dirty=dirty)
        assert made.disks[0].parent_backup_id == "web-3"
        assert made.disks[0].bytes_new < made.disks[0].size_bytes
        wanted["web-4", kit.KEY] = hashlib.sha256(after).hexdigest()
        repository.delete_backup("db-1", who="me", why="test")
        del wanted["db-1", kit.KEY]
    with golden.open(place, seed=82) as repository:
        report = collection.run(repository, NOW)
        assert (report.generation, report.is_done) == (golden.facts["generation"] + 1, True)
        assert report.backup_count == len(golden.facts["deleted"]) + 1
        assert report.freed_bytes > 0
    with golden.open(place, seed=83) as repository:
        assert check(repository, read_data=True).problems == ()
        _restore(repository, wanted)
