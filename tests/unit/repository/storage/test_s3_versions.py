"""A bucket with versions and object lock, on a real server: what an attacker can and cannot do."""

import random
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sendense.core.clock import ManualClock
from sendense.core.errors import (
    Denied,
    Exists,
    Invalid,
    NotFound,
    ProtocolError,
    SendenseError,
    Unavailable,
)
from sendense.repository.check import check
from sendense.repository.gc import run
from sendense.repository.storage import locations, object_errors, s3_versions
from sendense.repository.storage.base import Storage
from sendense.repository.storage.locks import LockMode, Locks
from sendense.repository.storage.object_store import MARK, ObjectStorage
from sendense.repository.storage.s3_versions import S3Versions, Version
from tests import gc_kit
from tests import repository_kit as kit
from tests.repository_kit import CHUNK, Kit
from tests.s3.fixtures import VAULT

SOON = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
LATER = SOON + timedelta(days=1)
DATA = random.Random(1).randbytes(3 * CHUNK)


class Attacker:
    """Somebody with the credentials, and a client of the makers of S3."""

    def __init__(self, client: Any, url: str) -> None:
        self.client = client
        self.prefix = locations.parse(url).prefix

    def key(self, name: str) -> dict[str, str]:
        return {"Bucket": VAULT, "Key": f"{self.prefix}/{name}"}

    def hide(self, name: str) -> None:
        self.client.delete_object(**self.key(name))

    def overwrite(self, name: str, data: bytes = b"pay me") -> None:
        self.client.put_object(**self.key(name), Body=data)

    def versions(self, name: str = "") -> list[str]:
        found = self.client.list_object_versions(Bucket=VAULT, Prefix=f"{self.prefix}/{name}")
        return [
            one["VersionId"]
            for kind in ("Versions", "DeleteMarkers")
            for one in found.get(kind, ())
        ]

    def names(self) -> list[str]:
        found = self.client.list_objects_v2(Bucket=VAULT, Prefix=self.prefix)
        return [one["Key"].removeprefix(f"{self.prefix}/") for one in found.get("Contents", ())]


@pytest.fixture
def storage(vault_url: str) -> Storage:
    return locations.open_storage(vault_url)


@pytest.fixture
def attacker(bare_s3: Any, vault_url: str) -> Attacker:
    return Attacker(bare_s3, vault_url)


def _locks(storage: Storage) -> Locks:
    locks = storage.locks()
    assert locks is not None
    return locks


def _versions(storage: Storage) -> S3Versions:
    locks = storage.locks()
    assert isinstance(locks, S3Versions)
    return locks


def _lock(storage: Storage, name: str, until: datetime) -> None:
    _locks(storage).lock(name, LockMode.GOVERNANCE, until)


# Locks.


def test_a_lock_holds_and_lengthens_and_is_never_shortened(
    storage: Storage, attacker: Attacker
) -> None:
    for mode in (LockMode.GOVERNANCE, LockMode.COMPLIANCE):
        _locks(storage).require(mode)
    storage.put_if_absent("a/b", b"data")
    assert _locks(storage).locked_until("a/b") is None
    for until in (SOON, LATER, SOON):
        _lock(storage, "a/b", until)
    assert _locks(storage).locked_until("a/b") == LATER
    with pytest.raises(Denied) as caught:
        storage.delete("a/b")
    assert caught.value.kind == "object-locked"
    assert caught.value.fields["until"] == LATER.isoformat(timespec="seconds")
    (version,) = attacker.versions()
    with pytest.raises(attacker.client.exceptions.ClientError, match=r"AccessDenied|locked"):
        attacker.client.delete_object(**attacker.key("a/b"), VersionId=version)
    assert storage.get("a/b") == b"data"


def test_what_is_not_there_cannot_be_locked(storage: Storage) -> None:
    with pytest.raises(NotFound):
        _lock(storage, "none", SOON)
    with pytest.raises(NotFound):
        _locks(storage).locked_until("none")
    storage.put_if_absent("other", b"x")
    with pytest.raises(NotFound):  # a name that begins so is another
        _locks(storage).locked_until("oth")


def test_a_bucket_without_locks_is_refused(s3_url: str, vault_url: str) -> None:
    with pytest.raises(Invalid) as caught:
        _locks(locations.open_storage(s3_url)).require(LockMode.COMPLIANCE)
    assert caught.value.kind == "storage-cannot-lock"
    with pytest.raises(Invalid):
        _locks(locations.open_storage(vault_url)).require(LockMode.ATTRIBUTE)
    nowhere = vault_url.replace(f"//{VAULT}/", "//nowhere/")
    with pytest.raises(NotFound) as missing:
        _locks(locations.open_storage(nowhere)).require(LockMode.COMPLIANCE)
    assert missing.value.kind == "repository-missing"


def test_a_lock_of_somebody_else_is_told_from_a_missing_right(
    storage: Storage, attacker: Attacker
) -> None:
    storage.put_if_absent("held", b"data")
    legal = {"LegalHold": {"Status": "ON"}}
    attacker.client.put_object_legal_hold(**attacker.key("held"), **legal)
    with pytest.raises(Denied):
        storage.delete("held")
    assert storage.get("held") == b"data"
    attacker.client.put_object_legal_hold(**attacker.key("held"), LegalHold={"Status": "OFF"})
    storage.delete("held")
    assert attacker.versions() == []


def test_a_lock_that_is_over_is_no_lock(storage: Storage, attacker: Attacker) -> None:
    storage.put_if_absent("short", b"data")
    until = datetime.now(UTC) + timedelta(seconds=5)
    _lock(storage, "short", until)
    with pytest.raises(Denied):
        storage.delete("short")
    time.sleep((until - datetime.now(UTC)).total_seconds() + 1.0)  # the server's own clock counts
    storage.delete("short")
    assert attacker.versions() == []


# Versions.


def test_what_is_deleted_leaves_no_version(storage: Storage, attacker: Attacker) -> None:
    storage.put_if_absent("a", b"1")
    attacker.overwrite("a")
    attacker.hide("a")
    attacker.overwrite("a")
    assert len(attacker.versions("a")) == 4
    storage.delete("a")
    assert attacker.versions("a") == []
    with pytest.raises(NotFound):
        storage.delete("a")
    storage.put_if_absent("a", b"2")
    assert storage.get("a") == b"2"


@pytest.mark.parametrize("is_listed", [False, True])
def test_behind_delete_markers_everything_is_still_there(
    storage: Storage, attacker: Attacker, vault_url: str, *, is_listed: bool
) -> None:
    for name in ("a/1", "a/2", "b"):
        storage.put_if_absent(name, b"data of " + name.encode())
        attacker.hide(name)
    assert attacker.names() == []
    again = locations.open_storage(vault_url)
    if is_listed:
        assert [(one.name, one.size) for one in again.list_objects()] == [
            ("a/1", 11), ("a/2", 11), ("b", 9),
        ]  # fmt: skip
        assert again.list_top() == ["a", "b"]
    assert again.size("a/1") == 11
    assert again.get("a/1") == b"data of a/1"
    assert again.get_range("a/2", 5, 2) == b"of"
    assert bytes(again.map("b")) == b"data of b"
    assert again.size("b") == 9
    with pytest.raises(NotFound):
        again.get("c")


def test_what_was_overwritten_is_read_as_it_was_once_it_is_listed(
    storage: Storage, attacker: Attacker, vault_url: str
) -> None:
    storage.put_if_absent("a", b"original")
    attacker.overwrite("a")
    again = locations.open_storage(vault_url)
    again.put_if_absent("b", b"x")
    assert [(one.name, one.size) for one in again.list_objects("a")] == [("a", 8)]
    assert (again.get("a"), again.size("a")) == (b"original", 8)


def test_a_hidden_name_is_taken(storage: Storage, attacker: Attacker) -> None:
    storage.put_if_absent("a", b"original")
    attacker.hide("a")
    with pytest.raises(Exists):
        storage.put_if_absent("a", b"mine")
    list(storage.list_objects())
    assert storage.get("a") == b"original"


def test_a_store_to_which_a_hidden_name_is_free_is_told_apart(storage: Storage) -> None:
    """As Amazon's does: the put succeeds, and does not count."""
    assert isinstance(storage, ObjectStorage)
    storage.put_if_absent("a", b"original")
    with pytest.raises(Exists):
        storage._require_first("a", "a-newer-version")


def test_what_somebody_puts_over_an_object_tells_nothing_of_whose_it_is(
    storage: Storage, attacker: Attacker
) -> None:
    """The oldest version counts, whatever lies over it: a put knows it by its mark."""
    assert isinstance(storage, ObjectStorage)
    assert not storage._is_ours("a", "of-ours")
    attacker.client.put_object(**attacker.key("a"), Body=b"ours", Metadata={MARK: "of-ours"})
    attacker.hide("a")
    assert storage._is_ours("a", "of-ours")
    attacker.client.put_object(**attacker.key("a"), Body=b"later", Metadata={MARK: "of-another"})
    assert storage._is_ours("a", "of-ours")
    with pytest.raises(Exists):
        storage._is_ours("a", "of-another")


def test_a_put_that_no_listing_shows_yet_is_worth_another_try(storage: Storage) -> None:
    assert isinstance(storage, ObjectStorage)
    storage.put_if_absent("a", b"original")
    with pytest.raises(FileNotFoundError):
        storage._require_first("b", "a-version")


def test_a_name_of_which_only_a_marker_is_left_is_none(
    storage: Storage, attacker: Attacker
) -> None:
    storage.put_if_absent("a", b"gone")
    (version,) = attacker.versions("a")
    attacker.hide("a")
    attacker.client.delete_object(**attacker.key("a"), VersionId=version)
    assert len(attacker.versions("a")) == 1
    assert list(storage.list_objects()) == []
    with pytest.raises(NotFound):
        storage.get("a")
    with pytest.raises(NotFound):
        _versions(storage).delete("a")


def test_what_an_attacker_locks_is_as_locked_as_our_own(
    storage: Storage, attacker: Attacker
) -> None:
    storage.put_if_absent("a", b"original")
    attacker.client.put_object(
        **attacker.key("a"),
        Body=b"stays",
        ObjectLockMode="GOVERNANCE",
        ObjectLockRetainUntilDate=SOON,
    )
    with pytest.raises(Denied) as caught:
        storage.delete("a")
    assert caught.value.kind == "object-locked"
    list(storage.list_objects())
    assert storage.get("a") == b"original"


def test_a_store_that_repeats_a_page_for_ever_is_unfit(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = {"IsTruncated": True, "NextKeyMarker": "a", "NextVersionIdMarker": "1"}
    versions = _versions(storage)
    monkeypatch.setattr(versions, "_ask", lambda *_, **__: page)
    with pytest.raises(ProtocolError) as caught:
        list(versions.list_versions(""))
    assert caught.value.kind == "storage-unfit"


def test_the_lock_of_a_version_that_is_gone_is_not_guessed(storage: Storage) -> None:
    storage.put_if_absent("a", b"1")
    gone = Version("a", "01K0000000000000000000000A", is_marker=False, size=1)
    with pytest.raises(SendenseError):
        _versions(storage)._find_until(gone)


def test_pages_of_versions_are_put_together(
    storage: Storage, attacker: Attacker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_versions, "PAGE", 3)
    names = [f"n/{number:02}" for number in range(10)]
    for name in names:
        storage.put_if_absent(name, name.encode())
    for name in names[::2]:
        attacker.overwrite(name, b"longer than it was")
        attacker.hide(name)
    assert [one.name for one in storage.list_objects("n/")] == names
    assert [storage.get(name) for name in names] == [name.encode() for name in names]


def test_a_bucket_without_versions_is_asked_nothing_more(s3_url: str) -> None:
    storage = locations.open_storage(s3_url)
    assert isinstance(storage, ObjectStorage)
    storage.put_if_absent("a", b"1")
    assert storage._versions() is None
    assert "_client" not in vars(storage._bucket), "botocore was not even loaded"
    storage.delete("a")
    with pytest.raises(NotFound):
        storage.get("a")


# Errors.


def test_what_a_store_refuses_names_the_permission(
    vault_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    storage = locations.open_storage(vault_url)
    with pytest.raises(Denied) as caught:
        _locks(storage).require(LockMode.COMPLIANCE)
    assert caught.value.kind == "repository-denied"
    assert "s3:GetBucketObjectLockConfiguration" in str(caught.value.hint)
    assert _versions(storage).is_versioned() is None
    with pytest.raises(Denied):
        storage.get("a")
    assert isinstance(storage, ObjectStorage)
    assert storage._is_versioned is None, "nothing was taken for known"


def test_a_store_that_does_not_know_versions_has_none(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise object_errors.translate_code("NotImplemented", 501, "s3:GetBucketVersioning", "it")

    monkeypatch.setattr(_versions(storage), "_ask", refuse)
    assert _versions(storage).is_versioned() is False


def test_an_object_from_before_versions_were_kept_says_nothing_of_the_bucket(
    storage: Storage,
) -> None:
    assert isinstance(storage, ObjectStorage)
    storage._note_version("null")
    assert storage._is_versioned is None
    assert storage._versions() is not None


def test_a_store_out_of_reach_is_unavailable(
    vault_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_versions, "TRIES", 1)
    place = vault_url.partition("endpoint=")[0] + "endpoint=http://127.0.0.1:9"
    with pytest.raises(Unavailable) as caught:
        _locks(locations.open_storage(place)).require(LockMode.COMPLIANCE)
    assert caught.value.kind == "storage-failed"


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("NoSuchBucket", 404, "repository-missing"),
        ("NoSuchKey", 404, "object-missing"),
        ("AccessDenied", 403, "repository-denied"),
        ("SlowDown", 503, "storage-failed"),
    ],
)
def test_each_refusal_has_its_kind(code: str, status: int, kind: str) -> None:
    error = object_errors.translate_code(code, status, "s3:PutObjectRetention", "a")
    assert error.kind == kind


# A whole repository.


def test_a_repository_behind_delete_markers_gives_everything_back(
    vault_url: str, attacker: Attacker
) -> None:
    clock = ManualClock(datetime.now(UTC))
    made = Kit(
        locations.open_storage(vault_url),
        clock=clock,
        immutable_days=1,
        lock_mode=LockMode.COMPLIANCE,
    )
    kit.back_up(made.create(), "one", DATA)
    for name in attacker.names():
        attacker.hide(name)
    assert attacker.names() == []

    again = Kit(locations.open_storage(vault_url), clock=clock).open()
    assert [one.backup_id for one in again.list_backups()] == ["one"]
    assert kit.restore(again, "one") == DATA
    assert check(again, read_data=True).clean
    kit.back_up(again, "two", DATA[CHUNK:])
    done = run.run(again, gc_kit.NOW)
    assert (done.is_done, done.pack_count) == (True, 0)
    assert kit.restore(again, "two") == DATA[CHUNK:]


def test_a_repository_that_was_overwritten_gives_everything_back(
    vault_url: str, attacker: Attacker
) -> None:
    kit.back_up(Kit(locations.open_storage(vault_url)).create(), "one", DATA)
    for name in attacker.names():
        attacker.overwrite(name)
    storage = locations.open_storage(vault_url)
    assert len(list(storage.list_objects())) == len(attacker.names())
    again = Kit(storage).open()
    assert kit.restore(again, "one") == DATA
    assert check(again, read_data=True).clean
