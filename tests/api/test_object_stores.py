"""Repositories in an object store, by the API; the store is a real S3 server."""

from typing import Any

import pytest

from sendense.core.errors import NotFound
from sendense.repository.storage import probe
from sendense.repository.storage.probe import Abilities
from tests.api.kit import Lab, check_problem
from tests.s3.fixtures import open_impatient
from tests.s3.server import Server

PHRASE = "correct horse battery"


@pytest.fixture(autouse=True)
def short_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "ROUNDS", 3)  # the whole trial: tests/system/test_object_store.py


def body(url: str, name: str = "offsite", **config: Any) -> dict[str, Any]:
    return {"name": name, "type": "s3", "config": {"url": url, **config}}


def break_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every store fail its trial."""
    failed = Abilities(5, 16, ("of 16 writers of one name 2 succeeded, not one",), 0.1)
    monkeypatch.setattr(probe, "probe", lambda *_: failed)


def test_a_repository_is_made_after_a_trial_that_is_shown(lab: Lab, s3_url: str) -> None:
    tried = lab.api.post("/repositories/test", json=body(s3_url))
    assert tried.status_code == 200, tried.text
    assert tried.json()["exists"] is False
    assert "3 times 16 writers at once made 0 failures" in tried.json()["detail"]
    answer = lab.api.post("/repositories", json=body(s3_url, passphrase=PHRASE))
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert made["id"].startswith("repo-s3-")
    assert made["type"] == "s3"
    assert made["config"]["url"] == s3_url
    trial = made["config"]["trial"]
    assert (trial["fit"], trial["rounds"], trial["writers"]) == (True, 3, 16)
    assert (made["capacity_bytes"], made["free_bytes"], made["warnings"]) == (None, None, [])
    assert lab.api.get(f"/repositories/{made['id']}").json()["config"] == made["config"]
    assert lab.api.post(f"/repositories/{made['id']}/test").json()["usable"] is True
    assert lab.api.get(f"/repositories/{made['id']}/storage").json()["capacity_bytes"] is None
    top = open_impatient(s3_url).list_top()
    assert "sendense.json" in top
    assert "probe" not in top
    check_problem(
        lab.api.post("/repositories", json=body(s3_url, "again")), 409, "repository-registered"
    )
    again = lab.api.post("/repositories/test", json=body(s3_url)).json()
    assert (again["exists"], again["detail"]) == (True, f"repository {made['uuid']}")


def test_a_store_that_fails_its_trial_is_refused_unless_it_is_accepted(
    lab: Lab, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_trial(monkeypatch)
    for place in ("/repositories", "/repositories/test"):
        document = check_problem(lab.api.post(place, json=body(s3_url)), 409, "storage-unfit")
        assert "2 succeeded, not one" in document["detail"]
    assert open_impatient(s3_url).list_top() == []
    made = lab.api.post("/repositories", json=body(s3_url, accept_unfit=True)).json()
    assert made["config"]["trial"]["fit"] is False
    assert made["warnings"] == ["of 16 writers of one name 2 succeeded, not one"]


def test_a_place_where_something_else_lies_is_refused_and_left_alone(lab: Lab, s3_url: str) -> None:
    storage = open_impatient(s3_url)
    storage.put_if_absent("holiday.jpg", b"x")
    for place in ("/repositories", "/repositories/test"):
        check_problem(lab.api.post(place, json=body(s3_url)), 409, "repository-folder-not-empty")
    assert storage.list_top() == ["holiday.jpg"]


@pytest.mark.parametrize("inside", ["new", "packs/deep"])
def test_a_repository_is_not_made_inside_another(lab: Lab, s3_url: str, inside: str) -> None:
    assert lab.api.post("/repositories", json=body(s3_url)).status_code == 201
    prefix, _, options = s3_url.partition("?")
    before = list(open_impatient(s3_url).list_objects())
    for place in ("/repositories", "/repositories/test"):
        wanted = body(f"{prefix}/{inside}?{options}", "inner")
        document = check_problem(
            lab.api.post(place, json=wanted), 409, "repository-folder-not-empty"
        )
        assert "lies inside the repository" in document["detail"]
    assert list(open_impatient(s3_url).list_objects()) == before


def test_a_registration_that_fails_leaves_nothing(
    lab: Lab, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sendense.hub.repositories import registration

    def fail(*_: object) -> None:
        raise NotFound("gone meanwhile")

    monkeypatch.setattr(registration, "create", fail)
    assert lab.api.post("/repositories", json=body(s3_url)).status_code == 404
    assert open_impatient(s3_url).list_top() == []


def test_a_store_whose_repository_is_gone_is_told(lab: Lab, s3_url: str) -> None:
    made = lab.api.post("/repositories", json=body(s3_url)).json()
    storage = open_impatient(s3_url)
    for found in list(storage.list_objects()):
        storage.delete(found.name)
    document = check_problem(
        lab.api.post(f"/repositories/{made['id']}/test"), 503, "repository-missing"
    )
    assert document["path"] == s3_url


@pytest.mark.parametrize(
    ("kind", "url", "status", "problem"),
    [
        ("s3", "gs://backups/x", 422, "repository-location-invalid"),
        ("azure", "s3://backups/x", 422, "repository-location-invalid"),
        ("s3", "s3://key:secret@backups/x", 422, "repository-location-invalid"),
        ("s3", "/srv/backups", 422, "repository-location-invalid"),
        ("azure", "az://backups/x", 403, "repository-denied"),
        ("s3", "", 422, "fields-invalid"),
    ],
)
def test_a_url_that_names_no_place_is_refused(
    lab: Lab, kind: str, url: str, status: int, problem: str
) -> None:
    before = lab.count_rows()
    wanted = {**body(url), "type": kind}
    document = check_problem(lab.api.post("/repositories", json=wanted), status, problem)
    assert "secret@" not in str(document)
    assert lab.count_rows() == before


def test_a_missing_bucket_is_told(lab: Lab, s3: Server) -> None:
    url = f"s3://nobody-made-it/x?endpoint={s3.endpoint}"
    document = check_problem(
        lab.api.post("/repositories", json=body(url)), 404, "repository-missing"
    )
    assert "create it" in document["hint"]
