import errno
import os
from pathlib import Path
from typing import Any

import pytest

from sendense.core.errors import Corrupt, Denied, NoSpace, NotFound, Unavailable
from sendense.repository.storage import local
from sendense.repository.storage.local import TEMPORARY_PREFIX, TIDY_AGE_SECONDS, LocalStorage


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path)


def _temporaries(path: Path) -> list[Path]:
    return [found for found in path.rglob("*") if found.name.startswith(TEMPORARY_PREFIX)]


def _is_temporary(file: int) -> bool:
    return Path(f"/proc/self/fd/{file}").readlink().name.startswith(TEMPORARY_PREFIX)


def test_a_missing_folder_is_a_missing_repository(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "gone", tmp_path / "file"):
        with pytest.raises(NotFound) as caught:
            LocalStorage(path)
        assert caught.value.kind == "repository-missing"


def test_file_and_folders_are_synced_before_put_returns(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    real_fsync, real_link, real_unlink = os.fsync, os.link, os.unlink

    def fsync(file: int) -> None:
        path = Path(f"/proc/self/fd/{file}").readlink()
        name = "file" if path.is_file() else str(path.relative_to(tmp_path))
        events.append(("sync", name))
        real_fsync(file)

    def link(*args: Any, **kwargs: Any) -> None:
        events.append(("link", args[1]))
        real_link(*args, **kwargs)

    def unlink(*args: Any, **kwargs: Any) -> None:
        events.append(("unlink", "file"))
        real_unlink(*args, **kwargs)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "unlink", unlink)
    storage.put_if_absent("packs/ab/one", b"x")
    assert events == [
        ("sync", "."),  # the new folder packs
        ("sync", "packs"),  # the new folder packs/ab
        ("sync", "file"),
        ("link", "one"),
        ("unlink", "file"),
        ("sync", "packs/ab"),
    ]


@pytest.mark.parametrize(
    ("number", "error", "kind"),
    [
        (errno.ENOSPC, NoSpace, "repository-full"),
        (errno.EDQUOT, NoSpace, "repository-full"),
        (errno.EROFS, Denied, "repository-read-only"),
        (errno.EACCES, Denied, "repository-denied"),
        (errno.EIO, Unavailable, "storage-failed"),
    ],
)
@pytest.mark.parametrize("call", ["open", "writev", "fsync", "link", "close"])
def test_a_put_that_fails_leaves_nothing_behind(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    error: type[Exception],
    kind: str,
    call: str,
) -> None:
    storage = LocalStorage(tmp_path)
    storage.put_if_absent("there", b"x")
    real = getattr(os, call)

    def fail(*args: Any, **kwargs: Any) -> Any:
        if call == "open" and not args[1] & os.O_CREAT:
            return real(*args, **kwargs)
        if call == "close" and not _is_temporary(args[0]):
            return real(*args, **kwargs)
        if call == "close":
            real(*args, **kwargs)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(error) as caught:
            storage.put_if_absent("new", b"data")
        assert getattr(caught.value, "kind", None) == kind
    assert [found.name for found in storage.list_objects()] == ["there"]
    assert _temporaries(tmp_path) == []


def test_a_listing_shows_no_half_written_object(storage: LocalStorage, tmp_path: Path) -> None:
    storage.put_if_absent("index/whole", b"x")
    (tmp_path / "index" / f"{TEMPORARY_PREFIX}0011").write_bytes(b"half")
    (tmp_path / f"{TEMPORARY_PREFIX}0022").write_bytes(b"half")
    assert [found.name for found in storage.list_objects()] == ["index/whole"]
    assert storage.list_top() == ["index"]


def test_a_link_planted_in_the_folder_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "packs").symlink_to(outside)
    (inside / "file").symlink_to(outside / "secret")
    storage = LocalStorage(inside)
    for name in ("packs/secret", "file"):
        for call in (storage.get, storage.size, storage.map):
            with pytest.raises(Denied) as caught:
                call(name)
            assert caught.value.kind == "repository-link"
    with pytest.raises(Denied):
        storage.put_if_absent("packs/new", b"x")
    with pytest.raises(Denied):
        storage.delete("packs/secret")
    assert list(storage.list_objects()) == []
    assert [found.name for found in outside.iterdir()] == ["secret"]


def test_a_link_whose_answer_was_lost_is_a_success(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def link_twice(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        real(*args, **kwargs)  # as an NFS client repeats it

    monkeypatch.setattr(os, "link", link_twice)
    storage.put_if_absent("outcomes/s", b"mine")
    assert storage.get("outcomes/s") == b"mine"


def test_a_write_that_the_system_cuts_short_is_continued(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.writev

    def write_little(file: int, buffers: list[memoryview]) -> int:
        return real(file, [buffers[0][:3]])

    monkeypatch.setattr(os, "writev", write_little)
    storage.put_if_absent("a", [b"0123456789", b"", b"abcdefg"])
    assert storage.get("a") == b"0123456789abcdefg"


def test_objects_are_private_to_their_user(storage: LocalStorage, tmp_path: Path) -> None:
    storage.put_if_absent("packs/ab/one", b"x")
    assert (tmp_path / "packs/ab/one").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "packs").stat().st_mode & 0o777 == 0o700


def test_the_capacity_is_that_of_the_file_system(storage: LocalStorage) -> None:
    capacity = storage.capacity()
    assert capacity is not None
    assert 0 < capacity.free_bytes <= capacity.total_bytes


def test_a_folder_that_may_not_be_opened_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(*_: object) -> int:
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(os, "open", deny)
    with pytest.raises(Denied) as caught:
        LocalStorage(tmp_path)
    assert caught.value.kind == "repository-denied"


def test_a_folder_under_an_object_s_name_is_no_object(
    storage: LocalStorage, tmp_path: Path
) -> None:
    (tmp_path / "packs").mkdir()
    with pytest.raises(NotFound):
        storage.get("packs")


def test_a_folder_whose_parent_cannot_be_synced_is_made_anew_by_the_next_try(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "failed")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(Unavailable):
            storage.put_if_absent("packs/one", b"x")
    assert not (tmp_path / "packs").exists()
    storage.put_if_absent("packs/one", b"x")
    assert storage.get("packs/one") == b"x"


def test_a_read_that_the_system_cuts_short_is_continued(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.put_if_absent("a", b"0123456789")
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda file, length, at: real(file, min(length, 3), at))
    assert storage.get("a") == b"0123456789"
    assert storage.get_range("a", 2, 7) == b"2345678"


def test_a_file_that_shrinks_while_it_is_read_is_damaged(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.put_if_absent("a", b"0123456789")
    real = os.pread

    def shrink(file: int, length: int, at: int) -> bytes:
        os.truncate(tmp_path / "a", 5)
        return real(file, length, at)

    monkeypatch.setattr(os, "pread", shrink)
    with pytest.raises(Corrupt) as caught:
        storage.get("a")
    assert caught.value.kind == "object-truncated"


def _age(path: Path) -> None:
    old = path.stat().st_mtime - 2 * TIDY_AGE_SECONDS
    os.utime(path, (old, old))


def test_what_crashes_left_is_tidied_when_it_is_old(storage: LocalStorage, tmp_path: Path) -> None:
    storage.put_if_absent("packs/aa/one", b"1")
    for session in ("old", "young", "used"):
        storage.put_if_absent(f"sessions/{session}/disks/one", b"1")
    for session in ("old", "young"):
        storage.delete(f"sessions/{session}/disks/one")
    for name in (".tmp-old", ".tmp-young", ".keep"):
        (tmp_path / "packs/aa" / name).write_bytes(b"half")
    (tmp_path / ".tmp-folder").mkdir()
    for path in ("packs/aa/.tmp-old", "packs/aa/.keep", ".tmp-folder", "packs/aa", "packs"):
        _age(tmp_path / path)
    for path in ("sessions/old/disks", "sessions/old", "sessions/used/disks", "sessions/used"):
        _age(tmp_path / path)
    assert storage.tidy() == 3  # a file and two folders
    assert sorted(entry.name for entry in (tmp_path / "packs/aa").iterdir()) == [
        ".keep",
        ".tmp-young",
        "one",
    ]
    assert sorted(entry.name for entry in (tmp_path / "sessions").iterdir()) == ["used", "young"]
    # Who knew the folder makes it anew.
    storage.put_if_absent("sessions/old/disks/two", b"2")
    assert storage.get("sessions/old/disks/two") == b"2"


def test_what_goes_while_it_is_looked_at_is_nothing_to_tidy(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.put_if_absent("packs/one", b"1")
    left = tmp_path / "packs/.tmp-left"
    left.write_bytes(b"half")
    _age(left)
    modified = local._modified

    def vanish(entry: "os.DirEntry[str]") -> float:
        if entry.name == ".tmp-left":
            left.unlink(missing_ok=True)
        return modified(entry)

    monkeypatch.setattr(local, "_modified", vanish)
    assert storage.tidy() == 0
    monkeypatch.undo()

    left.write_bytes(b"half")
    _age(left)
    unlink = os.unlink

    def unlink_twice(name: str, *, dir_fd: int) -> None:
        unlink(name, dir_fd=dir_fd)
        if name == ".tmp-left":
            raise FileNotFoundError(name)

    monkeypatch.setattr(os, "unlink", unlink_twice)
    assert storage.tidy() == 0
