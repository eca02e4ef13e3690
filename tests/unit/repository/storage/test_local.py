import errno
import os
from pathlib import Path
from typing import Any

import pytest

from sendense.core.errors import Denied, NoSpace, NotFound, Unavailable
from sendense.repository.storage.local import TEMPORARY_PREFIX, LocalStorage


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
