"""What goes wrong with a vCenter, as people meet it: in the API, in jobs and on the command line.

Each trouble has a kind of its own, says what it is, and tells what to do about it.
"""

import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from demo.hub import Hub
from demo.vcenter.lab import Vcenter
from demo.vcenter.standin import make_certificate
from sendense.core.units import MIB
from tests.system.vsphere_kit import ABSENT, Client, Nbdkit, describe_vddk
from tests.vcsim.fixtures import require_simulator
from tests.vddk import double

pytestmark = pytest.mark.timeout(300)

PROBLEM = "urn:sendense:problem:"
MANY = 50  # a call that fails may be tried again; it fails for as long as the test lasts
DENIED, UNAVAILABLE = 5, 6  # exit statuses; see docs/cli.md


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sendense-test-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def vcenter(place: Path) -> Iterator[Vcenter]:
    require_simulator()
    with Vcenter(place / "disks") as lab:
        lab.add_vm("web", MIB)
        yield lab


@pytest.fixture(scope="module")
def nbdkit(place: Path) -> Nbdkit:
    return Nbdkit(place / "bin")


@pytest.fixture(scope="module")
def hub(place: Path, nbdkit: Nbdkit) -> Iterator[Hub]:
    with Hub(place / "hub", place, environment=nbdkit.environment) as hub:
        hub.wait_until_ready()
        config = {"path": str(place / "repository")}
        hub.post("/repositories", {"name": "main", "type": "local", "config": config})
        yield hub


@dataclass(frozen=True)
class Rig:
    """A vCenter, who asks for it, and what they say about it."""

    client: Client
    vcenter: Vcenter
    nbdkit: Nbdkit
    place: Path
    config: dict[str, Any]
    credentials: dict[str, str]

    def register(self) -> tuple[str, str]:
        """Make it a source; return id and name."""
        return self.client.register(self.config, self.credentials)

    def probe_by_cli(self) -> tuple[int, str]:
        """Test a configuration by the command line; return its exit status and its words."""
        options = ["--host", self.config["host"], "--reader", self.config["reader"]]
        for name in ("vddk_libdir", "file_dir"):
            if name in self.config:
                options += [f"--{name.replace('_', '-')}", self.config[name]]
        if pem := self.config.get("certificate_pem"):
            file = self.place / "pinned.pem"
            file.write_text(pem)
            options += ["--certificate", str(file)]
        options += ["--username", self.credentials["username"], "--password-stdin"]
        result = self.client.run(
            "source", "test", "--type", "vsphere", *options, typed=self.credentials["password"]
        )
        return result.code, _flat(result.err)


@pytest.fixture
def rig(hub: Hub, vcenter: Vcenter, nbdkit: Nbdkit, place: Path) -> Iterator[Rig]:
    yield Rig(Client(hub), vcenter, nbdkit, place, vcenter.describe(), vcenter.credentials)
    vcenter.clear_trouble()


def _flat(text: str) -> str:
    return " ".join(text.split())


def _with(rig: Rig, **config: object) -> Rig:
    return replace(rig, config={**rig.config, **config})


def wrong_password(rig: Rig) -> Rig:
    return replace(rig, credentials={**rig.credentials, "password": "not the one"})


def closed_port(rig: Rig) -> Rig:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return _with(rig, host=f"127.0.0.1:{port}")


def unknown_name(rig: Rig) -> Rig:
    return _with(rig, host="vcenter.does-not-exist.invalid")


def no_tls(rig: Rig) -> Rig:
    return _with(rig, host=f"127.0.0.1:{rig.client.hub.port}")


def licence_at_login(rig: Rig) -> Rig:
    rig.vcenter.inject("Login", "RestrictedVersion", times=MANY)
    return rig


def privilege_at_login(rig: Rig) -> Rig:
    rig.vcenter.inject("Login", "NoPermission", times=MANY, privilegeId="System.View")
    return rig


def no_plugin(rig: Rig) -> Rig:
    rig.nbdkit.choose(ABSENT)
    return replace(rig, config=describe_vddk(rig.vcenter, rig.place))


def no_library(rig: Rig) -> Rig:
    try:
        rig.nbdkit.choose(double.find_plugin())
    except double.Missing as reason:
        pytest.skip(str(reason))
    folder = rig.place / "no-vddk-here"
    folder.mkdir(exist_ok=True)
    return replace(rig, config=describe_vddk(rig.vcenter, folder))


@dataclass(frozen=True)
class Case:
    """What is wrong, and how people are told: a kind, words, and what to do about it."""

    spoil: Callable[[Rig], Rig]
    kind: str
    says: str
    hint: str
    status: int
    code: int


REACH = [
    Case(
        wrong_password,
        "vsphere-login-denied",
        "the user name or password was not accepted",
        "sendense source set-credentials",
        HTTPStatus.FORBIDDEN,
        DENIED,
    ),
    Case(
        closed_port,
        "vsphere-unreachable",
        "Connection refused",
        "firewalls",
        HTTPStatus.SERVICE_UNAVAILABLE,
        UNAVAILABLE,
    ),
    Case(
        unknown_name,
        "vsphere-unreachable",
        "name is not known",
        "look at the host's name",
        HTTPStatus.SERVICE_UNAVAILABLE,
        UNAVAILABLE,
    ),
    Case(
        no_tls,
        "vsphere-tls-failed",
        "does not answer with TLS",
        "443 by default",
        HTTPStatus.SERVICE_UNAVAILABLE,
        UNAVAILABLE,
    ),
    Case(
        licence_at_login,
        "vsphere-licence-read-only",
        "licence does not allow",
        "free ESXi has no API for backups",
        HTTPStatus.FORBIDDEN,
        DENIED,
    ),
    Case(
        privilege_at_login,
        "vsphere-privilege-missing",
        "lacks System.View",
        "docs/operations/vsphere.md",
        HTTPStatus.FORBIDDEN,
        DENIED,
    ),
]
READERS = [
    Case(
        no_plugin,
        "vddk-plugin-missing",
        "vddk plugin is not installed",
        "sendense doctor",
        HTTPStatus.SERVICE_UNAVAILABLE,
        UNAVAILABLE,
    ),
    Case(
        no_library,
        "vddk-library-missing",
        "there is no VDDK library in",
        "unpack VMware's VDDK",
        HTTPStatus.SERVICE_UNAVAILABLE,
        UNAVAILABLE,
    ),
]


def _name(case: Case) -> str:
    return case.spoil.__name__


@pytest.mark.parametrize("case", [*REACH, *READERS], ids=_name)
def test_who_tests_a_source_is_told_what_is_wrong(rig: Rig, case: Case) -> None:
    spoilt = case.spoil(rig)
    answer = spoilt.client.probe(spoilt.config, spoilt.credentials)
    assert answer.status_code == case.status, answer.text
    problem = answer.json()
    assert problem["type"] == PROBLEM + case.kind
    assert case.says in problem["detail"]
    assert case.hint in problem["hint"]
    code, said = spoilt.probe_by_cli()
    assert code == case.code
    assert case.says in said
    assert case.hint in said


@pytest.mark.parametrize("case", REACH, ids=_name)
def test_a_discovery_says_what_is_wrong(rig: Rig, case: Case) -> None:
    spoilt = case.spoil(rig)
    source_id, name = spoilt.register()
    job = spoilt.client.discover(source_id)
    assert job["status"] == "failed"
    assert job["error"]["kind"] == case.kind
    assert job["error"]["hint"]
    result = spoilt.client.run("source", "discover", name)
    assert result.code == 1, "the job failed"
    assert job["error"]["message"] in _flat(result.err)
    assert job["error"]["hint"] in _flat(result.err)


def unpinned(rig: Rig) -> Rig:
    config = {key: value for key, value in rig.config.items() if key != "certificate_pem"}
    return replace(rig, config=config)


def another_pinned(rig: Rig) -> Rig:
    return _with(rig, certificate_pem=make_certificate()[0])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [(unpinned, "signed by itself"), (another_pinned, "another one than the one that is pinned")],
)
def test_a_certificate_that_is_not_trusted_is_shown_and_no_password_sent(
    rig: Rig, spoil: Callable[[Rig], Rig], says: str
) -> None:
    spoilt = spoil(rig)
    logins = rig.vcenter.calls["Login"]
    shown = spoilt.client.probe(spoilt.config, spoilt.credentials).json()
    assert shown["certificate"]["trusted"] is False
    assert says in "; ".join(shown["certificate"]["problems"])
    assert shown["logged_in"] is False
    code, said = spoilt.probe_by_cli()
    assert code == DENIED
    assert "nobody was logged in" in said
    assert says in said
    source_id, name = spoilt.register()
    answer = spoilt.client.ask("POST", f"/sources/{source_id}/test")
    assert answer.status_code == HTTPStatus.FORBIDDEN
    assert says in answer.json()["detail"]
    assert "sendense source trust" in answer.json()["hint"]
    job = spoilt.client.discover(source_id)
    assert job["error"]["kind"] == "vsphere-certificate"
    assert says in job["error"]["message"]
    assert shown["certificate"]["sha256"] in job["error"]["message"]
    assert "sendense source trust" in job["error"]["hint"]
    result = spoilt.client.run("source", "discover", name)
    assert (result.code, says in _flat(result.err)) == (1, True)
    assert rig.vcenter.calls["Login"] == logins


def missing_privilege(rig: Rig) -> Rig:
    rig.vcenter.inject(
        "CreateSnapshot_Task",
        "NoPermission",
        times=MANY,
        object=("VirtualMachine", rig.vcenter.moref("web")),
        privilegeId="VirtualMachine.State.CreateSnapshot",
    )
    return rig


def read_only_licence(rig: Rig) -> Rig:
    rig.vcenter.inject("CreateSnapshot_Task", "RestrictedVersion", times=MANY)
    return rig


BACKUPS = [
    Case(
        missing_privilege,
        "vsphere-privilege-missing",
        "lacks VirtualMachine.State.CreateSnapshot",
        "docs/operations/vsphere.md",
        HTTPStatus.FORBIDDEN,
        DENIED,
    ),
    Case(
        read_only_licence,
        "vsphere-licence-read-only",
        "licence does not allow",
        "free ESXi has no API for backups",
        HTTPStatus.FORBIDDEN,
        DENIED,
    ),
    READERS[0],  # the other takes the same minute of attempts
]


@pytest.mark.parametrize("case", BACKUPS, ids=_name)
def test_a_backup_says_what_is_wrong_and_leaves_no_snapshot(rig: Rig, case: Case) -> None:
    client = rig.client
    spoilt = case.spoil(rig)
    source_id, _ = spoilt.register()
    rig.vcenter.add_vm(vm := f"web-{_name(case)}", MIB)
    try:
        assert client.discover(source_id)["status"] == "completed"
        result = client.run("backup", "start", vm, "--repository", "main")
        assert result.code == 1, "the job failed"
        assert case.says in _flat(result.err)
        assert case.hint in _flat(result.err)
        (job,) = client.ask("GET", "/jobs?kind=backup&limit=1").json()["jobs"]
        job = client.ask("GET", f"/jobs/{job['job_id']}").json()
        assert job["status"] == "failed"
        assert job["error"]["kind"] == case.kind
        assert case.says in job["error"]["message"]
        assert rig.vcenter.list_snapshots(vm) == []
    finally:
        rig.vcenter.destroy(vm)


def test_every_trouble_has_words_of_its_own() -> None:
    cases = [*REACH, *READERS, *BACKUPS[:2]]
    twice = 1  # the licence, at the login and at the snapshot
    assert len({(case.kind, case.says) for case in cases}) == len(cases) - twice
