import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sendense.repository.storage import mounts
from sendense.repository.storage.local import LocalStorage


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    """A folder with a space in its path, open."""
    path = tmp_path / "a share"
    path.mkdir()
    handle = os.open(path, os.O_RDONLY)
    yield handle
    os.close(handle)


def _seconds(tmp_path: Path, folder: int, *lines: str) -> float:
    listed = tmp_path / "mountinfo"
    listed.write_text("".join(f"{line}\n" for line in lines))
    return mounts.listing_seconds(folder, mounts=listed)


ROOT = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard"


def _mount(path: Path, kind: str, options: str = "rw") -> str:
    point = str(path).replace(" ", "\\040")
    return f"40 27 0:50 / {point} rw shared:1 - {kind} server:/x {options}"


def test_a_folder_on_this_machine_s_disk_is_the_truth(tmp_path: Path, folder: int) -> None:
    assert _seconds(tmp_path, folder, ROOT) == 0
    assert _seconds(tmp_path, folder, ROOT, _mount(tmp_path / "a", "nfs4")) == 0
    assert LocalStorage(tmp_path).listing_seconds() in {0, mounts.CACHED_SECONDS}


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "ceph"])
def test_a_share_may_be_behind(tmp_path: Path, folder: int, kind: str) -> None:
    assert _seconds(tmp_path, folder, ROOT, _mount(tmp_path / "a share", kind)) == 120
    assert _seconds(tmp_path, folder, _mount(tmp_path, kind), ROOT) == 120


def test_the_mount_on_top_counts(tmp_path: Path, folder: int) -> None:
    share, disk = _mount(tmp_path, "nfs4"), _mount(tmp_path, "xfs")
    assert _seconds(tmp_path, folder, ROOT, share, disk) == 0
    assert _seconds(tmp_path, folder, ROOT, disk, share) == 120


def test_a_longer_cache_is_waited_for(tmp_path: Path, folder: int) -> None:
    for options, seconds in (
        ("rw,acdirmax=600,x=1", 1200),
        ("acdirmax=3", 120),
        ("acdirmax=", 120),
    ):
        assert _seconds(tmp_path, folder, ROOT, _mount(tmp_path, "nfs", options)) == seconds


def test_what_nobody_knows_may_be_a_share(tmp_path: Path, folder: int) -> None:
    assert _seconds(tmp_path, folder) == 120
    assert _seconds(tmp_path, folder, "nonsense") == 120
    assert mounts.listing_seconds(folder, mounts=tmp_path / "none") == 120
