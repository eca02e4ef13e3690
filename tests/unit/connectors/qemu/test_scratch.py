import os
from pathlib import Path

import pytest

from sendense.connectors.qemu import scratch
from sendense.connectors.qemu.scratch import Scratch
from sendense.core.errors import Denied

VM = "6f1c6a52-7e0b-4d53-9a5e-3c1f0d9b2a77"
SNAPSHOT = "0123456789ab"


@pytest.fixture(autouse=True)
def _short_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what moves because of long paths inside the test's folder."""
    monkeypatch.setattr(scratch, "default_root", lambda: tmp_path / "short")


def test_fleecing_files_are_private_sparse_and_of_the_disks_size(tmp_path: Path) -> None:
    place = Scratch(tmp_path / "scratch", VM)
    place.prepare()
    fleece = place.create_fleece(SNAPSHOT, 2000, "nonce", 1 << 40)
    state = fleece.stat()
    assert (state.st_mode & 0o777, state.st_size, state.st_blocks) == (0o600, 1 << 40, 0)
    assert place.folder.stat().st_mode & 0o777 == 0o700


def test_a_record_is_read_back_and_goes_with_the_files(tmp_path: Path) -> None:
    place = Scratch(tmp_path, VM)
    place.prepare()
    place.create_fleece(SNAPSHOT, 2000, "nonce", 512)
    place.create_fleece("ba9876543210", 2000, "nonce", 512)
    place.write_record(SNAPSHOT, {"a": 1})
    assert place.find_record(SNAPSHOT) == {"a": 1}
    assert place.list_tokens() == {SNAPSHOT, "ba9876543210"}
    place.remove_files(SNAPSHOT)
    place.remove_files(SNAPSHOT)
    assert place.find_record(SNAPSHOT) is None
    assert place.list_tokens() == {"ba9876543210"}


def test_a_torn_record_is_no_record(tmp_path: Path) -> None:
    place = Scratch(tmp_path, VM)
    place.prepare()
    (place.folder / f"{SNAPSHOT}.json").write_text('{"a": ')
    assert place.find_record(SNAPSHOT) is None


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / VM).symlink_to(elsewhere)
    with pytest.raises(Denied) as caught:
        Scratch(tmp_path / "root", VM).prepare()
    assert caught.value.kind == "scratch-folder"


def test_the_socket_moves_where_its_path_would_be_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "default_root", lambda: Path("/tmp/short"))  # noqa: S108 - never created
    assert Scratch(Path("/var/lib/sendense/scratch"), VM).socket.parent.name == VM
    moved = Scratch(tmp_path / ("x" * 120), VM).socket
    assert len(os.fsencode(moved)) <= scratch.SOCKET_PATH_LENGTH_MAX
    assert moved != Scratch(tmp_path / ("y" * 120), VM).socket


def test_empty_folders_go_and_others_stay(tmp_path: Path) -> None:
    place = Scratch(tmp_path, VM)
    place.prepare()
    place.create_fleece(SNAPSHOT, 2000, "nonce", 512)
    place.remove_empty_folders()
    assert place.folder.is_dir()
    place.remove_files(SNAPSHOT)
    place.remove_empty_folders()
    place.remove_empty_folders()
    assert not place.folder.exists()
