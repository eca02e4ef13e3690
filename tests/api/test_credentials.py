"""Credentials of sources: kept sealed, opened by their key alone, and never told to anybody."""

import logging
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import String, cast, select

from sendense.connectors import registry
from sendense.core.errors import Corrupt
from sendense.db.tables import SourceRow
from sendense.hub.keyfile import FILE_NAME
from sendense.hub.sources import service
from tests.api.kit import Lab, check_problem

CANARY = "canary-Zq7!secret"
USER = "sendense@vsphere.local"
GIVEN = {"username": USER, "password": CANARY}


@pytest.fixture(autouse=True)
def _accept_vcenters(lab: Lab) -> None:
    """Nothing here contacts a platform, so any configuration will do."""
    lab.replace_hub(check_source=lambda *_given: None)


@pytest.fixture
def vcenter(lab: Lab) -> str:
    """The id of a registered source that is logged in to."""
    return register(lab)


def body(name: str = "vc1", host: str = "vc1.example", **more: Any) -> dict[str, Any]:
    return {"name": name, "type": "vsphere", "config": {"host": host}, **more}


def register(lab: Lab, name: str = "vc1", host: str = "vc1.example") -> str:
    answer = lab.api.post("/sources", json=body(name, host, credentials=GIVEN))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def row_of(lab: Lab, source_id: str) -> SourceRow:
    with lab.hub.catalog.read() as session:
        return session.get_one(SourceRow, source_id)


def opened(lab: Lab, source_id: str) -> dict[str, str] | None:
    return service.open_credentials(lab.hub, row_of(lab, source_id))


def key_file(lab: Lab) -> Path:
    return lab.data_dir / FILE_NAME


def test_credentials_are_sealed_and_opened_again(lab: Lab, vcenter: str) -> None:
    shown = lab.api.get(f"/sources/{vcenter}").json()
    assert shown["has_credentials"] is True
    assert shown["username"] == USER
    assert opened(lab, vcenter) == GIVEN
    with lab.hub.catalog.read() as session:
        kept = session.scalar(select(cast(SourceRow.credentials, String(5000))))
    assert USER in str(kept)
    assert CANARY not in str(kept)


def test_a_source_without_credentials_says_so(lab: Lab) -> None:
    source_id = lab.add_source({"name": "a", "disks": [str(lab.image("a.raw"))]})
    shown = lab.api.get(f"/sources/{source_id}").json()
    assert (shown["has_credentials"], shown["username"]) == (False, None)
    assert opened(lab, source_id) is None
    assert not key_file(lab).exists(), "a key is made when it is needed"


def test_other_credentials_replace_those_before(lab: Lab, vcenter: str) -> None:
    other = {"username": "other", "password": f"{CANARY}-2"}
    changed = lab.api.patch(f"/sources/{vcenter}", json={"credentials": other})
    assert changed.json()["username"] == "other"
    assert opened(lab, vcenter) == other
    lab.api.patch(f"/sources/{vcenter}", json={"name": "renamed"})
    assert opened(lab, vcenter) == other


def test_another_host_wants_the_password_again(lab: Lab, vcenter: str) -> None:
    elsewhere = {"config": {"host": "evil.example"}}
    refused = check_problem(
        lab.api.patch(f"/sources/{vcenter}", json=elsewhere), 422, "credentials-needed"
    )
    assert refused["errors"][0]["field"] == "credentials"
    assert row_of(lab, vcenter).config == {"host": "vc1.example"}
    same_host = {"config": {"host": "vc1.example", "disks_per_host": 2}}
    assert lab.api.patch(f"/sources/{vcenter}", json=same_host).status_code == 200
    assert opened(lab, vcenter) == GIVEN
    both = {**elsewhere, "credentials": GIVEN}
    assert lab.api.patch(f"/sources/{vcenter}", json=both).status_code == 200
    assert opened(lab, vcenter) == GIVEN


def test_a_host_changed_in_the_catalog_gets_no_password(lab: Lab, vcenter: str) -> None:
    with lab.hub.catalog.write() as session:
        session.get_one(SourceRow, vcenter).config = {"host": "evil.example"}
    with pytest.raises(Corrupt) as caught:
        opened(lab, vcenter)
    assert caught.value.kind == "credentials-damaged"


def test_credentials_copied_to_another_source_do_not_open(lab: Lab, vcenter: str) -> None:
    second = register(lab, "vc2", "vc1.example:444")
    with lab.hub.catalog.write() as session:
        row = session.get_one(SourceRow, second)
        row.credentials = session.get_one(SourceRow, vcenter).credentials
        row.config = {"host": "vc1.example"}
    with pytest.raises(Corrupt):
        opened(lab, second)


def test_without_the_key_only_logging_in_fails(lab: Lab, vcenter: str) -> None:
    key = key_file(lab).rename(lab.data_dir / "away")
    before = lab.count_rows()
    test = check_problem(lab.api.post(f"/sources/{vcenter}/test"), 409, "credentials-key-missing")
    assert str(key_file(lab)) in test["detail"]
    refused = lab.api.post("/sources", json=body("vc2", "vc2.example", credentials=GIVEN))
    check_problem(refused, 409, "credentials-key-missing")
    assert lab.count_rows() == before
    assert not key_file(lab).exists(), "a new key would hide that the old one is missing"
    assert lab.api.get(f"/sources/{vcenter}").json()["username"] == USER
    assert lab.api.get("/sources").json()["total"] == 1
    image = lab.add_source({"name": "a", "disks": [str(lab.image("a.raw"))]})
    assert lab.api.post(f"/sources/{image}/test").json()["reachable"] is True
    key.rename(key_file(lab))
    assert opened(lab, vcenter) == GIVEN, "a key that was put back works at once"


def test_a_wrong_key_is_told_and_changes_nothing(lab: Lab, vcenter: str) -> None:
    kept = row_of(lab, vcenter).credentials
    key_file(lab).write_text("ab" * 32)
    problem = check_problem(lab.api.post(f"/sources/{vcenter}/test"), 409, "credentials-key-wrong")
    assert problem["source_id"] == vcenter
    assert "set-credentials" in problem["hint"]
    assert row_of(lab, vcenter).credentials == kept


def test_credentials_given_again_mend_a_lost_key(lab: Lab, vcenter: str) -> None:
    key_file(lab).unlink()
    answer = lab.api.patch(f"/sources/{vcenter}", json={"credentials": GIVEN})
    assert answer.status_code == 200, answer.text
    assert opened(lab, vcenter) == GIVEN


def test_a_key_that_others_may_read_is_refused(lab: Lab, vcenter: str) -> None:
    key_file(lab).chmod(0o640)
    answer = lab.api.post(f"/sources/{vcenter}/test")
    check_problem(answer, 403, "credentials-key-exposed")


@pytest.mark.parametrize(
    "credentials",
    [
        {"username": USER},
        {"password": CANARY},
        {"username": "", "password": CANARY},
        {"username": USER, "password": ""},
        {"username": 1, "password": CANARY},
        {"username": USER, "password": CANARY * 1000},
        {"username": USER, "password": {"x": CANARY}},
        {"username": USER, "password": CANARY, "passwort": CANARY},
        CANARY,
        [CANARY],
    ],
)
def test_wrong_credentials_are_refused_and_not_repeated(
    lab: Lab, caplog: pytest.LogCaptureFixture, credentials: Any
) -> None:
    with caplog.at_level(logging.DEBUG):
        for method, path in (("POST", "/sources"), ("POST", "/sources/test")):
            answer = lab.api.request(method, path, json=body(credentials=credentials))
            assert answer.status_code == 422, answer.text
            assert answer.json()["errors"][0]["field"].startswith("credentials")
            assert CANARY not in answer.text
    assert lab.api.get("/sources").json()["total"] == 0
    assert CANARY not in caplog.text


def test_no_answer_no_log_and_no_table_holds_the_password(
    lab: Lab, vcenter: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        discovery = lab.api.post(f"/sources/{vcenter}/discover")
        answers = [
            lab.api.post("/sources", json=body(credentials=GIVEN)),  # the name is taken
            lab.api.post("/sources", json=body("vc2", "vc2.example", credentials=GIVEN)),
            lab.api.patch(f"/sources/{vcenter}", json={"credentials": GIVEN}),
            lab.api.post("/sources/test", json=body(credentials=GIVEN)),
            lab.api.post(f"/sources/{vcenter}/test"),
            discovery,
            lab.api.get(f"/jobs/{discovery.json()['job_id']}"),
            *(
                lab.api.get(path)
                for path in ("/sources", f"/sources/{vcenter}", "/jobs", "/openapi.json", "/docs")
            ),
            lab.api.get(f"{lab.served.url}/metrics"),
        ]
    for answer in answers:
        assert CANARY not in answer.text, answer.request.url
        assert CANARY not in str(answer.headers)
    assert CANARY not in caplog.text
    assert CANARY not in repr(lab.hub)
    for path in lab.data_dir.parent.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path


def test_the_search_for_the_password_would_find_it(lab: Lab) -> None:
    """The control of the test above."""
    leaking = body("leak", "vc1.example", credentials={"username": "x", "password": "y"})
    leaking["config"]["note"] = CANARY
    assert CANARY in lab.api.post("/sources", json=leaking).text
    found = [
        path
        for path in lab.data_dir.parent.rglob("catalog.sqlite*")
        if CANARY.encode() in path.read_bytes()
    ]
    assert found or lab.hub.catalog.engine.dialect.name != "sqlite"


@pytest.mark.parametrize("kind", ["image", "qemu"])
def test_what_is_not_logged_in_to_takes_no_credentials(lab: Lab, kind: str) -> None:
    lab.replace_hub(
        check_source=lambda kind, config, credentials=None: registry.validate_config(
            kind, config, resolve=Path, credentials=credentials
        )
    )
    for path in ("/sources", "/sources/test"):
        wanted = {"name": "x", "type": kind, "config": {}, "credentials": GIVEN}
        problem = check_problem(lab.api.post(path, json=wanted), 422, "source-config-invalid")
        assert problem["errors"][0]["field"] == "credentials"
        assert CANARY not in str(problem)
