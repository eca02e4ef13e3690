"""restore.py, which lies in every repository, restores from it with nothing else of Sendense."""

import ast
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from sendense.core.clock import ManualClock
from sendense.core.ids import SeededIds
from sendense.repository import (
    descriptor,
    format,
    holds,
    pack,
    recipients,
    recovery,
    standalone_reader,
)
from sendense.repository.chunk import Codec
from sendense.repository.format import Frame
from sendense.repository.keys import DomainKeys
from sendense.repository.manifest import DiskTotals, Mode
from sendense.repository.storage.local import LocalStorage
from tests import repository_kit as kit
from tests.repository_kit import CHUNK, KEY, ROOT, Kit

PHRASE = "four words you keep"
BASE = random.Random(4).randbytes(5 * CHUNK) + bytes(2 * CHUNK) + b"text " * 30_000 + b"end"
NEXT = BASE[:CHUNK] + b"new" + BASE[CHUNK + 3 :]
SECONDS_MAX = 60


@pytest.fixture(params=["sealed", "unsealed"])
def root_key(request: pytest.FixtureRequest) -> bytes | None:
    return ROOT if request.param == "sealed" else None


@pytest.fixture
def place(tmp_path: Path, root_key: bytes | None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Backups one, two (incremental), three (deleted) and both (two disks, one of them zeros)."""
    folder = tmp_path / "repository"
    folder.mkdir()
    repository = Kit(LocalStorage(folder), root_key=root_key).create()
    monkeypatch.setattr("sendense.repository.pack.TARGET_BYTES", 2 * CHUNK)
    kit.back_up(repository, "one", BASE)
    kit.back_up(repository, "two", NEXT, parent="one", changed=kit.changed_chunks(BASE, NEXT))
    kit.back_up(repository, "three", NEXT[::-1])
    repository.delete_backup("three", who="me", why="test")
    repository.begin_session("both")
    kit.write_disk(repository, "both", BASE[::-1], moment="m")
    kit.write_disk(repository, "both", bytes(9 * CHUNK), moment="m", key=KEY + 1)
    repository.commit("both", kit.draft(repository, "both", "m", [KEY, KEY + 1]))
    repository.close()
    monkeypatch.delenv("SENDENSE_PASSPHRASE", raising=False)
    if root_key is None:
        monkeypatch.delenv("SENDENSE_RECOVERY_KEY", raising=False)
    else:
        monkeypatch.setenv("SENDENSE_RECOVERY_KEY", recovery.to_text(root_key))
    return folder


def run(place: Path, *arguments: str) -> int:
    command, *more = arguments
    return standalone_reader.main([command, "--repository", str(place), *more])


def restore(place: Path, backup: str, *more: str) -> tuple[int, Path]:
    target = place.parent / f"{backup}-{len(list(place.parent.iterdir()))}.raw"
    return run(place, "restore", "--backup", backup, "--to", str(target), *more), target


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def _packs(place: Path, folder: str = "packs") -> list[Path]:
    return sorted(path for path in (place / folder).rglob("*") if path.is_file())


def test_every_repository_holds_it_and_it_needs_nothing_of_ours(place: Path) -> None:
    text = (place / descriptor.READER_NAME).read_text()
    assert text == Path(standalone_reader.__file__).read_text()
    assert len(text.splitlines()) < 500
    tree = ast.parse(text)
    names = {
        alias.name if isinstance(node, ast.Import) else str(node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    top = {name.split(".")[0] for name in names}
    assert top - sys.stdlib_module_names == {"blake3", "zstandard", "cryptography"}


def test_it_runs_from_the_repository_s_own_folder(place: Path, root_key: bytes | None) -> None:
    copy = place.parent / "elsewhere"
    shutil.copytree(place, copy)
    target = place.parent / "disk.raw"
    program = [sys.executable, "-I", str(copy / "restore.py")]
    arguments = ["restore", "--backup", "two", "--to", str(target)]
    key = place.parent / "key.txt"
    if root_key is not None:
        key.write_text(recovery.to_text(root_key))
        arguments += ["--recovery-key-file", str(key)]
    done = subprocess.run(
        [*program, *arguments], check=False, capture_output=True, text=True, timeout=SECONDS_MAX
    )
    assert done.returncode == 0, done.stderr
    assert target.read_bytes() == NEXT


def test_it_lists_what_is_not_deleted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(place, "list") == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [(line[1], line[3], line[4]) for line in lines] == [
        ("one", str(KEY), str(len(BASE))),
        ("two", str(KEY), str(len(NEXT))),
        ("both", str(KEY), str(len(BASE))),
        ("both", str(KEY + 1), str(9 * CHUNK)),
    ]
    assert {line[2] for line in lines} == {"web"}


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_held_backup_is_there_whatever_its_tombstone_says(
    place: Path, root_key: bytes | None, *, is_damaged: bool
) -> None:
    made = Kit(LocalStorage(place), root_key=root_key).open(seed=9)
    keys = standalone_reader.Keys(root_key)
    (tomb, *_) = made.backups.list_deleted()
    before = {one["backup_id"] for one in standalone_reader.list_backups(place, keys)}
    change = holds.Change(held=True, who="court", why="case 7", at=made.clock.now())
    holds.put(made.storage, tomb.manifest_id, tomb.backup_id, change)
    if is_damaged:
        path = place / "holds" / tomb.manifest_id / "000001"
        path.write_bytes(path.read_bytes()[:-1])
    after = {one["backup_id"] for one in standalone_reader.list_backups(place, keys)}
    assert after - before == {tomb.backup_id}
    if not is_damaged:
        made.backups.release(tomb.backup_id, who="court", why="over")
        again = standalone_reader.list_backups(place, keys)
        assert {one["backup_id"] for one in again} == before


@pytest.mark.parametrize(
    ("backup", "disk", "data"),
    [
        ("one", (), BASE),
        ("two", (), NEXT),
        ("both", ("--disk", "0"), BASE[::-1]),
        ("both", ("--disk", str(KEY + 1)), bytes(9 * CHUNK)),
    ],
)
def test_it_restores_bit_for_bit(
    place: Path, backup: str, disk: tuple[str, ...], data: bytes
) -> None:
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    code, target = restore(place, backup, *disk)
    assert (code, target.read_bytes() == data) == (0, True)
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


def test_a_huge_sparse_disk_with_several_levels(place: Path, root_key: bytes | None) -> None:
    repository = Kit(LocalStorage(place), root_key=root_key).open()
    size, far, data = 70_000 * CHUNK + 512, 69_999, b"far away" * 1000
    plain = data.ljust(CHUNK, b"\0")
    repository.begin_session("s")
    with repository.open_disk_writer("s", kit.identity(size), moment="m") as writer:
        chunk_id = repository.identify(plain)
        writer.put_chunk(far, chunk_id, Codec.RAW, plain, CHUNK)
        writer.put_zero(far + 1)
        writer.finish(DiskTotals(Mode.FULL))
    repository.commit("s", kit.draft(repository, "huge", "m"))
    code, target = restore(place, "huge")
    assert (code, target.stat().st_size) == (0, size)
    assert target.stat().st_blocks * 512 < 4 * CHUNK
    with target.open("rb") as file:
        file.seek(far * CHUNK)
        assert file.read(CHUNK) == plain


def test_what_cannot_be_meant_changes_nothing(
    place: Path, root_key: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = place.parent / "taken.raw"
    taken.write_bytes(b"precious")
    assert restore(place, "both")[0] == 2  # which disk?
    assert restore(place, "three")[0] == 2  # deleted
    assert restore(place, "both", "--disk", "7")[0] == 2
    assert run(place, "restore", "--backup", "one", "--to", str(taken)) == 2
    assert taken.read_bytes() == b"precious"
    assert run(place.parent, "list") == 2
    (place / "sendense.json").chmod(0o600)
    text = (place / "sendense.json").read_text()
    for old, new in (('"version":1', '"version":2'), ('"read":[', '"read":["odd"')):
        (place / "sendense.json").write_text(text.replace(old, new))
        assert run(place, "list") == 2
    (place / "sendense.json").write_text(text)
    (place / "features").mkdir()
    for name, code in (("write.odd", 0), ("gc.odd", 0), ("read.odd", 2)):
        (place / "features" / name).touch()
        assert run(place, "list") == code
    (place / "features" / "read.odd").unlink()
    if root_key is not None:
        (place / "sendense.json").write_text(
            text.replace('"compression_level":1', '"compression_level":2')
        )
        assert run(place, "list") == 1
    assert "error:" in capsys.readouterr().err


def test_keys_are_found_in_files_the_environment_or_asked_for(
    place: Path, root_key: bytes | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SENDENSE_RECOVERY_KEY", raising=False)
    monkeypatch.setattr(recipients, "ITERATIONS", 1)
    monkeypatch.setattr(recipients, "MEMORY_KIB", 64)
    storage = LocalStorage(place)
    recipients.add_passphrase(
        storage, ROOT, PHRASE, label="", clock=ManualClock(), ids=SeededIds(1)
    )
    other = recipients.add_passphrase(
        storage, ROOT[::-1], PHRASE, label="", clock=ManualClock(), ids=SeededIds(2)
    )
    storage.put_if_absent("keys/junk", b"junk")
    phrase = tmp_path / "phrase"
    phrase.write_text(f"{PHRASE}\n")
    key = tmp_path / "key"
    key.write_text(recovery.to_text(ROOT))
    assert run(place, "list", "--recovery-key-file", str(key)) == (2 if root_key is None else 0)
    expected = 2 if root_key is None else 0
    assert run(place, "list", "--passphrase-file", str(phrase)) == expected
    if root_key is None:
        return
    assert other.domain != kit.KEYS.domain
    monkeypatch.setenv("SENDENSE_PASSPHRASE", "not that one")
    assert run(place, "list") == 2
    monkeypatch.setenv("SENDENSE_PASSPHRASE", PHRASE)
    assert run(place, "list") == 0
    monkeypatch.delenv("SENDENSE_PASSPHRASE")
    for typed, code in (
        (recovery.to_text(ROOT).lower(), 0),
        (PHRASE, 0),
        (recovery.to_text(ROOT[::-1]), 2),
        ("SENDENSE-1-nonsense", 2),
        ("SENDENSE-1-ä", 2),
    ):
        monkeypatch.setattr("getpass.getpass", lambda _prompt, typed=typed: typed)
        assert run(place, "list") == code
    monkeypatch.setattr(standalone_reader, "ARGON_MAX", 0)
    assert run(place, "list", "--passphrase-file", str(phrase)) == 2


def test_a_damaged_manifest_is_read_from_its_outcome(
    place: Path, root_key: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = Kit(LocalStorage(place), root_key=root_key).open()
    names = [place / repository.get_backup(one).name for one in ("one", "two")]
    repository.abort("aborted", "for the test")
    _flip(names[0], 70)
    _flip(names[1], 70)
    _flip(place / "outcomes" / "two", 70)
    _flip(_packs(place, "tombs")[0], 70)
    code, target = restore(place, "one")
    assert (code, target.read_bytes() == BASE) == (0, True)
    assert restore(place, "two")[0] == 2
    assert "a deleted backup may be listed" in capsys.readouterr().err


@pytest.mark.parametrize("length", [0, 40, 90])
def test_a_manifest_that_is_cut_off_or_of_another_kind_is_told(place: Path, length: int) -> None:
    path = _packs(place, "backups")[0]
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:length])
    assert run(place, "list") == 0


def test_a_frame_of_another_repository_is_told(place: Path, root_key: bytes | None) -> None:
    path = _packs(place, "backups")[0]
    path.chmod(0o600)
    path.write_bytes(format.seal_frame(DomainKeys(bytes(32)), Frame.MANIFEST, b"{}"))
    assert run(place, "list") == 0
    if root_key is not None:
        whole = bytearray(format.seal_frame(kit.KEYS, Frame.MANIFEST, b"{}"))[:-32]
        whole[-1] ^= 1
        path.write_bytes(bytes(whole) + standalone_reader.hash_of(bytes(whole)))
        assert run(place, "list") == 0


def test_damage_is_never_restored_and_the_rest_is_saved(
    place: Path, root_key: bytes | None, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    randomness = random.Random(seed)
    with Kit(LocalStorage(place), root_key=root_key).open() as repository:
        chunk_id = repository.identify(BASE[2 * CHUNK : 3 * CHUNK])
        path = place / repository.segments.locate([chunk_id])[0].pack.name
    whole = path.read_bytes()
    for at in (
        pack.HEADER.size + 2,  # a blob's magic
        pack.HEADER.size + 90,  # its bytes
        130,  # the pack's key, or what is zero
        len(whole) - 40,  # the footer
        len(whole) - 80,  # the directory
        randomness.randrange(pack.HEADER.size, len(whole)),
    ):
        path.chmod(0o600)
        path.write_bytes(whole)
        _flip(path, at)
        wrong = 0
        for backup, data in (("one", BASE), ("two", NEXT)):
            code, target = restore(place, backup)
            assert (code == 0) == target.exists()
            wrong += target.exists() and target.read_bytes() != data
            code, target = restore(place, backup, "--salvage")
            told = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
            assert (code == 1) == bool(told)
            expected, found = bytearray(data), target.read_bytes()
            for _, start, end in told:
                expected[int(start) : int(end)] = bytes(int(end) - int(start))
            assert found == expected
        assert wrong == 0
    for path in _packs(place):
        path.unlink()
    assert restore(place, "one")[0] == restore(place, "two", "--salvage")[0] == 1


@pytest.mark.parametrize("way", ["gone", "flipped", "short", "huge", "header", "stranger", "key"])
def test_a_lost_map_is_told_as_missing_ranges(
    place: Path, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in _packs(place, "meta"):
        path.chmod(0o600)
        whole = path.read_bytes()
        if way == "gone":
            path.unlink()
        elif way == "flipped":
            _flip(path, pack.HEADER.size + pack.BLOB.size + 45)
        elif way == "short":
            path.write_bytes(whole[:30])
        elif way == "huge":
            with path.open("r+b") as file:
                file.truncate(pack.SIZE_MAX + 1)
        elif way == "header":
            _flip(path, 20)
        else:
            other = bytearray(whole)
            if way == "stranger":
                other[16:32] = b"another domain.."
            else:
                other[130] ^= 1  # without encryption, nobody looks there
                other[208 + 60] ^= 1
            other[200:208] = format.check_of(bytes(other[:200]))
            path.write_bytes(other)
    assert restore(place, "one")[0] == 1
    code, target = restore(place, "one", "--salvage")
    assert (code, target.read_bytes()) == (1, bytes(len(BASE)))
    assert f"missing\t0\t{len(BASE)}" in capsys.readouterr().out


def test_a_map_that_goes_on_behind_the_end_writes_nothing_there() -> None:
    ids = [bytes([1]) * 32, bytes([2]) * 32]
    node = standalone_reader.NODE.pack(b"NODE", 1, 0, 2, b"\x03".ljust(32, b"\0"))
    root = bytes([9]) * 32
    disk = {"size_bytes": CHUNK, "chunk_size": CHUNK, "root": root.hex()}
    found = standalone_reader.walk({root: node + b"".join(ids)}, disk)
    assert found == ({ids[0]: [0]}, [])


def test_a_node_that_lies_is_told() -> None:
    node = standalone_reader.NODE.pack(b"NODE", 1, 0, 2, b"\x01".ljust(32, b"\0"))
    with pytest.raises(standalone_reader.Damaged):
        standalone_reader.parse_node(node + bytes(32), 0)


def test_a_file_that_is_absurdly_large_is_not_read(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standalone_reader, "FRAME_MAX", 10)
    assert run(place, "list") == 0  # each is told as damaged


def test_blobs_that_lie_about_their_length_are_refused(tmp_path: Path) -> None:
    body = zstandard.ZstdCompressor().compress(bytes(100))
    for plain, codec, data in ((99, 1, body), (100, 1, body[:-3] + b"???")):
        head = standalone_reader.BLOB.pack(b"BLOB", 1, codec, 0, len(data), plain, bytes(32), b"")
        path = tmp_path / f"{plain}"
        path.write_bytes(head + data)
        with path.open("rb") as file, pytest.raises(standalone_reader.Damaged):
            standalone_reader.read_blob(file, 0, len(data), None)
    with path.open("rb") as file, pytest.raises(standalone_reader.Damaged, match="cut off"):
        standalone_reader.read_blob(file, 0, 10_000, None)
