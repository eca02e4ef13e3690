import errno
import os
from pathlib import Path

import pytest

from sendense.core.errors import Denied, Exists, Invalid, NoSpace, NotFound, Unavailable
from sendense.engine import publish


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def write(path: Path, *, overwrite: bool = False, content: bytes = b"new") -> None:
    was_there = path.exists()
    with publish.unnamed(path, overwrite=overwrite, tag="job-1") as (hidden, name):
        hidden.write_bytes(content)
        assert path.exists() == was_there
        name()
    publish.forget(path, tag="job-1")


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


def test_a_second_attempt_knows_a_file_that_the_first_one_finished(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    assert not publish.is_named(path, tag="job-1")
    with publish.unnamed(path, overwrite=False, tag="job-1") as (hidden, name):
        hidden.write_bytes(b"new")
        name()
    assert publish.is_named(path, tag="job-1")
    assert not publish.is_named(path, tag="job-2")
    assert not publish.is_named(path, tag="")
    publish.forget(path, tag="job-1")
    assert not publish.is_named(path, tag="job-1")
    assert names_in(tmp_path) == ["disk.raw"]


def test_a_file_of_somebody_else_is_not_taken_for_a_finished_one(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    with publish.unnamed(path, overwrite=False, tag="job-1") as (hidden, name):
        hidden.write_bytes(b"new")
        name()
    path.unlink()
    path.write_bytes(b"new")
    assert not publish.is_named(path, tag="job-1")


def test_forgetting_in_a_folder_that_is_gone_is_no_failure(tmp_path: Path) -> None:
    publish.forget(tmp_path / "gone" / "disk.raw", tag="job-1")
    assert names_in(tmp_path) == []


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


class Killed(BaseException):
    """Ends an attempt without what a live one would clean up."""


def without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: Path, _target: Path) -> None:
        raise OSError(errno.EPERM, "this file system has no hard links")

    monkeypatch.setattr(Path, "hardlink_to", refuse)


def without_flags(monkeypatch: pytest.MonkeyPatch, number: int = errno.EINVAL) -> None:
    def refuse(_hidden: Path, _path: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(publish, "_rename_new", refuse)


def kill_at(monkeypatch: pytest.MonkeyPatch, path: Path, *, after_rename: bool) -> None:
    """Run an attempt that dies at its rename, and leave what the system would have then."""
    replace = Path.replace

    def die(hidden: Path, target: Path) -> None:
        if after_rename:
            replace(hidden, target)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", die)
        patched.setattr(publish, "_clear", lambda _hidden, _path: None)  # the dead clean nothing
        with pytest.raises(Killed):
            write(path)


def test_the_retry_of_a_job_killed_after_it_reserved_the_name_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_links(monkeypatch)
    without_flags(monkeypatch)
    path = tmp_path / "disk.raw"
    kill_at(monkeypatch, path, after_rename=False)
    assert path.read_bytes() == b""
    assert not publish.is_named(path, tag="job-1")
    publish.forget(path, tag="job-1")
    publish.check_target(path, overwrite=False)
    write(path)
    assert path.read_bytes() == b"new"
    assert names_in(tmp_path) == ["disk.raw"]


@pytest.mark.parametrize("theirs", [b"", b"theirs"])
def test_the_retry_leaves_a_file_that_took_the_place_of_the_reservation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, theirs: bytes
) -> None:
    without_links(monkeypatch)
    without_flags(monkeypatch)
    path, other = tmp_path / "disk.raw", tmp_path / "other"
    kill_at(monkeypatch, path, after_rename=False)
    other.write_bytes(theirs)
    other.rename(path)
    inode = path.stat().st_ino
    with pytest.raises(Exists):
        write(path)
    assert not publish.is_named(path, tag="job-1")
    assert (path.read_bytes(), path.stat().st_ino) == (theirs, inode)
    assert names_in(tmp_path) == ["disk.raw"]


def test_without_links_a_retry_knows_the_file_that_a_killed_attempt_had_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_links(monkeypatch)
    without_flags(monkeypatch)
    path = tmp_path / "disk.raw"
    kill_at(monkeypatch, path, after_rename=True)
    assert publish.is_named(path, tag="job-1")
    assert not publish.is_named(path, tag="job-2")
    publish.forget(path, tag="job-1")
    assert path.read_bytes() == b"new"
    assert names_in(tmp_path) == ["disk.raw"]


def test_where_no_rename_can_refuse_to_replace_a_file_of_somebody_else_still_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_links(monkeypatch)
    without_flags(monkeypatch)
    path = tmp_path / "disk.raw"
    write(path)
    path.write_bytes(b"theirs")
    with pytest.raises(Exists):
        write(path)
    assert path.read_bytes() == b"theirs"
    assert names_in(tmp_path) == ["disk.raw"]


def test_a_rename_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_links(monkeypatch)
    without_flags(monkeypatch, errno.EIO)
    with pytest.raises(Unavailable):
        write(tmp_path / "disk.raw")
    assert names_in(tmp_path) == []


def test_a_link_that_fails_for_another_reason_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: Path, _target: Path) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(Path, "hardlink_to", fail)
    with pytest.raises(Unavailable):
        write(tmp_path / "disk.raw")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_name_that_may_not_last_is_an_error_and_an_old_file_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, overwrite: bool
) -> None:
    path = tmp_path / "disk.raw"
    sync = publish._sync

    def fail(target: Path, flags: int) -> None:
        if flags & os.O_DIRECTORY:
            raise OSError(errno.EIO, "the folder cannot be synced")
        sync(target, flags)

    monkeypatch.setattr(publish, "_sync", fail)
    if overwrite:
        path.write_bytes(b"old")
    with pytest.raises(Unavailable):
        write(path, overwrite=overwrite)
    assert names_in(tmp_path) == (["disk.raw"] if overwrite else [])


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
