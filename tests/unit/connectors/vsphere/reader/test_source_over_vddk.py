"""The source over the double of VDDK: what vCenter names is what VDDK is asked for."""

import random
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from demo.vcenter.lab import Vcenter
from sendense.connectors.base import DiskRequest, SnapshotOutcome, SnapshotRequest
from sendense.connectors.vsphere import session as sessions
from sendense.connectors.vsphere.reader.limits import Slots
from sendense.connectors.vsphere.reader.vddk import VddkReader
from sendense.connectors.vsphere.source import VsphereSource
from sendense.core.clock import ManualClock
from sendense.core.errors import Denied
from sendense.core.units import MIB
from sendense.nbd.client import Client
from tests.unit.connectors.vsphere.conftest import settings_of
from tests.vddk.double import Vddk

SIZE = 4 * MIB


class Rig:
    """A VM on a vCenter, whose disks VDDK's double reads."""

    def __init__(self, vcenter: Vcenter, libdir: Path, plugin: str, scratch: Path) -> None:
        self.vcenter = vcenter
        self.name = f"vm-{scratch.name}"
        self.vm_uuid = vcenter.add_vm(self.name, SIZE)
        self.settings = settings_of(vcenter, reader="vddk", file_dir=None, vddk_libdir=str(libdir))
        self.vddk = Vddk(libdir)
        self.vddk.set(
            user=vcenter.username,
            password=vcenter.password,
            thumbprint=sessions.find_thumbprint(self.settings),
        )
        clock = ManualClock()
        slots = Slots(scratch / "slots", clock, random.Random(1))
        reader = VddkReader(libdir, slots, clock, random.Random(1), plugin=plugin)
        self.source = VsphereSource(self.settings, scratch, "hub-1", clock=clock, reader=reader)


@pytest.fixture
def rig(vcenter: Vcenter, library: Path, plugin: str, tmp_path: Path) -> Rig:
    libdir = tmp_path / "libdir"
    shutil.copytree(library, libdir)
    return Rig(vcenter, libdir, plugin, tmp_path)


def test_a_snapshot_is_read_by_its_reference_and_its_own_path(rig: Rig, seed: int) -> None:
    data = random.Random(seed).randbytes(SIZE)
    rig.vcenter.write(rig.name, 2000, 0, data)
    with closing(rig.source) as source:
        request = SnapshotRequest(rig.vm_uuid, "job-1", (DiskRequest(2000, "chain"),))
        taken = source.take_snapshot(request)
        assert not any("development" in warning for warning in taken.warnings)
        rig.vcenter.write(rig.name, 2000, 0, bytes(SIZE))
        reference = taken.reference
        (disk,) = reference["disks"]
        frozen = rig.vcenter.snapshot_content(reference["snapshot"], 2000)
        rig.vddk.add_disk(reference["vm_moref"], reference["snapshot"], disk["path"], frozen)
        with source.open_disk(reference, 2000) as view, Client.connect(view.address) as client:
            assert bytes(client.read(0, SIZE)) == data
        source.remove_snapshot(reference, SnapshotOutcome.COMMITTED, frozenset())
    assert len(rig.vddk.list_calls("open")) == len(rig.vddk.list_calls("close"))


def test_a_password_that_vddk_refuses_is_said_to_be_refused(rig: Rig) -> None:
    rig.vddk.unset("password")
    rig.vddk.set(password="another")  # noqa: S106 - of nothing
    with closing(rig.source) as source:
        request = SnapshotRequest(rig.vm_uuid, "job-1", (DiskRequest(2000, "chain"),))
        taken = source.take_snapshot(request)
        with pytest.raises(Denied) as caught, source.open_disk(taken.reference, 2000):
            pass
        assert caught.value.kind == "vsphere-login-denied"
        assert rig.vcenter.password not in str(caught.value)
        source.remove_snapshot(taken.reference, SnapshotOutcome.DISCARDED, frozenset())


def test_a_powered_off_vm_is_written_through_vddk(rig: Rig) -> None:
    with closing(rig.source) as source:
        (vm,) = [one for one in source.list_vms() if one.uuid == rig.vm_uuid]
        moref = rig.vcenter.moref(rig.name)
        live = rig.vcenter.live(rig.name, 2000)
        path = f"[LocalDS_0] {rig.name}/{rig.name}-0.vmdk"
        rig.vddk.add_disk(moref, None, path, live)
        with (
            source.open_for_restore(
                rig.vm_uuid, 2000, size_bytes=SIZE, disk_uuid=vm.disks[0].uuid
            ) as address,
            Client.connect(address) as client,
        ):
            client.write(MIB, b"restored" * 64)
            client.flush()
    assert live.read_bytes()[MIB : MIB + 8] == b"restored"
