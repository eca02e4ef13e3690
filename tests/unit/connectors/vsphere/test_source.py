"""Snapshots of ours and nothing else: rules 8, 9 and 14 to 18."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from demo.vcenter.lab import Vcenter, value
from sendense.connectors.base import (
    Consistency,
    ConsistencyWish,
    DiskRequest,
    SnapshotOutcome,
    SnapshotRequest,
)
from sendense.connectors.vsphere import snapshots, tasks
from sendense.connectors.vsphere.reader.vddk import VddkReader
from sendense.connectors.vsphere.source import VsphereSource, create_reader
from sendense.core.clock import ManualClock
from sendense.core.errors import Conflict, Invalid, NotFound, SendenseError, Unavailable
from sendense.core.units import MIB
from sendense.nbd.client import Client
from tests.unit.connectors.vsphere.conftest import OWNER, OpenSource, settings_of

TRUE = value("xsd:boolean", "true")
FALSE = value("xsd:boolean", "false")
RUNNING = value("xsd:string", "guestToolsRunning")
NUMBERS = itertools.count()
JOB = "sendense-job-0123456789abcdef"


def ask(
    uuid: str, *keys: int, wish: ConsistencyWish = ConsistencyWish.PREFER, base: str | None = None
) -> SnapshotRequest:
    disks = tuple(DiskRequest(key, "chain", base) for key in keys or (2000,))
    return SnapshotRequest(uuid, JOB, disks, wish)


def refuse(source: VsphereSource, request: SnapshotRequest) -> SendenseError:
    with pytest.raises(SendenseError) as caught:
        source.take_snapshot(request)
    return caught.value


def remove(source: VsphereSource, reference: dict[str, Any]) -> None:
    source.remove_snapshot(reference, SnapshotOutcome.COMMITTED, frozenset())


@pytest.fixture
def running(vcenter: Vcenter) -> tuple[str, str]:
    """Return name and uuid of a VM that is on, with tools that run."""
    name = f"running-{next(NUMBERS)}"
    uuid = vcenter.add_vm(name, 4 * MIB, powered_on=True)
    vcenter.override(vcenter.moref(name), "guest.toolsRunningStatus", RUNNING)
    return name, uuid


def test_a_snapshot_carries_product_hub_and_job(vcenter: Vcenter, open_source: OpenSource) -> None:
    uuid = vcenter.add_vm("named", MIB)
    taken = open_source().take_snapshot(ask(uuid))
    assert vcenter.list_snapshots("named") == [f"sendense {OWNER} {JOB}"]
    assert taken.reference["name"] == f"sendense {OWNER} {JOB}"


def test_a_long_name_stays_within_vcenter_s_limit() -> None:
    long, other = snapshots.name_of(OWNER, "x" * 100), snapshots.name_of(OWNER, "y" * 100)
    assert len(long) <= 80
    assert long != other
    assert long.startswith(f"sendense {OWNER} ")


def test_a_snapshot_is_taken_once_for_a_job(vcenter: Vcenter, open_source: OpenSource) -> None:
    uuid = vcenter.add_vm("once", MIB)
    source = open_source()
    first = source.take_snapshot(ask(uuid))
    again = open_source().take_snapshot(ask(uuid))
    assert again.reference == first.reference
    assert again.moment == first.moment
    assert len(vcenter.list_snapshots("once")) == 1


def test_snapshots_of_others_stay_whatever_they_are_called(
    vcenter: Vcenter, open_source: OpenSource
) -> None:
    uuid = vcenter.add_vm("others", MIB)
    source = open_source()
    taken = source.take_snapshot(ask(uuid))
    others = ["by hand", "sendense", f"sendense hub-another000000000 {JOB}"]
    for name in others:
        vcenter.take_snapshot("others", name)
    assert [one.name for one in source.list_left() if one.vm_uuid == uuid] == [JOB]
    # vcsim dies of the removal of a snapshot with children: only the looking is tried here.
    assert source.find_snapshot(uuid, JOB) == {
        **taken.reference,
        "host_moref": "",
        "disks": [],
    }
    assert open_source(owner="hub-somebody00000000").list_left() == []
    assert open_source(owner="hub-somebody00000000").find_snapshot(uuid, JOB) is None


def test_a_removal_of_what_is_not_there_succeeds(vcenter: Vcenter, open_source: OpenSource) -> None:
    uuid = vcenter.add_vm("vanishing", MIB)
    source = open_source()
    taken = source.take_snapshot(ask(uuid))
    remove(source, taken.reference)
    remove(source, taken.reference)
    vcenter.destroy("vanishing")
    remove(source, taken.reference)
    assert source.find_snapshot(uuid, JOB) is None


def test_a_snapshot_is_found_after_the_vm_got_another_reference(
    vcenter: Vcenter, open_source: OpenSource
) -> None:
    uuid = vcenter.add_vm("moved", MIB)
    source = open_source()
    taken = source.take_snapshot(ask(uuid))
    remove(source, {**taken.reference, "vm_moref": "vm-1", "snapshot": "snapshot-1"})
    assert vcenter.list_snapshots("moved") == []


def test_a_vm_that_hides_is_no_reason_to_forget_its_snapshot(
    vcenter: Vcenter, open_source: OpenSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = vcenter.add_vm("hidden", MIB)
    source = open_source()
    taken = source.take_snapshot(ask(uuid))
    monkeypatch.setattr(
        "sendense.connectors.vsphere.inventory.find_by_uuid", lambda _login, _uuid: None
    )
    monkeypatch.setattr(source, "confirm_gone", lambda _uuids: frozenset())
    monkeypatch.setattr(
        "sendense.connectors.vsphere.inventory._sees_everything", lambda _login: False
    )
    with pytest.raises(NotFound):
        remove(source, taken.reference)


def test_a_foreign_reference_is_refused(open_source: OpenSource) -> None:
    with pytest.raises(Invalid):
        remove(open_source(), {"version": 1, "token": "qemu's"})
    with pytest.raises(Invalid):
        open_source().open_disk({}, 2000)


# Rule 16.


def test_a_guest_that_comes_to_rest_is_consistent(
    running: tuple[str, str], open_source: OpenSource
) -> None:
    taken = open_source().take_snapshot(ask(running[1], wish=ConsistencyWish.REQUIRE))
    assert taken.consistency is Consistency.FILESYSTEM
    again = open_source().take_snapshot(ask(running[1]))
    assert again.consistency is Consistency.FILESYSTEM


@pytest.mark.parametrize("fault", ["ApplicationQuiesceFault", "ToolsUnavailable", "SystemError"])
def test_a_guest_that_does_not_is_backed_up_all_the_same_and_it_is_said(
    vcenter: Vcenter, running: tuple[str, str], open_source: OpenSource, fault: str
) -> None:
    vcenter.fail_task("CreateSnapshot_Task", fault, message="the guest did not answer")
    taken = open_source().take_snapshot(ask(running[1]))
    assert taken.consistency is Consistency.CRASH
    assert "the guest did not answer" in taken.warnings[0]
    assert len(vcenter.list_snapshots(running[0])) == 1


def test_where_consistency_is_required_the_backup_fails_and_leaves_nothing(
    vcenter: Vcenter, running: tuple[str, str], open_source: OpenSource
) -> None:
    vcenter.fail_task("CreateSnapshot_Task", "ApplicationQuiesceFault")
    error = refuse(open_source(), ask(running[1], wish=ConsistencyWish.REQUIRE))
    assert error.kind == "guest-not-quiesced"
    assert vcenter.list_snapshots(running[0]) == []


def test_who_does_not_wish_it_does_not_disturb_the_guest(
    running: tuple[str, str], open_source: OpenSource
) -> None:
    taken = open_source().take_snapshot(ask(running[1], wish=ConsistencyWish.OFF))
    assert taken.consistency is Consistency.CRASH
    assert not any("crash-consistent" in warning for warning in taken.warnings)


def test_without_tools_a_running_vm_is_crash_consistent(
    vcenter: Vcenter, running: tuple[str, str], open_source: OpenSource
) -> None:
    moref = vcenter.moref(running[0])
    vcenter.override(moref, "guest.toolsRunningStatus", value("xsd:string", "guestToolsNotRunning"))
    taken = open_source().take_snapshot(ask(running[1]))
    assert taken.consistency is Consistency.CRASH
    assert "VMware Tools do not run" in taken.warnings[0]


def test_a_suspended_vm_is_crash_consistent(
    vcenter: Vcenter, running: tuple[str, str], open_source: OpenSource
) -> None:
    state = value("VirtualMachinePowerState", "suspended")
    vcenter.override(vcenter.moref(running[0]), "runtime.powerState", state)
    taken = open_source().take_snapshot(ask(running[1]))
    assert taken.consistency is Consistency.CRASH
    assert "suspended" in taken.warnings[0]


def test_another_failure_than_of_the_guest_is_no_reason_for_less(
    vcenter: Vcenter, running: tuple[str, str], open_source: OpenSource
) -> None:
    vcenter.fail_task("CreateSnapshot_Task", "NoDiskSpace", datastore="ds", file="x")
    error = refuse(open_source(), ask(running[1]))
    assert error.kind == "no-space"
    assert vcenter.list_snapshots(running[0]) == []


# Rules 7, 8 and 17.


def test_tracking_is_switched_on_where_it_is_off(vcenter: Vcenter, open_source: OpenSource) -> None:
    uuid = vcenter.add_vm("tracked", MIB)
    taken = open_source().take_snapshot(ask(uuid))
    assert vcenter.get_vm("tracked").config.changeTrackingEnabled
    assert taken.disks[0].change_id


def test_with_a_snapshot_present_it_is_not_and_that_is_said(
    vcenter: Vcenter, open_source: OpenSource
) -> None:
    uuid = vcenter.add_vm("untracked", MIB)
    vcenter.take_snapshot("untracked", "by hand")
    taken = open_source().take_snapshot(ask(uuid))
    assert taken.disks[0].change_id is None
    assert any("while the VM has no snapshot" in warning for warning in taken.warnings)
    base = open_source().take_snapshot(ask(uuid, base="52 aa/1"))
    assert "tracking is off" in str(base.disks[0].base_lost_reason)


def test_hardware_that_cannot_track_is_backed_up_in_full(
    vcenter: Vcenter, open_source: OpenSource
) -> None:
    uuid = vcenter.add_vm("old", MIB)
    vcenter.override(vcenter.moref("old"), "capability.changeTrackingSupported", FALSE)
    taken = open_source().take_snapshot(ask(uuid))
    assert any("older than version 7" in warning for warning in taken.warnings)


def test_a_user_who_may_not_switch_it_on_gets_a_backup_and_the_reason(
    vcenter: Vcenter, open_source: OpenSource
) -> None:
    uuid = vcenter.add_vm("forbidden", MIB)
    privilege = "VirtualMachine.Config.ChangeTracking"
    vcenter.inject("ReconfigVM_Task", "NoPermission", privilegeId=privilege)
    taken = open_source().take_snapshot(ask(uuid))
    assert any(privilege in warning for warning in taken.warnings)


def test_a_template_is_refused_before_anything_is_done(
    vcenter: Vcenter, open_source: OpenSource
) -> None:
    uuid = vcenter.add_vm("template", MIB)
    vcenter.override(vcenter.moref("template"), "config.template", TRUE)
    error = refuse(open_source(), ask(uuid))
    assert isinstance(error, Conflict)
    assert error.kind == "vm-is-template"
    assert vcenter.list_snapshots("template") == []


def test_a_vm_whose_host_is_away_waits(vcenter: Vcenter, open_source: OpenSource) -> None:
    uuid = vcenter.add_vm("cut-off", MIB)
    state = value("VirtualMachineConnectionState", "disconnected")
    vcenter.override(vcenter.moref("cut-off"), "runtime.connectionState", state)
    error = refuse(open_source(), ask(uuid))
    assert isinstance(error, Unavailable)
    assert error.kind == "vsphere-unreachable"


def test_disks_that_cannot_be_held_are_refused(vcenter: Vcenter, open_source: OpenSource) -> None:
    uuid = vcenter.add_vm("odd", MIB, MIB)
    vcenter.edit_disk("odd", 2001, diskMode="independent_persistent")
    assert refuse(open_source(), ask(uuid, 2000, 2001)).kind == "disk-unsupported"
    assert refuse(open_source(), ask(uuid, 2007)).kind == "disk-unknown"
    assert vcenter.list_snapshots("odd") == []


def test_a_disk_that_is_not_in_the_snapshot_fails_the_backup_and_leaves_nothing(
    vcenter: Vcenter, open_source: OpenSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = vcenter.add_vm("raced", MIB)
    monkeypatch.setattr(snapshots, "read_disks", lambda _session, _moref: {})
    assert refuse(open_source(), ask(uuid)).kind == "disk-unknown"
    assert vcenter.list_snapshots("raced") == []


def test_a_snapshot_that_goes_at_once_is_lost(
    vcenter: Vcenter, open_source: OpenSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = vcenter.add_vm("robbed", MIB)
    monkeypatch.setattr(snapshots, "find", lambda *_: None)
    assert refuse(open_source(), ask(uuid)).kind == "snapshot-lost"
    assert vcenter.list_snapshots("robbed") == []


def test_what_a_failure_leaves_is_told_where_it_cannot_be_removed(
    vcenter: Vcenter,
    open_source: OpenSource,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    uuid = vcenter.add_vm("leaving", MIB)
    monkeypatch.setattr(snapshots, "find", lambda *_: None)
    vcenter.inject("RemoveSnapshot_Task", "NoPermission", privilegeId="A.B")
    assert refuse(open_source(), ask(uuid)).kind == "snapshot-lost"
    assert "may be left" in caplog.text


# Tasks.


def test_another_task_in_the_way_is_waited_for(vcenter: Vcenter, open_source: OpenSource) -> None:
    uuid = vcenter.add_vm("busy", MIB)
    vcenter.inject("CreateSnapshot_Task", "TaskInProgress", times=3)
    assert open_source().take_snapshot(ask(uuid)).moment


def test_one_that_never_ends_is_given_up(vcenter: Vcenter, open_source: OpenSource) -> None:
    uuid = vcenter.add_vm("blocked", MIB)
    vcenter.inject("CreateSnapshot_Task", "TaskInProgress", times=1000)
    assert refuse(open_source(), ask(uuid)).kind == "vsphere-busy"


def test_a_task_that_takes_too_long_is_given_up(
    vcenter: Vcenter, open_source: OpenSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = vcenter.add_vm("slow", MIB)
    real = tasks._look

    def look(session: Any, moref: str, *, doing: str) -> Any:
        if doing == "take a snapshot":
            return {"info.state": "running"}
        return real(session, moref, doing=doing)

    monkeypatch.setattr(tasks, "_look", look)
    assert refuse(open_source(), ask(uuid)).kind == "vsphere-task-slow"


# Rule 15.


def test_disks_that_need_consolidation_get_it(vcenter: Vcenter, open_source: OpenSource) -> None:
    uuid = vcenter.add_vm("split", MIB)
    source = open_source()
    taken = source.take_snapshot(ask(uuid))
    moref = vcenter.moref("split")
    vcenter.override(moref, "runtime.consolidationNeeded", TRUE)
    vcenter.fail_task("ConsolidateVMDisks_Task", "FileLocked", message="somebody holds it", times=4)
    with pytest.raises(Unavailable) as caught:
        remove(source, taken.reference)
    assert caught.value.kind == "consolidation-needed"
    assert "somebody holds it" in caught.value.message
    assert vcenter.list_snapshots("split") == []
    vcenter.trouble.properties.clear()
    remove(source, taken.reference)


def test_a_consolidation_that_helps_is_enough(
    vcenter: Vcenter, open_source: OpenSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = vcenter.add_vm("mended", MIB)
    source = open_source()
    taken = source.take_snapshot(ask(uuid))
    answers = [True, True, True, True, False]
    monkeypatch.setattr(snapshots, "_needs_consolidation", lambda *_: answers.pop(0))
    vcenter.fail_task("ConsolidateVMDisks_Task", "FileLocked", times=4)
    remove(source, taken.reference)
    assert answers == []


def test_a_snapshot_that_goes_while_it_is_removed_is_gone(
    vcenter: Vcenter, open_source: OpenSource
) -> None:
    uuid = vcenter.add_vm("twice", MIB)
    source = open_source()
    taken = source.take_snapshot(ask(uuid))
    gone = ("VirtualMachineSnapshot", taken.reference["snapshot"])
    vcenter.inject("RemoveSnapshot_Task", "ManagedObjectNotFound", obj=gone)
    remove(source, taken.reference)
    remove(source, taken.reference)
    assert vcenter.list_snapshots("twice") == []


def test_a_removal_that_is_refused_is_an_error(vcenter: Vcenter, open_source: OpenSource) -> None:
    uuid = vcenter.add_vm("stuck", MIB)
    source = open_source()
    taken = source.take_snapshot(ask(uuid))
    vcenter.fail_task("RemoveSnapshot_Task", "FileLocked")
    with pytest.raises(Unavailable):
        remove(source, taken.reference)
    remove(source, taken.reference)


# Reading.


def test_a_snapshot_that_somebody_removes_is_lost_for_good(
    vcenter: Vcenter, open_source: OpenSource
) -> None:
    uuid = vcenter.add_vm("bereft", MIB)
    source = open_source()
    taken = source.take_snapshot(ask(uuid))

    def read_on() -> None:
        with source.open_disk(taken.reference, 2000) as view:
            remove(open_source(), taken.reference)
            Client.connect(view.address)

    with pytest.raises(NotFound) as caught:
        read_on()
    assert caught.value.kind == "snapshot-lost"
    with pytest.raises(NotFound) as caught, source.open_disk(taken.reference, 2000):
        pass
    assert caught.value.kind == "snapshot-lost"
    vcenter.destroy("bereft")
    with pytest.raises(NotFound) as caught, source.open_disk(taken.reference, 2000):
        pass
    assert caught.value.kind == "snapshot-lost"


def test_other_failures_of_the_reading_stay_what_they_are(
    vcenter: Vcenter, open_source: OpenSource
) -> None:
    uuid = vcenter.add_vm("failing", MIB)
    source = open_source()
    taken = source.take_snapshot(ask(uuid))
    for kind in ("nbd-lost", "tracking-lost"):
        with pytest.raises(Unavailable) as caught, source.open_disk(taken.reference, 2000):
            raise Unavailable("broken", kind=kind)
        assert caught.value.kind == kind

    def break_off() -> None:
        with source.open_disk(taken.reference, 2000):
            vcenter.inject("RetrievePropertiesEx", "HostNotReachable", times=2)
            raise Unavailable("broken", kind="nbd-lost")

    with pytest.raises(Unavailable) as caught:
        break_off()
    assert caught.value.kind == "nbd-lost"
    vcenter.clear_trouble()
    vcenter.inject("RetrievePropertiesEx", "HostNotReachable")
    with pytest.raises(Unavailable) as caught, source.open_disk(taken.reference, 2000):
        pass
    assert caught.value.kind == "vsphere-unreachable"


def test_a_disk_that_the_snapshot_does_not_hold_is_unknown(
    vcenter: Vcenter, open_source: OpenSource
) -> None:
    uuid = vcenter.add_vm("single", MIB)
    source = open_source()
    taken = source.take_snapshot(ask(uuid))
    with pytest.raises(NotFound) as caught, source.open_disk(taken.reference, 2001):
        pass
    assert caught.value.kind == "disk-unknown"


def test_without_a_base_nobody_can_tell_what_changed(
    vcenter: Vcenter, open_source: OpenSource
) -> None:
    uuid = vcenter.add_vm("baseless", MIB)
    source = open_source()
    taken = source.take_snapshot(ask(uuid))
    with source.open_disk(taken.reference, 2000) as view, pytest.raises(Unavailable) as caught:
        list(view.list_changed())
    assert caught.value.kind == "tracking-lost"


def test_a_revert_means_a_full_read(vcenter: Vcenter, open_source: OpenSource) -> None:
    """Rule 11."""
    uuid = vcenter.add_vm("reverted", MIB)
    source = open_source()
    remove(source, source.take_snapshot(ask(uuid)).reference)  # switches tracking on
    vcenter.take_snapshot("reverted", "mine")
    vcenter.write("reverted", 2000, 0, b"after mine")
    base = source.take_snapshot(ask(uuid))
    # vcsim dies of the removal of a snapshot's parent only; ours has no child.
    remove(source, base.reference)
    vcenter.revert("reverted", "mine")
    taken = source.take_snapshot(ask(uuid, base=base.disks[0].change_id))
    assert "went back" in str(taken.disks[0].base_lost_reason)


def test_where_disks_cannot_be_read_no_snapshot_is_taken(
    vcenter: Vcenter, open_source: OpenSource, tmp_path: Path
) -> None:
    uuid = vcenter.add_vm("unreadable", MIB)
    source = open_source(reader="vddk", file_dir=None, vddk_libdir=str(tmp_path))
    error = refuse(source, ask(uuid))
    assert isinstance(error, Unavailable)
    assert error.kind.startswith("vddk-")
    assert vcenter.list_snapshots("unreadable") == []


def test_production_reads_by_vddk(vcenter: Vcenter, tmp_path: Path) -> None:
    settings = settings_of(vcenter, reader="vddk", file_dir=None, disks_per_host=7)
    reader = create_reader(settings, tmp_path, ManualClock())
    assert isinstance(reader, VddkReader)
    assert reader.disks_per_host == 7
    assert reader.slots.folder == tmp_path / "slots"
