import errno
import os
from pathlib import Path

import pytest

from sendense.core.errors import Denied, Exists, Invalid, NoSpace, NotFound, Unavailable
from sendense.engine import publish


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def write(path: Path, *, overwrite: bool = False, content: bytes = b"new") -> None:
    with publish.unnamed(path, overwrite=overwrite, tag="job-1") as (hidden, name):
        hidden.write_bytes(content)
        assert not path.exists() or overwrite
        name()


def test_a_file_gets_its_name_when_it_is_whole_and_the_hidden_one_goes(tmp_path: Path) -> None:
    write(tmp_path / "disk.raw")
    assert names_in(tmp_path) == ["disk.raw"]
    assert (tmp_path / "disk.raw").read_bytes() == b"new"


def test_a_file_that_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"

    def race() -> None:
        with publish.unnamed(path, overwrite=False, tag="") as (hidden, name):
            hidden.write_bytes(b"new")
            path.write_bytes(b"theirs")
            name()

    with pytest.raises(Exists) as caught:
        race()
    assert caught.value.kind == "target-exists"
    assert names_in(tmp_path) == ["disk.raw"]
    assert path.read_bytes() == b"theirs"


def test_overwriting_replaces_the_old_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"old")
    write(path, overwrite=True)
    assert path.read_bytes() == b"new"
    assert names_in(tmp_path) == ["disk.raw"]


def test_a_failure_leaves_the_old_file_and_no_new_one(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"old")

    def fail() -> None:
        with publish.unnamed(path, overwrite=True, tag="") as (hidden, _):
            hidden.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert names_in(tmp_path) == ["disk.raw"]
    assert path.read_bytes() == b"old"


def test_a_second_attempt_clears_what_a_killed_one_left(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    with publish.unnamed(path, overwrite=False, tag="job-1") as (hidden, _):
        left = hidden
    left.write_bytes(b"left by a killed worker")
    write(path)
    assert names_in(tmp_path) == ["disk.raw"]


def test_the_longest_name_a_file_may_have_can_be_restored_to(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 127)
    write(path)
    assert path.read_bytes() == b"new"


def test_without_hard_links_the_file_is_published_and_still_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: Path, _target: Path) -> None:
        raise OSError(errno.EPERM, "this file system has no hard links")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    path = tmp_path / "disk.raw"
    write(path)
    assert path.read_bytes() == b"new"
    with publish.unnamed(path, overwrite=False, tag="") as (hidden, name):
        hidden.write_bytes(b"other")
        with pytest.raises(Exists):
            name()
    assert path.read_bytes() == b"new"
    assert names_in(tmp_path) == ["disk.raw"]


def test_a_target_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotFound, match="does not exist"):
        publish.check_target(tmp_path / "missing" / "disk.raw", overwrite=False)
    with pytest.raises(Exists):
        publish.check_target(tmp_path / "there", overwrite=False)
    publish.check_target(tmp_path / "there", overwrite=True)
    for other in (tmp_path, tmp_path / "link", Path("/dev/null")):
        with pytest.raises(Invalid, match="not a regular file"):
            publish.check_target(other, overwrite=True)


def test_more_than_is_free_is_refused(tmp_path: Path) -> None:
    publish.check_space(tmp_path / "disk.raw", bytes_needed=1)
    with pytest.raises(NoSpace, match="are needed"):
        publish.check_space(tmp_path / "disk.raw", bytes_needed=1 << 60)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, NoSpace),
        (errno.EDQUOT, NoSpace),
        (errno.EFBIG, Invalid),
        (errno.EROFS, Denied),
        (errno.EACCES, Denied),
        (errno.EIO, Unavailable),
    ],
)
def test_what_the_system_says_becomes_an_error_of_ours(
    number: int, kind: type[Exception], tmp_path: Path
) -> None:
    with (
        pytest.raises(kind, match="disk"),
        publish.unnamed(tmp_path / "disk", overwrite=False, tag=""),
    ):
        raise OSError(number, os.strerror(number))
    assert names_in(tmp_path) == []
