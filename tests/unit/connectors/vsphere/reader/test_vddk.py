"""Rules 19 to 21: the real vddk plugin of nbdkit over a double of VMware's library."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from sendense.connectors.vsphere.reader import nbdkit
from sendense.connectors.vsphere.reader import vddk as connector
from sendense.connectors.vsphere.reader.base import ReadTask
from sendense.connectors.vsphere.reader.vddk import VddkReader
from sendense.core.clock import ManualClock
from sendense.core.errors import Denied, NotFound, SendenseError, Unavailable
from sendense.core.units import MIB, SECTOR
from sendense.nbd.address import Address
from sendense.nbd.client import Client
from tests.unit.connectors.vsphere.reader.conftest import PASSWORD, SIZE_BYTES, TASK
from tests.vddk.double import Vddk

WAIT_SECONDS = 20.0


def refuse(reader: VddkReader, task: ReadTask = TASK) -> SendenseError:
    with pytest.raises(SendenseError) as caught, reader.open(task):
        pass
    assert PASSWORD not in f"{caught.value} {caught.value.hint} {caught.value.fields}"
    return caught.value


def find_server(address: Address) -> psutil.Process:
    (found,) = [
        child
        for child in psutil.Process().children()
        if f"--unix={address.socket_path}" in child.cmdline()
    ]
    return found


def read_after(reader: VddkReader, act: Callable[[Address], None]) -> None:
    with reader.open(TASK) as address, Client.connect(address) as client:
        act(address)
        client.read(0, MIB)


def test_a_snapshot_s_disk_is_read_byte_by_byte(reader: VddkReader, vddk: Vddk, disk: Path) -> None:
    with reader.open(TASK) as address, Client.connect(address) as client:
        assert client.is_read_only
        assert client.read(0, SIZE_BYTES) == disk.read_bytes()
    assert "snapshot=snapshot-21 transports=nbdssl:nbd read_only=1" in vddk.list_calls("connect")[0]
    flags = {line.rpartition("=")[2] for line in vddk.list_calls("open")}
    assert flags == {str(4 | 64)}  # read-only, compressed by skipz


def test_only_allocated_extents_need_reading(reader: VddkReader, disk: Path) -> None:
    with disk.open("r+b") as file:
        file.truncate(0)
        file.truncate(SIZE_BYTES)
        file.seek(MIB)
        file.write(b"x" * MIB)
    with (
        reader.open(TASK) as address,
        Client.connect(address, contexts=["base:allocation"]) as client,
    ):
        data = [(run.start, run.end) for run in client.list_allocated() if not run.zero]
    assert data == [(MIB, 2 * MIB)]


def test_a_disk_of_a_powered_off_vm_is_written(
    reader: VddkReader, vddk: Vddk, tmp_path: Path
) -> None:
    target = tmp_path / "target.raw"
    target.write_bytes(bytes(SIZE_BYTES))
    vddk.add_disk("vm-77", None, "[ds] new/new.vmdk", target)
    task = replace(
        TASK, vm_moref="vm-77", snapshot_moref=None, disk_path="[ds] new/new.vmdk", writable=True
    )
    with reader.open(task) as address, Client.connect(address) as client:
        client.write(SECTOR, b"y" * SECTOR)
        client.flush()
    assert target.read_bytes()[: 3 * SECTOR] == bytes(SECTOR) + b"y" * SECTOR + bytes(SECTOR)


def test_requests_reach_vddk_with_two_mib_at_most() -> None:
    arguments = connector.list_arguments(TASK, libdir=None, plugin="vddk")
    assert {"minblock=512", "maxdata=2M", "--filter=blocksize"} <= set(arguments)


def test_a_snapshot_always_comes_with_transports() -> None:
    arguments = connector.list_arguments(TASK, libdir=Path("/opt/vddk"), plugin="vddk")
    assert {"snapshot=snapshot-21", "transports=nbdssl:nbd", "--readonly"} <= set(arguments)
    assert "libdir=/opt/vddk" in arguments
    assert arguments[-1] == "file=[datastore 1] web/web 1.vmdk"


def test_another_port_than_443_is_passed_on() -> None:
    assert "port=8443" in connector.list_arguments(
        replace(TASK, port=8443), libdir=None, plugin="vddk"
    )


def test_the_password_is_in_no_argument_environment_or_file(
    reader: VddkReader, vddk: Vddk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENDENSE_TEST_SECRET", PASSWORD)
    with reader.open(TASK) as address, Client.connect(address):
        server = find_server(address)
        for name in ("cmdline", "environ"):
            content = Path(f"/proc/{server.pid}/{name}").read_bytes()
            assert content
            assert PASSWORD.encode() not in content
        place = Path(str(address.socket_path)).parent
        assert place.stat().st_mode & 0o077 == 0
        files = [path for path in place.rglob("*") if path.is_file()]
        assert not [path for path in files if PASSWORD.encode() in path.read_bytes()]
    assert not place.exists()
    assert "sendense=leaked" not in vddk.list_calls("init")[0]
    assert PASSWORD not in repr(TASK)


@pytest.mark.parametrize(
    ("setting", "text", "kind"),
    [
        ("fail_connect", "Cannot complete login due to an incorrect user name or password.",
         "vsphere-login-denied"),
        ("fail_connect", "VixDiskLibVim: host address lookup for server vc1.example failed",
         "vsphere-unreachable"),
        ("fail_connect", "Current license or ESXi version prohibits execution of the operation",
         "vsphere-licence-read-only"),
        ("fail_open", "it has already been deleted or has not been completely created", "vm-gone"),
        ("fail_open", "snapshot-21 was not found, snapshot not found", "snapshot-lost"),
        ("fail_open", "[NFC ERROR] received NFC error 5: Failed to allocate", "vsphere-nfc-busy"),
        ("fail_open", "[NFC ERROR]NfcNewAuthdConnectionEx: Failed to connect to server h1:902",
         "vsphere-unreachable"),
        ("fail_open", "something new", "vddk-failed"),
        ("fail_init", "no more memory", "vddk-library-unusable"),
    ],
)  # fmt: skip
def test_what_vddk_complains_of_becomes_a_kind(
    reader: VddkReader, vddk: Vddk, setting: str, text: str, kind: str
) -> None:
    vddk.set(**{setting: text})
    error = refuse(reader)
    assert error.kind == kind
    assert error.hint


def test_a_wrong_password_is_tried_once_and_not_shown(reader: VddkReader, vddk: Vddk) -> None:
    vddk.unset("password")
    vddk.set(password="another")  # noqa: S106 - of nothing
    error = refuse(reader)
    assert isinstance(error, Denied)
    assert error.kind == "vsphere-login-denied"
    assert "***" in str(error.fields)
    assert len(vddk.list_calls("connect")) == 1  # more of them lock an account


def test_a_wrong_thumbprint_is_said_although_only_the_log_has_it(
    reader: VddkReader, vddk: Vddk
) -> None:
    vddk.unset("thumbprint")
    vddk.set(thumbprint="CD")
    assert refuse(reader).kind == "vsphere-certificate"


def test_a_disk_that_vddk_does_not_find_is_unknown(reader: VddkReader) -> None:
    error = refuse(reader, replace(TASK, disk_path="[ds] other.vmdk"))
    assert isinstance(error, NotFound)
    assert error.kind == "disk-unknown"


def test_a_disk_of_another_size_is_not_read(reader: VddkReader) -> None:
    assert refuse(reader, replace(TASK, size_bytes=SIZE_BYTES * 2)).kind == "disk-changed"


def test_a_missing_library_and_a_missing_folder_are_told(
    make_reader: Callable[[Path], VddkReader], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for place in ("empty", "nowhere"):
        error = refuse(make_reader(tmp_path / place))
        assert error.kind == "vddk-library-missing", place
        with pytest.raises(Unavailable) as caught:
            make_reader(tmp_path / place).probe()
        assert caught.value.kind == "vddk-library-missing", place


def test_a_library_that_is_none_of_vddk_is_unusable(
    make_reader: Callable[[Path], VddkReader], tmp_path: Path
) -> None:
    (tmp_path / "lib64").mkdir()
    source = tmp_path / "empty.c"
    source.write_text("int nothing;\n")
    library = tmp_path / "lib64" / "libvixDiskLib.so.7"
    subprocess.run(["gcc", "-shared", "-o", str(library), str(source)], check=True)
    reader = make_reader(tmp_path)
    assert refuse(reader).kind == "vddk-library-unusable"
    with pytest.raises(Unavailable) as caught:
        reader.probe()
    assert caught.value.kind == "vddk-library-unusable"


def test_a_vddk_newer_than_the_plugin_is_unusable(
    make_reader: Callable[[Path], VddkReader], library: Path, tmp_path: Path
) -> None:
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib64" / "libvixDiskLib.so.99").symlink_to(
        library / "lib64" / "libvixDiskLib.so.8"
    )
    with pytest.raises(Unavailable) as caught:
        make_reader(tmp_path).probe()
    assert caught.value.kind == "vddk-library-unusable"
    assert "libvixDiskLib.so.99" in caught.value.message


def test_what_is_installed_is_told_in_one_line(reader: VddkReader) -> None:
    line = reader.probe()
    assert "vddk plugin 1." in line
    assert "VDDK 8" in line
    assert reader.warning is None


def test_a_busy_host_is_asked_again_after_pauses(
    reader: VddkReader, vddk: Vddk, clock: ManualClock
) -> None:
    vddk.set(fail_open="[NFC ERROR] maximum number of connections")
    assert refuse(reader).kind == "vsphere-nfc-busy"
    assert len(vddk.list_calls("connect")) == 4
    assert 7 <= clock.monotonic() <= 14  # half of 2 + 4 + 8 seconds, or more


def test_a_host_that_is_free_again_is_read(
    reader: VddkReader, vddk: Vddk, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vddk.set(fail_open="[NFC ERROR] maximum number of connections")
    monkeypatch.setattr(ManualClock, "sleep", lambda *_: vddk.unset("fail_open"))
    with reader.open(TASK) as address, Client.connect(address) as client:
        assert client.read(0, SECTOR) == disk.read_bytes()[:SECTOR]


def test_a_read_that_fails_once_is_repeated_by_nbdkit(
    reader: VddkReader, vddk: Vddk, disk: Path
) -> None:
    vddk.set(fail_sector=0, fail_read="[NFC ERROR] broken", fail_reads=1)
    with reader.open(TASK) as address, Client.connect(address) as client:
        assert client.read(0, SECTOR) == disk.read_bytes()[:SECTOR]


def test_a_login_refused_in_mid_read_ends_the_reading_at_once(
    reader: VddkReader, vddk: Vddk
) -> None:
    started = time.monotonic()

    def change(_: Address) -> None:
        vddk.unset("password")
        vddk.set(password="changed meanwhile", fail_sector=0)  # noqa: S106 - of nothing

    with pytest.raises(Denied) as caught:
        read_after(reader, change)
    assert caught.value.kind == "vsphere-login-denied"
    assert time.monotonic() - started < WAIT_SECONDS
    assert PASSWORD not in str(caught.value.fields)


def test_a_crash_of_vddk_in_mid_read_is_told(reader: VddkReader, vddk: Vddk) -> None:
    vddk.set(crash_sector=9)
    with pytest.raises(Unavailable) as caught:
        read_after(reader, lambda _: None)
    assert caught.value.kind == "reader-died"
    assert "SIGABRT" in caught.value.message


def test_a_kill_of_nbdkit_in_mid_read_is_told(reader: VddkReader) -> None:
    with pytest.raises(Unavailable) as caught:
        read_after(reader, lambda address: find_server(address).kill())
    assert caught.value.kind == "reader-died"


def test_a_failure_of_something_else_keeps_its_kind(reader: VddkReader) -> None:
    with pytest.raises(Unavailable) as caught, reader.open(TASK):
        raise Unavailable("the repository is gone", kind="repository-gone")
    assert caught.value.kind == "repository-gone"


def test_a_vddk_that_hangs_is_ended_at_close(
    reader: VddkReader, vddk: Vddk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbdkit, "STOP_SECONDS_MAX", 0.3)
    vddk.set(hang_sector=0)
    with reader.open(TASK) as address:
        server = find_server(address)
        client = Client.connect(address)
        reading = threading.Thread(target=lambda: _read_in_vain(client))
        reading.start()
        time.sleep(0.3)
    assert not server.is_running()
    reading.join(WAIT_SECONDS)
    client.close()


def _read_in_vain(client: Client) -> None:
    with pytest.raises(Unavailable):
        client.read(0, SECTOR)


def test_nothing_is_left_after_a_kill_of_the_worker(
    reader: VddkReader, vddk: Vddk, tmp_path: Path
) -> None:
    vddk.set(hang_sector=0)
    program = (
        "import random, sys, threading\nfrom pathlib import Path\n"
        "from sendense.connectors.vsphere.reader.limits import Slots\n"
        "from sendense.connectors.vsphere.reader.vddk import VddkReader\n"
        "from sendense.core.clock import SystemClock\nfrom sendense.nbd.client import Client\n"
        "from tests.unit.connectors.vsphere.reader.conftest import TASK\n"
        "slots = Slots(Path(sys.argv[1]), SystemClock(), random.Random())\n"
        "libdir, plugin = Path(sys.argv[2]), sys.argv[3]\n"
        "reader = VddkReader(libdir, slots, SystemClock(), random.Random(), plugin=plugin)\n"
        "with reader.open(TASK) as address:\n"
        "    client = Client.connect(address)\n"
        "    threading.Thread(target=lambda: client.read(0, 512), daemon=True).start()\n"
        "    print(address.socket_path, flush=True)\n    sys.stdin.read()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "s"), str(vddk.libdir), reader.plugin],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert owner.stdin is not None
    assert owner.stdout is not None
    with owner.stdin, owner.stdout:
        socket_path = owner.stdout.readline().strip()
        everything = psutil.Process(owner.pid).children()
        assert len(everything) == 2  # nbdkit and its guard
        time.sleep(0.3)  # let the read hang in VDDK: what --exit-with-parent does not survive
        owner.send_signal(signal.SIGKILL)
        owner.wait(WAIT_SECONDS)
    _, alive = psutil.wait_procs(everything, timeout=WAIT_SECONDS)
    assert alive == []
    assert not Path(socket_path).parent.exists()


def test_a_fifth_disk_of_a_host_waits_for_one_of_four(
    reader: VddkReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = replace(reader, disks_per_host=1)
    waited: list[float] = []

    def wait(clock: ManualClock, seconds: float) -> None:
        waited.append(seconds)
        clock.advance(3600)

    with narrow.open(TASK):
        monkeypatch.setattr(ManualClock, "sleep", wait)
        assert refuse(narrow).kind == "vsphere-slots-taken"
        with narrow.open(replace(TASK, host_moref="host-4")):
            pass
    assert waited
    with narrow.open(TASK):
        pass


def test_every_disk_is_closed_before_its_server_ends(reader: VddkReader, vddk: Vddk) -> None:
    for _ in range(20):  # one round alone was right in half of all cases before
        with reader.open(TASK):
            pass
    assert len(vddk.list_calls("open")) == 20
    assert len(vddk.list_calls("close")) == len(vddk.list_calls("disconnect")) == 20
