"""Rule 22: a disk is overwritten only in a VM that is off, without snapshots, and is that VM's."""

import pytest

from demo.vcenter.lab import Vcenter, value
from sendense.connectors.base import DiskRequest, SnapshotOutcome, SnapshotRequest
from sendense.connectors.vsphere.source import VsphereSource
from sendense.core.errors import Conflict, NotFound, SendenseError
from sendense.core.units import MIB
from sendense.nbd.client import Client
from tests.unit.connectors.vsphere.conftest import OpenSource

TRUE = value("xsd:boolean", "true")


def uuid_of(source: VsphereSource, vm_uuid: str) -> str:
    return next(vm for vm in source.list_vms() if vm.uuid == vm_uuid).disks[0].uuid


def refuse(
    source: VsphereSource, vm_uuid: str, key: int = 2000, *, size_bytes: int = MIB, disk: str = ""
) -> SendenseError:
    disk_uuid = disk or uuid_of(source, vm_uuid)
    with (
        pytest.raises(SendenseError) as caught,
        source.open_for_restore(vm_uuid, key, size_bytes=size_bytes, disk_uuid=disk_uuid),
    ):
        pass
    return caught.value


def test_a_disk_of_a_vm_that_is_off_is_overwritten(
    vcenter: Vcenter, open_source: OpenSource
) -> None:
    uuid = vcenter.add_vm("off", MIB)
    vcenter.write("off", 2000, 0, b"old")
    source = open_source()
    with (
        source.open_for_restore(
            uuid, 2000, size_bytes=MIB, disk_uuid=uuid_of(source, uuid)
        ) as address,
        Client.connect(address) as client,
    ):
        client.write(0, b"new" + bytes(509))
        client.flush()
    assert vcenter.live("off", 2000).read_bytes()[:4] == b"new\0"


def test_the_next_backup_after_a_restore_reads_everything(
    vcenter: Vcenter, open_source: OpenSource
) -> None:
    uuid = vcenter.add_vm("restored", MIB)
    source = open_source()

    def take(name: str, base: str | None) -> str | None:
        disks = (DiskRequest(2000, "chain", base),)
        taken = source.take_snapshot(SnapshotRequest(uuid, name, disks))
        source.remove_snapshot(taken.reference, SnapshotOutcome.COMMITTED, frozenset())
        reasons.append(taken.disks[0].base_lost_reason)
        return taken.disks[0].change_id

    reasons: list[str | None] = []
    base = take("one", None)
    assert base is not None
    vcenter.live("restored", 2000)
    with source.open_for_restore(uuid, 2000, size_bytes=MIB, disk_uuid=uuid_of(source, uuid)):
        assert not vcenter.get_vm("restored").config.changeTrackingEnabled
    after = take("two", base)
    assert after is not None
    assert "was reset" in str(reasons[-1])
    take("three", after)
    assert reasons[-1] is None


@pytest.mark.parametrize(
    ("path", "text", "kind"),
    [
        ("config.template", TRUE, "vm-is-template"),
        ("runtime.consolidationNeeded", TRUE, "consolidation-needed"),
        ("runtime.powerState", value("VirtualMachinePowerState", "poweredOn"), "vm-not-off"),
        ("runtime.powerState", value("VirtualMachinePowerState", "suspended"), "vm-not-off"),
    ],
)
def test_a_vm_that_is_not_at_rest_is_refused(
    vcenter: Vcenter, open_source: OpenSource, path: str, text: str, kind: str
) -> None:
    name = f"restless-{kind}-{'suspended' in text}"
    uuid = vcenter.add_vm(name, MIB)
    vcenter.override(vcenter.moref(name), path, text)
    error = refuse(open_source(), uuid)
    assert isinstance(error, Conflict)
    assert error.kind == kind


def test_a_vm_with_anybody_s_snapshot_is_refused(vcenter: Vcenter, open_source: OpenSource) -> None:
    uuid = vcenter.add_vm("snapped", MIB)
    vcenter.take_snapshot("snapped", "by hand")
    assert refuse(open_source(), uuid).kind == "vm-has-snapshots"


def test_another_disk_than_that_which_was_named_is_refused(
    vcenter: Vcenter, open_source: OpenSource
) -> None:
    uuid = vcenter.add_vm("mistaken", MIB)
    source = open_source()
    assert refuse(source, uuid, disk="6000C29f-another").kind == "disk-replaced"
    assert refuse(source, uuid, size_bytes=2 * MIB).kind == "target-size-differs"
    missing = refuse(source, uuid, 2005)
    assert isinstance(missing, NotFound)
    assert missing.kind == "disk-unknown"


def test_a_vm_that_is_started_meanwhile_is_said_to_be(
    vcenter: Vcenter, open_source: OpenSource
) -> None:
    uuid = vcenter.add_vm("started", MIB)
    vcenter.live("started", 2000)
    source = open_source()
    disk_uuid = uuid_of(source, uuid)

    def start_it() -> None:
        with source.open_for_restore(uuid, 2000, size_bytes=MIB, disk_uuid=disk_uuid):
            vcenter.power("started", on=True)

    with pytest.raises(Conflict) as caught:
        start_it()
    assert caught.value.kind == "vm-not-off"
