"""Trust on first use: what is shown before a password is sent, and who a platform is."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from sendense.connectors.certificate import SeenCertificate
from sendense.connectors.fake.source import FakePlatform
from tests.api.kit import Lab, check_problem

SEEN = SeenCertificate(
    sha256=":".join(["AB"] * 32),
    pem="-----BEGIN CERTIFICATE-----",
    subject="CN=vc1",
    issuer="CN=CA",
    not_before=datetime(2026, 1, 1, tzinfo=UTC),
    not_after=datetime(2028, 1, 1, tzinfo=UTC),
    trusted=False,
    problems=("nobody this machine trusts has signed it",),
)
GIVEN = {"username": "me", "password": "canary-1"}


class NamedPlatform(FakePlatform):
    """A platform with an identity of its own, that remembers who logged in."""

    def __init__(self) -> None:
        super().__init__()
        self.uuid = "uuid-1"
        self.logins: list[Any] = []

    def identify(self) -> str:
        return self.uuid


@pytest.fixture
def platform(lab: Lab) -> NamedPlatform:
    made = NamedPlatform()

    def log_in(_kind: str, _config: Any, credentials: Any = None) -> NamedPlatform:
        made.logins.append(credentials)
        return made

    lab.replace_hub(check_source=lambda *_given: None, open_source=log_in)
    show(lab, SEEN)
    return made


def show(lab: Lab, seen: SeenCertificate | None) -> None:
    lab.replace_hub(see_certificate=lambda _kind, _config: seen)


def trust(lab: Lab) -> None:
    show(lab, replace(SEEN, trusted=True, problems=()))


def body(name: str = "vc1", **more: Any) -> dict[str, Any]:
    config = {"host": f"{name}.example"}
    return {"name": name, "type": "vsphere", "config": config, "credentials": GIVEN, **more}


def register(lab: Lab, name: str = "vc1") -> str:
    answer = lab.api.post("/sources", json=body(name))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def test_a_certificate_is_shown_and_nobody_logs_in_before_it_is_trusted(
    lab: Lab, platform: NamedPlatform
) -> None:
    told = lab.api.post("/sources/test", json=body()).json()
    assert told["certificate"]["sha256"] == SEEN.sha256
    assert told["certificate"]["pem"] == SEEN.pem
    assert told["certificate"]["problems"] == list(SEEN.problems)
    assert told["certificate"]["not_after"].startswith("2028-01-01T00:00:00")
    assert (told["logged_in"], told["certificate"]["trusted"]) == (False, False)
    assert platform.logins == []


def test_without_credentials_a_certificate_alone_is_looked_at(
    lab: Lab, platform: NamedPlatform
) -> None:
    trust(lab)
    told = lab.api.post("/sources/test", json=body(credentials=None)).json()
    assert told["certificate"]["trusted"] is True
    assert told["logged_in"] is False
    assert platform.logins == []


def test_a_trusted_platform_is_logged_in_to(lab: Lab, platform: NamedPlatform) -> None:
    trust(lab)
    told = lab.api.post("/sources/test", json=body()).json()
    assert (told["logged_in"], told["uuid"], told["registered_as"]) == (True, "uuid-1", None)
    assert platform.logins == [GIVEN]


def test_a_registered_source_that_is_not_trusted_says_what_to_do(
    lab: Lab, platform: NamedPlatform
) -> None:
    source_id = register(lab)
    answer = lab.api.post(f"/sources/{source_id}/test")
    problem = check_problem(answer, 403, "certificate-untrusted")
    assert SEEN.sha256 in problem["detail"]
    assert f"sendense source trust vc1 --trust-fingerprint {SEEN.sha256}" in problem["hint"]
    assert platform.logins == []


def test_first_contact_settles_who_a_platform_is(lab: Lab, platform: NamedPlatform) -> None:
    trust(lab)
    source_id = register(lab)
    assert lab.api.get(f"/sources/{source_id}").json()["uuid"] == source_id
    assert lab.api.post(f"/sources/{source_id}/test").json()["registered_as"] is None
    assert lab.api.get(f"/sources/{source_id}").json()["uuid"] == "uuid-1"
    told = lab.api.post("/sources/test", json=body("other")).json()
    assert told["registered_as"] == source_id, "told before it is registered a second time"
    second = register(lab, "vc2")
    again = lab.api.post(f"/sources/{second}/test")
    assert "vc1" in check_problem(again, 409, "source-registered-twice")["hint"]
    platform.uuid = "uuid-2"
    check_problem(lab.api.post(f"/sources/{source_id}/test"), 409, "source-is-another")


def test_a_host_is_registered_once(lab: Lab, platform: NamedPlatform) -> None:
    first, second = register(lab), register(lab, "vc2")
    for host in ("vc1.example", "VC1.example:443"):
        again = lab.api.post("/sources", json=body("again", config={"host": host}))
        problem = check_problem(again, 409, "source-registered-twice")
        assert problem["source_id"] == first
        moved = {"config": {"host": host}, "credentials": GIVEN}
        answer = lab.api.patch(f"/sources/{second}", json=moved)
        check_problem(answer, 409, "source-registered-twice")
    other_port = body("other", config={"host": "vc1.example:8443"})
    assert lab.api.post("/sources", json=other_port).status_code == 201
    assert lab.api.get("/sources").json()["total"] == 3
    assert platform.logins == []


def test_what_is_logged_in_to_needs_credentials(lab: Lab, platform: NamedPlatform) -> None:
    answer = lab.api.post("/sources", json=body(credentials=None))
    problem = check_problem(answer, 422, "credentials-needed")
    assert problem["errors"][0]["field"] == "credentials"
    assert platform.logins == []


def test_the_development_reader_is_labelled(lab: Lab, platform: NamedPlatform) -> None:
    trust(lab)
    config = {"host": "vc1.example", "reader": "file", "file_dir": "/x"}
    made = lab.api.post("/sources", json=body(config=config)).json()
    assert "development only" in made["warnings"][0]
    assert lab.api.get("/sources").json()["sources"][0]["warnings"] == made["warnings"]
    assert lab.api.post(f"/sources/{made['id']}/test").json()["warnings"] == made["warnings"]
    other = lab.api.post("/sources", json=body("vc2")).json()
    assert other["warnings"] == []
    assert platform.logins == [GIVEN]
