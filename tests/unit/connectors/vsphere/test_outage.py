"""A vCenter that goes away at the worst moment: an error to try again after, and nothing left."""

import time

import pytest
from pyVmomi import vim

from demo.vcenter.lab import Vcenter
from sendense.connectors.base import DiskRequest, SnapshotOutcome, SnapshotRequest
from sendense.connectors.vsphere import properties
from sendense.connectors.vsphere.reader.nbdkit import STOP_SECONDS_MAX
from sendense.connectors.vsphere.session import Session
from sendense.connectors.vsphere.source import VsphereSource
from sendense.core.errors import Unavailable
from sendense.core.units import MIB
from tests.unit.connectors.vsphere.conftest import OpenSession, OpenSource


def look(session: Session) -> set[str]:
    found = properties.read(session, vim.Datacenter, None, ["name"], doing="look")
    return {str(one["name"]) for one in found.values.values()}


def back_up(source: VsphereSource, uuid: str, base: str | None) -> str | None:
    """Do what a job does at the source, up to the end or an error; return the change id."""
    disks = (DiskRequest(2000, "chain", base),)
    taken = source.take_snapshot(SnapshotRequest(uuid, "sendense-job-0123456789abcdef", disks))
    try:
        if base is not None and taken.disks[0].base_lost_reason is None:
            with source.open_disk(taken.reference, 2000) as view:
                list(view.list_changed())
    finally:
        source.remove_snapshot(taken.reference, SnapshotOutcome.COMMITTED, frozenset())
    return taken.disks[0].change_id


@pytest.mark.parametrize("is_restart", [False, True])
def test_a_session_gets_over_an_outage(
    vcenter: Vcenter, open_session: OpenSession, *, is_restart: bool
) -> None:
    """Rule 2: a new login only where vCenter forgot the old one."""
    session = open_session()
    before = look(session)
    logins = vcenter.calls["Login"]
    with vcenter.outage(is_restart=is_restart), pytest.raises(Unavailable) as caught:
        look(session)
    assert caught.value.kind == "vsphere-unreachable"
    assert look(session) == before
    assert vcenter.calls["Login"] == logins + is_restart


@pytest.mark.parametrize(
    "method",
    [
        "CreateSnapshot_Task",
        "QueryChangedDiskAreas",
        "ReconfigVM_Task",
        "RemoveSnapshot_Task",
        "RetrievePropertiesEx",
    ],
)
def test_an_answer_that_is_lost_leaves_nothing_of_ours(
    vcenter: Vcenter, open_source: OpenSource, method: str
) -> None:
    """Rule 14: vCenter did what it was told, and nobody learned of it."""
    uuid = vcenter.add_vm(f"lost-{method}", MIB)
    source = open_source()
    base = back_up(source, uuid, None)
    vcenter.trouble.lost_answers[method] = 1
    if method == "ReconfigVM_Task":
        vcenter.reconfigure(f"lost-{method}", changeTrackingEnabled=False)
        back_up(source, uuid, base)  # tracking is a help: the backup goes on without it
    else:
        with pytest.raises(Unavailable) as caught:
            back_up(source, uuid, base)
        assert caught.value.kind == "vsphere-unreachable"
    assert vcenter.trouble.lost_answers[method] == 0
    assert vcenter.list_snapshots(f"lost-{method}") == []
    assert back_up(source, uuid, base) is not None
    assert vcenter.list_snapshots(f"lost-{method}") == []


def test_who_asks_in_vain_leaves_the_disk_free_to_be_closed(
    vcenter: Vcenter, open_source: OpenSource
) -> None:
    """Rule 15: a reader that has to be killed says no goodbye to the host."""
    uuid = vcenter.add_vm("in-vain", MIB)
    source = open_source()
    base = back_up(source, uuid, None)
    vcenter.inject("QueryChangedDiskAreas", "FileFault", file="disk-ctk.vmdk")
    began = time.monotonic()
    with pytest.raises(Unavailable) as caught:  # holds what was under way, as a handler does
        back_up(source, uuid, base)
    assert caught.value.kind == "tracking-lost"
    assert time.monotonic() - began < STOP_SECONDS_MAX
