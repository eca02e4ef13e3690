"""Keys of repositories: made, told once, kept sealed, given again."""

from pathlib import Path
from typing import Any

import pytest

from sendense.core.errors import Invalid
from sendense.hub.keyfile import FILE_NAME
from sendense.hub.repositories import queries, root_keys
from sendense.repository import recipients, recovery
from sendense.repository.storage.local import LocalStorage
from tests.api.kit import Lab, check_problem

PHRASE = "four words you keep"
OTHER_KEY = recovery.to_text(bytes(range(32)))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Derive keys in milliseconds."""
    monkeypatch.setattr(recipients, "ITERATIONS", 1)
    monkeypatch.setattr(recipients, "MEMORY_KIB", 64)


def body(lab: Lab, name: str = "main", **config: Any) -> dict[str, Any]:
    path = lab.data_dir / "backups" / name
    return {"name": name, "type": "local", "config": {"path": str(path), **config}}


def forget(lab: Lab, repository_id: str) -> None:
    assert lab.api.delete(f"/repositories/{repository_id}").status_code == 204


def lose_key(lab: Lab, repository_id: str) -> None:
    """Put another key where the hub's own was."""
    (lab.data_dir / FILE_NAME).write_text("ab" * 32)
    answer = lab.api.post(f"/repositories/{repository_id}/test")
    check_problem(answer, 409, "credentials-key-wrong")


def test_the_recovery_key_is_told_once_and_opens_the_repository(lab: Lab) -> None:
    made = lab.api.post("/repositories", json=body(lab))
    assert made.status_code == 201
    key = made.json()["recovery_key"]
    with lab.hub.catalog.read() as session:
        row = queries.get_repository(session, made.json()["id"])
        assert root_keys.find(lab.hub, row) == recovery.parse(key)
    for path in ("", f"/{made.json()['id']}", f"/{made.json()['id']}/keys"):
        answer = lab.api.get(f"/repositories{path}")
        assert answer.status_code == 200
        assert key not in answer.text
    forget(lab, made.json()["id"])
    again = lab.api.post("/repositories", json=body(lab, recovery_key=key))
    assert again.status_code == 201
    assert again.json()["recovery_key"] is None


def test_no_key_lies_in_the_catalog_or_the_repository(lab: Lab) -> None:
    made = lab.api.post("/repositories", json=body(lab, passphrase=PHRASE)).json()
    root = recovery.parse(made["recovery_key"])
    secrets = [root, root.hex().encode(), PHRASE.encode(), made["recovery_key"].encode()]
    files = [path for path in lab.data_dir.rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        assert not [secret for secret in secrets if secret in content], path


def test_without_encryption_there_is_a_warning_and_no_key(lab: Lab) -> None:
    made = lab.api.post("/repositories", json=body(lab, encryption=False))
    assert made.status_code == 201
    assert made.json()["encrypted"] is False
    assert made.json()["recovery_key"] is None
    assert "not encrypted" in made.json()["warnings"][0]
    refused = lab.api.post(f"/repositories/{made.json()['id']}/keys", json={"passphrase": PHRASE})
    check_problem(refused, 422, "repository-not-encrypted")


def test_an_encrypted_repository_is_not_adopted_without_its_key(lab: Lab) -> None:
    made = lab.api.post("/repositories", json=body(lab, passphrase=PHRASE)).json()
    forget(lab, made["id"])
    before = lab.count_rows()
    for given, status, kind in (
        ({}, 403, "repository-locked"),
        ({"recovery_key": OTHER_KEY}, 403, "repository-key-wrong"),
        ({"recovery_key": "SENDENSE-1-ABCD"}, 422, "recovery-key-invalid"),
        ({"passphrase": PHRASE + "?"}, 403, "passphrase-wrong"),
    ):
        check_problem(lab.api.post("/repositories", json=body(lab, **given)), status, kind)
    assert lab.count_rows() == before
    assert lab.api.post("/repositories", json=body(lab, passphrase=PHRASE)).status_code == 201


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"passphrase": "short"}, "passphrase-invalid"),
        ({"passphrase": PHRASE, "encryption": False}, "passphrase-invalid"),
        ({"recovery_key": OTHER_KEY}, "not-a-repository"),
    ],
)
def test_what_cannot_be_meant_makes_nothing(lab: Lab, config: dict[str, Any], kind: str) -> None:
    answer = lab.api.post("/repositories", json=body(lab, "new", **config))
    check_problem(answer, 404 if kind == "not-a-repository" else 422, kind)
    assert not (lab.data_dir / "backups" / "new").exists()


def test_a_repository_that_could_not_be_registered_is_not_left_locked_for_ever(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody was told its key."""
    (lab.data_dir / FILE_NAME).mkdir()
    answer = lab.api.post("/repositories", json=body(lab, "new", passphrase=PHRASE))
    assert answer.status_code >= 400
    assert list((lab.data_dir / "backups" / "new").rglob("*.json")) == []
    (lab.data_dir / FILE_NAME).rmdir()
    assert lab.api.post("/repositories", json=body(lab, "new")).status_code == 201

    def fail(*_: object, **__: object) -> None:
        raise Invalid("no", kind="passphrase-invalid")

    monkeypatch.setattr(recipients, "add_passphrase", fail)
    answer = lab.api.post("/repositories", json=body(lab, "other", passphrase=PHRASE))
    check_problem(answer, 422, "passphrase-invalid")
    assert not (lab.data_dir / "backups" / "other").exists()


@pytest.mark.parametrize("by", ["recovery_key", "passphrase"])
def test_a_hub_that_lost_its_key_is_given_the_repository_s_again(lab: Lab, by: str) -> None:
    made = lab.api.post("/repositories", json=body(lab, passphrase=PHRASE)).json()
    path = f"/repositories/{made['id']}"
    lose_key(lab, made["id"])
    for given, status, kind in (
        ({}, 422, "fields-invalid"),
        ({"passphrase": PHRASE, "recovery_key": OTHER_KEY}, 422, "fields-invalid"),
        ({"recovery_key": OTHER_KEY}, 403, "repository-key-wrong"),
        ({"passphrase": "not the one it has"}, 403, "passphrase-wrong"),
    ):
        check_problem(lab.api.post(f"{path}/unlock", json=given), status, kind)
    given = {by: {"recovery_key": made["recovery_key"], "passphrase": PHRASE}[by]}
    assert lab.api.post(f"{path}/unlock", json=given).status_code == 204
    assert lab.api.post(f"{path}/test").status_code == 200


def test_a_sealed_key_that_was_changed_is_told(lab: Lab) -> None:
    first, second = lab.add_repository("first"), lab.add_repository("second")
    with lab.hub.catalog.write() as session:
        one, two = (queries.get_repository(session, name) for name in (first, second))
        one.sealed_key = two.sealed_key
    check_problem(lab.api.post(f"/repositories/{first}/test"), 500, "credentials-damaged")


def test_passphrases_are_added_listed_and_removed(lab: Lab) -> None:
    repository_id = lab.add_repository()
    path = f"/repositories/{repository_id}/keys"
    added = lab.api.post(path, json={"passphrase": PHRASE, "label": "head office"})
    assert added.status_code == 201
    assert added.headers["location"].endswith(added.json()["recipient_id"])
    listed = lab.api.get(path).json()
    assert (listed["total"], listed["damaged"]) == (1, [])
    assert listed["recipients"][0]["label"] == "head office"
    storage = LocalStorage(Path(lab.data_dir / "backups" / "main"))
    assert recipients.open_by_passphrase(storage, PHRASE) == recovery.parse(
        lab.recovery_keys[repository_id]
    )
    storage.put_if_absent("keys/junk", b"junk")
    assert lab.api.get(path).json()["damaged"] == ["keys/junk"]
    check_problem(lab.api.post(path, json={"passphrase": "short"}), 422, "passphrase-invalid")
    check_problem(lab.api.delete(f"{path}/nobody"), 404, "recipient-unknown")
    assert lab.api.delete(added.headers["location"].removeprefix("/api/v1")).status_code == 204
    assert lab.api.get(path).json()["total"] == 0
    storage.close()


def test_a_repository_whose_encryption_was_taken_away_is_not_written_to(lab: Lab) -> None:
    """Somebody who can write to the share swaps in a descriptor of their own."""
    repository_id = lab.add_repository()
    descriptor = lab.data_dir / "backups" / "main" / "sendense.json"
    text = descriptor.read_text()
    start, end = text.index('"domain":"'), text.index('","features"')
    forged = text[:start] + '"domain":null' + text[end + 1 :].replace('"encryption"', "")
    descriptor.chmod(0o600)
    descriptor.write_text(forged)
    check_problem(lab.api.post(f"/repositories/{repository_id}/test"), 500, "repository-mistaken")
