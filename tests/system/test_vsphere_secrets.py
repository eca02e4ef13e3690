"""The password of a vCenter is nowhere: not in processes, logs, answers, files or bundles.

It is looked for in every spelling that programs use, and the search must find a planted one.
"""

import base64
import json
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self
from urllib.parse import quote, quote_plus
from xml.sax import saxutils

import psutil
import pytest

from demo.hub import Hub
from demo.vcenter.lab import Vcenter
from sendense.connectors.vsphere import config as vsphere_config
from sendense.connectors.vsphere import session as sessions
from sendense.core.units import MIB
from tests.system.vsphere_kit import ABSENT, Client, Nbdkit, describe_vddk
from tests.vcsim.fixtures import require_simulator
from tests.vddk import double

pytestmark = pytest.mark.timeout(300)

CANARY = "canary-7f3e<&'\"%$ ü-9b1c"
PAUSE_SECONDS = 0.02
CHILD_SECONDS_MAX = 10.0  # for a shell to be seen, on a busy machine
PATHS = ("/sources", "/vms", "/jobs", "/backups", "/repositories", "/workers", "/health")


def list_spellings(secret: str) -> set[bytes]:
    """Return what a secret may look like."""
    quoted = {"'": "&apos;", '"': "&quot;"}
    texts = {
        secret,
        saxutils.escape(secret),
        saxutils.escape(secret, quoted),
        saxutils.escape(secret, {"'": "&#39;", '"': "&#34;"}),
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        repr(secret)[1:-1],
        secret.split("<", maxsplit=1)[0],  # one half alone, where something cut the other off
        secret.rpartition("ü")[2],
    }
    found = {text.encode() for text in texts} | {secret.encode("utf-16-le")}
    raw = secret.encode()
    # In base64 a text looks different at each of three places in a longer one.
    for shift in range(3):
        coded = base64.b64encode(b"\0" * shift + raw)
        found.add(coded[-(-shift * 4 // 3) : len(coded) - 4])
    return found


def find(data: bytes) -> set[bytes]:
    """Return the spellings of the canary that some bytes hold."""
    return {one for one in list_spellings(CANARY) if one in data}


def search(folder: Path) -> dict[str, set[bytes]]:
    """Return the files below a folder that hold the canary, or whose names do."""
    found = {}
    for path in sorted(folder.rglob("*")):
        data = str(path).encode(errors="surrogateescape")
        if path.is_file() and not path.is_symlink():
            data += b"\n" + path.read_bytes()
        if seen := find(data):
            found[str(path.relative_to(folder))] = seen
    return found


class Watch:
    """Takes down the command lines and environments of a process and its children, all the time."""

    def __init__(self, process_id: int) -> None:
        self._root = psutil.Process(process_id)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.seen: dict[tuple[int, str], bytes] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def text(self) -> bytes:
        """All that was seen."""
        return b"\n".join(self.seen.values())

    def _run(self) -> None:
        while not self._done.wait(PAUSE_SECONDS):
            for one in [self._root, *self._root.children(recursive=True)]:
                for name in ("cmdline", "environ"):
                    try:
                        data = Path(f"/proc/{one.pid}/{name}").read_bytes()
                    except OSError:
                        continue
                    self.seen[one.pid, f"{name} {hash(data)}"] = data


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sendense-test-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def vcenter(place: Path) -> Iterator[Vcenter]:
    require_simulator()
    with Vcenter(place / "disks", password=CANARY) as lab:
        yield lab


@pytest.fixture(scope="module")
def nbdkit(place: Path) -> Nbdkit:
    return Nbdkit(place / "bin")


@pytest.fixture(scope="module")
def client(place: Path, nbdkit: Nbdkit) -> Iterator[Client]:
    environment = {**nbdkit.environment, "SENDENSE_LOG_LEVEL": "debug"}
    with Hub(place / "hub", place, environment=environment) as hub:
        hub.wait_until_ready()
        for name in ("file", "vddk"):
            config = {"path": str(place / "hub" / f"repository-{name}")}
            hub.post("/repositories", {"name": name, "type": "local", "config": config})
        yield Client(hub)


def back_up(client: Client, source_id: str, vm: str, repository: str) -> dict[str, object]:
    assert client.discover(source_id)["status"] == "completed"
    repositories = client.ask("GET", "/repositories").json()["repositories"]
    (found,) = [one["id"] for one in repositories if one["name"] == repository]
    body = {"vm_name": vm, "repository_id": found}
    return client.hub.wait_for_end(client.ask("POST", "/backups", body).json()["job_id"])


def set_up_double(vcenter: Vcenter, vm: str, libdir: Path) -> double.Vddk:
    """Return a VDDK that takes the canary, and opens whatever snapshot is next."""
    double.build(libdir)
    vddk = double.Vddk(libdir)
    settings = vsphere_config.parse(describe_vddk(vcenter, libdir), vcenter.credentials, Path)
    vddk.set(
        user=vcenter.username,
        password=CANARY,
        thumbprint=sessions.find_thumbprint(settings),
    )
    vcenter.add_vm(vm, MIB)
    return vddk


def test_a_planted_secret_is_found(tmp_path: Path) -> None:
    for number, spelling in enumerate(sorted(list_spellings(CANARY))):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "some.log").write_bytes(b"before " + spelling + b" behind")
        assert list(search(folder)) == ["some.log"], spelling
    (tmp_path / "coded.bin").write_bytes(base64.b64encode(f"user:{CANARY}:more".encode()))
    assert "coded.bin" in search(tmp_path)


@pytest.mark.parametrize("place_of_it", ["cmdline", "environ"])
def test_a_planted_argument_or_variable_is_found(place_of_it: str) -> None:
    is_argument = place_of_it == "cmdline"
    command = ["sh", "-c", "read -r word", *([CANARY] if is_argument else [])]
    environment = {} if is_argument else {"WORD": CANARY}
    child = psutil.Popen(command, env=environment, stdin=subprocess.PIPE)
    deadline = time.monotonic() + CHILD_SECONDS_MAX
    try:
        with Watch(child.pid) as watch:
            while not find(watch.text) and time.monotonic() < deadline:
                time.sleep(PAUSE_SECONDS)
        assert find(watch.text)
        assert all(
            name.startswith(place_of_it) for (_, name), data in watch.seen.items() if find(data)
        )
    finally:
        child.communicate(b"end")


def look_everywhere(client: Client, place: Path, source_id: str) -> None:
    """Ask every question and read every file."""
    paths = [*PATHS, f"/sources/{source_id}", "/openapi.json"]
    paths += [f"/jobs/{one['job_id']}" for one in client.hub.get("/jobs")["jobs"]]
    paths += [f"/vms/{one['id']}" for one in client.hub.get("/vms")["vms"]]
    for path in paths:
        client.ask("GET", path)
    for words in (["source", "list"], ["source", "show", "vc0"], ["job", "list"], ["vm", "list"]):
        client.run(*words)
        client.run(*words, "--json")
    bundle = place / f"bundle-{source_id}-{len(client.seen)}.tar.gz"
    data_dir = str(client.hub.folder / "data")
    made = client.run("support-bundle", "--output", str(bundle), "--data-dir", data_dir)
    assert made.code == 0, made.err
    with tarfile.open(bundle) as tar:
        tar.extractall(client.hub.folder / bundle.stem, filter="data")
    assert search(client.hub.folder) == {}, "data directory, repositories, logs, bundle"
    assert not find("\n".join(client.seen).encode())


def test_no_secret_leaks_with_the_reader_for_development(
    client: Client, vcenter: Vcenter, place: Path, nbdkit: Nbdkit
) -> None:
    vcenter.add_vm("plain", MIB)
    with Watch(client.hub.process_id) as watch:
        source_id, _ = client.register(vcenter.describe(), vcenter.credentials)
        job = back_up(client, source_id, "plain", "file")
        assert job["status"] == "completed", job["error"]
    assert b"nbdkit" in nbdkit.starts
    assert not find(watch.text + nbdkit.starts)
    wrong = {**vcenter.credentials, "username": "nobody@vsphere.local"}
    refused = client.probe(vcenter.describe(), wrong)
    assert "vsphere-login-denied" in refused.text
    look_everywhere(client, place, source_id)


def test_no_secret_leaks_with_vddk(
    client: Client, vcenter: Vcenter, place: Path, nbdkit: Nbdkit
) -> None:
    try:
        nbdkit.choose(double.find_plugin())
    except double.Missing as reason:
        pytest.skip(str(reason))
    vddk = set_up_double(vcenter, "read", place / "libdir")
    config = describe_vddk(vcenter, place / "libdir")
    source_id, _ = client.register(config, vcenter.credentials)
    stop = threading.Event()

    def offer() -> None:
        """Give the double each snapshot as soon as there is one."""
        known = set(vcenter.content.snapshots)
        while not stop.wait(PAUSE_SECONDS):
            for snapshot in set(vcenter.content.snapshots) - known:
                known.add(snapshot)
                path = vcenter.get_vm("read").config.files.vmPathName.rpartition("/")[0]
                file = vcenter.snapshot_content(snapshot, 2000)
                vddk.add_disk(vcenter.moref("read"), snapshot, f"{path}/read-0.vmdk", file)

    thread = threading.Thread(target=offer)
    thread.start()
    try:
        with Watch(client.hub.process_id) as watch:
            job = back_up(client, source_id, "read", "vddk")
            assert job["status"] == "completed", job["error"]
    finally:
        stop.set()
        thread.join()
        nbdkit.choose(ABSENT)
    assert b"libdir=" in nbdkit.starts, "nbdkit was started with the double"
    assert not find(watch.text + nbdkit.starts)
    look_everywhere(client, place, source_id)
