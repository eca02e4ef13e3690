"""What stands in for a vCenter does what a vCenter would: a client that is not ours looks."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from http.client import HTTPException
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from pyVmomi import vim, vmodl

from demo.vcenter.content import AREAS_MAX, BLOCK
from demo.vcenter.lab import Vcenter, value
from sendense.core.units import GIB, MIB, TIB
from tests.servers.process import wait_until
from tests.vcsim.client import Client, list_areas

SECONDS_MAX = 30.0


@pytest.fixture
def client(vcenter: Vcenter) -> Iterator[Client]:
    """A session of its own."""
    client = Client(vcenter)
    yield client
    client.close()


class Machine:
    """A VM with a disk, tracking its changes."""

    def __init__(self, lab: Vcenter, client: Client, name: str, *sizes: int) -> None:
        self.lab, self.client, self.name = lab, client, name
        lab.add_vm(name, *sizes)
        lab.reconfigure(name, changeTrackingEnabled=True)
        self.sizes = dict(enumerate(sizes, start=2000))

    @property
    def moref(self) -> str:
        """Its reference."""
        return self.lab.moref(self.name)

    def write(self, offset: int, data: bytes, key: int = 2000) -> None:
        """Write as the guest does."""
        self.lab.write(self.name, key, offset, data)

    def take_snapshot(self) -> tuple[Any, str]:
        """Take a snapshot; return it, and the change id of the first disk."""
        snapshot = self.client.take_snapshot(self.moref)
        change_id = self.client.find_change_ids(snapshot)[2000]
        assert change_id is not None
        return snapshot, change_id

    def list_areas(self, snapshot: Any, change_id: str, key: int = 2000) -> list[tuple[int, int]]:
        """Return what changed in a disk."""
        return list_areas(self.list_pages(snapshot, change_id, key))

    def list_pages(self, snapshot: Any, change_id: str, key: int = 2000) -> list[Any]:
        """Return the answers to what changed in a disk."""
        pages = self.client.list_pages(self.moref, snapshot, key, change_id, self.sizes[key])
        return list(pages)


def content_of(lab: Vcenter, snapshot: Any, key: int = 2000) -> Path:
    """Return where the reader `file` looks."""
    path: Path = lab.file_dir / snapshot._moId / f"{key}.raw"
    assert path == lab.snapshot_content(snapshot._moId, key)
    return path


# What a snapshot holds.


def test_a_snapshot_holds_all_disks_as_they_were_at_its_moment(
    vcenter: Vcenter, client: Client
) -> None:
    vm = Machine(vcenter, client, "held", MIB, 2 * MIB)
    vm.write(0, b"before")
    vm.write(MIB, b"on the other", key=2001)
    snapshot, _ = vm.take_snapshot()
    vm.write(0, b"after!")
    vm.write(MIB, bytes(12), key=2001)
    assert content_of(vcenter, snapshot).read_bytes() == b"before".ljust(MIB, b"\0")
    other = content_of(vcenter, snapshot, 2001).read_bytes()
    assert other == bytes(MIB) + b"on the other".ljust(MIB, b"\0")
    assert vcenter.live("held", 2000).read_bytes() == b"after!".ljust(MIB, b"\0")


def test_a_guest_that_never_stops_writing_is_held_at_one_moment(
    vcenter: Vcenter, client: Client
) -> None:
    vm = Machine(vcenter, client, "writing", MIB, MIB)
    files, done = [vcenter.live("writing", key) for key in vm.sizes], threading.Event()

    def count() -> None:
        number = 0
        while not done.is_set():
            number += 1
            for path in files:
                vcenter.content.write(path, 0, number.to_bytes(8, "little"))

    thread = threading.Thread(target=count)
    thread.start()
    try:
        for _ in range(5):
            snapshot, _ = vm.take_snapshot()
            one, other = (
                int.from_bytes(content_of(vcenter, snapshot, key).read_bytes()[:8], "little")
                for key in vm.sizes
            )
            assert one - other in {0, 1}  # the guest writes to the first disk first
    finally:
        done.set()
        thread.join()


def test_a_removed_snapshot_cannot_be_read_but_compared_with(
    vcenter: Vcenter, client: Client
) -> None:
    vm = Machine(vcenter, client, "removed", MIB)
    first, base = vm.take_snapshot()
    path = content_of(vcenter, first)
    client.remove_snapshot(first)
    assert not path.exists()
    assert vcenter.list_snapshots("removed") == []
    vm.write(BLOCK, b"x")
    second, _ = vm.take_snapshot()
    assert vm.list_areas(second, base) == [(BLOCK, BLOCK)]


def test_a_removal_that_fails_leaves_the_content(vcenter: Vcenter, client: Client) -> None:
    vm = Machine(vcenter, client, "kept", MIB)
    snapshot, _ = vm.take_snapshot()
    vcenter.fail_task("RemoveSnapshot_Task", "TaskInProgress")
    with pytest.raises(vim.fault.TaskInProgress):
        client.remove_snapshot(snapshot)
    assert content_of(vcenter, snapshot).exists()


def test_a_user_s_snapshots_are_there_for_clients_too(vcenter: Vcenter, client: Client) -> None:
    vm = Machine(vcenter, client, "user", MIB)
    before = vcenter.take_snapshot("user", "mine")
    client.take_snapshot(vm.moref)
    assert vcenter.list_snapshots("user") == ["mine", "ours"]
    tree = client.read(client.vm(vm.moref), "snapshot")["snapshot"]
    assert tree.rootSnapshotList[0].snapshot._moId == before
    vcenter.remove_snapshot("user", "ours")
    assert vcenter.list_snapshots("user") == ["mine"]


# Change tracking.


def test_change_ids_are_of_a_snapshot_s_disks_and_count_up(
    vcenter: Vcenter, client: Client
) -> None:
    vm = Machine(vcenter, client, "counted", MIB, MIB)
    first = client.find_change_ids(client.take_snapshot(vm.moref))
    second = client.find_change_ids(client.take_snapshot(vm.moref))
    assert set(first) == set(second) == {2000, 2001}
    for key in first:
        uuid, _, number = str(first[key]).rpartition("/")
        assert number == "1"
        assert second[key] == f"{uuid}/2"
    assert first[2000] != first[2001]
    assert set(client.find_change_ids(client.vm(vm.moref)).values()) == {None}


def test_where_tracking_is_off_there_is_none(vcenter: Vcenter, client: Client) -> None:
    vcenter.add_vm("untracked", MIB)
    snapshot = client.take_snapshot(vcenter.moref("untracked"))
    assert client.find_change_ids(snapshot) == {2000: None}


def test_what_changed_is_told_since_any_moment(vcenter: Vcenter, client: Client) -> None:
    vm = Machine(vcenter, client, "changing", 4 * MIB)
    vm.write(0, b"a")
    _, first = vm.take_snapshot()
    vm.write(2 * BLOCK - 1, b"bb")
    middle, second = vm.take_snapshot()
    vm.write(4 * MIB - 1, b"c")
    last, third = vm.take_snapshot()
    end = (4 * MIB - BLOCK, BLOCK)
    assert vm.list_areas(middle, first) == [(BLOCK, 2 * BLOCK)]
    assert vm.list_areas(last, second) == [end]
    assert vm.list_areas(last, first) == [(BLOCK, 2 * BLOCK), end]
    assert vm.list_areas(last, third) == []
    assert vm.list_areas(last, "*") == [(0, 3 * BLOCK), end]


def test_many_changes_come_in_pages_that_lie_end_to_end(vcenter: Vcenter, client: Client) -> None:
    """Rule 12."""
    vm = Machine(vcenter, client, "paged", GIB)
    _, base = vm.take_snapshot()
    changes = [number * 3 * BLOCK for number in range(2500)]
    file = vcenter.live("paged", 2000)
    for offset in changes:
        vcenter.content.write(file, offset, b"x")
    snapshot, _ = vm.take_snapshot()
    pages = vm.list_pages(snapshot, base)
    assert [len(page.changedArea) for page in pages] == [AREAS_MAX, 500]
    assert sum(page.length for page in pages) == GIB
    assert all(one.startOffset + one.length == other.startOffset for one, other in pairwise(pages))
    assert list_areas(pages) == [(offset, BLOCK) for offset in changes]


def test_a_page_may_be_empty_with_more_behind_it(vcenter: Vcenter, client: Client) -> None:
    """Rule 12."""
    vm = Machine(vcenter, client, "gaps", 4 * MIB)
    _, base = vm.take_snapshot()
    vm.write(3 * MIB, b"x")
    snapshot, _ = vm.take_snapshot()
    vcenter.content.span_bytes_max = MIB
    try:
        pages = vm.list_pages(snapshot, base)
    finally:
        vcenter.content.span_bytes_max = None
    assert [len(page.changedArea or ()) for page in pages] == [0, 0, 0, 1]


@pytest.mark.parametrize("start", [MIB, 2 * MIB, -1])
def test_nobody_asks_at_or_behind_the_end(vcenter: Vcenter, client: Client, start: int) -> None:
    """Rule 12."""
    vm = Machine(vcenter, client, f"end{start}", MIB)
    snapshot, change_id = vm.take_snapshot()
    with pytest.raises(vmodl.fault.InvalidArgument) as caught:
        client.vm(vm.moref).QueryChangedDiskAreas(snapshot, 2000, start, change_id)
    assert caught.value.invalidProperty == "startOffset"


def test_a_moment_that_is_not_known_is_a_fault_of_the_file(
    vcenter: Vcenter, client: Client
) -> None:
    """Rule 10."""
    vm = Machine(vcenter, client, "unknown", MIB)
    snapshot, change_id = vm.take_snapshot()
    for other in ("52 de/7", change_id.replace("/1", "/2"), "nonsense", ""):
        with pytest.raises(vim.fault.FileFault):
            vm.list_areas(snapshot, other)


def test_after_a_reset_the_old_moments_mean_nothing(vcenter: Vcenter, client: Client) -> None:
    """Rule 10."""
    vm = Machine(vcenter, client, "reset", MIB)
    _, base = vm.take_snapshot()
    vcenter.reset_tracking("reset", 2000)
    snapshot, change_id = vm.take_snapshot()
    assert change_id.rpartition("/")[0] != base.rpartition("/")[0]
    with pytest.raises(vim.fault.FileFault):
        vm.list_areas(snapshot, base)
    assert vm.list_areas(snapshot, change_id) == []


@pytest.mark.parametrize("is_past", [True, False])
def test_tracking_that_was_off_in_between_begins_anew(
    vcenter: Vcenter, client: Client, *, is_past: bool
) -> None:
    """Rule 10: whether a client switched it, or somebody past the stand-in."""
    vm = Machine(vcenter, client, f"off-{is_past}", MIB)
    first, base = vm.take_snapshot()
    client.remove_snapshot(first)
    for wanted in (False, True):
        if is_past:
            vcenter.reconfigure(vm.name, changeTrackingEnabled=wanted)
        else:
            spec = vim.vm.ConfigSpec(changeTrackingEnabled=wanted)
            client.wait(client.vm(vm.moref).ReconfigVM_Task(spec))
    snapshot, _ = vm.take_snapshot()
    with pytest.raises(vim.fault.FileFault):
        vm.list_areas(snapshot, base)


def test_a_revert_takes_content_and_numbers_back(vcenter: Vcenter, client: Client) -> None:
    """Rule 11: a moment of the time that was undone means another one as soon as it comes again."""
    vm = Machine(vcenter, client, "reverted", MIB)
    vm.write(0, b"old")
    target, base = vm.take_snapshot()
    vm.write(0, b"new")
    vm.write(4 * BLOCK, b"new")
    _, undone = vm.take_snapshot()
    client.wait(target.RevertToSnapshot_Task())
    assert vcenter.live("reverted", 2000).read_bytes() == b"old".ljust(MIB, b"\0")
    with pytest.raises(vim.fault.FileFault):
        vm.list_areas(target, undone)
    snapshot, again = vm.take_snapshot()
    assert again == undone
    assert vm.list_areas(snapshot, base) == []
    assert vm.list_areas(snapshot, undone) == []  # as vCenter: it hides what the revert changed


def test_a_tracking_that_lies_hides_as_many_blocks_as_it_was_told(
    vcenter: Vcenter, client: Client
) -> None:
    vm = Machine(vcenter, client, "lying", MIB)
    _, base = vm.take_snapshot()
    vm.write(0, b"x")
    vm.write(4 * BLOCK, b"x")
    snapshot, _ = vm.take_snapshot()
    vcenter.content.skipped = {2000: 1}
    try:
        assert vm.list_areas(snapshot, base) == [(4 * BLOCK, BLOCK)]
        assert vm.list_areas(snapshot, base) == [(0, BLOCK), (4 * BLOCK, BLOCK)]
    finally:
        vcenter.content.skipped = {}


def test_a_disk_of_two_tebibytes_costs_what_is_in_it(vcenter: Vcenter, client: Client) -> None:
    began = time.monotonic()
    vm = Machine(vcenter, client, "huge", 2 * TIB)
    vm.write(TIB, b"x" * MIB)
    _, base = vm.take_snapshot()
    vm.write(2 * TIB - 1, b"y")
    snapshot, _ = vm.take_snapshot()
    assert vm.list_areas(snapshot, base) == [(2 * TIB - BLOCK, BLOCK)]
    assert vm.list_areas(snapshot, "*") == [(TIB, MIB), (2 * TIB - BLOCK, BLOCK)]
    told = content_of(vcenter, snapshot).stat()
    assert told.st_size == 2 * TIB
    assert told.st_blocks * 512 < 2 * MIB
    assert time.monotonic() - began < SECONDS_MAX  # half a second on an idle machine


# Disks and VMs that change.


def test_another_disk_under_the_same_key_is_empty_and_tracked_anew(
    vcenter: Vcenter, client: Client
) -> None:
    """Rule 5."""
    vm = Machine(vcenter, client, "reused", MIB)
    vm.write(0, b"of the old one")
    first, base = vm.take_snapshot()
    client.remove_snapshot(first)
    vcenter.remove_disk("reused", 2000)
    vcenter.add_disk("reused", 2000, MIB)
    snapshot, change_id = vm.take_snapshot()
    assert content_of(vcenter, snapshot).read_bytes() == bytes(MIB)
    assert change_id.rpartition("/")[0] != base.rpartition("/")[0]


def test_a_grown_disk_has_zeros_at_its_end(vcenter: Vcenter, client: Client) -> None:
    vm = Machine(vcenter, client, "grown", MIB)
    vm.write(0, b"x")
    vcenter.grow_disk("grown", 2000, 3 * MIB)
    snapshot, _ = vm.take_snapshot()
    assert content_of(vcenter, snapshot).read_bytes() == b"x".ljust(3 * MIB, b"\0")


def test_a_vm_out_of_the_inventory_and_back_keeps_disks_and_tracking(
    vcenter: Vcenter, client: Client
) -> None:
    """Rule 4."""
    vm = Machine(vcenter, client, "again", MIB)
    vm.write(0, b"x")
    first, base = vm.take_snapshot()
    client.remove_snapshot(first)
    uuid, moref = vcenter.get_vm("again").config.instanceUuid, vm.moref
    vcenter.reregister("again")
    assert vm.moref != moref
    assert vcenter.get_vm("again").config.instanceUuid == uuid
    vcenter.reconfigure("again", changeTrackingEnabled=True)
    vm.write(BLOCK, b"y")
    snapshot, _ = vm.take_snapshot()
    assert vm.list_areas(snapshot, base) == [(BLOCK, BLOCK)]
    assert content_of(vcenter, snapshot).read_bytes()[:1] == b"x"


# Trouble.


@pytest.mark.parametrize(
    ("name", "kind", "members"),
    [
        (
            "NoPermission",
            vim.fault.NoPermission,
            {
                "object": ("Folder", "group-d1"),
                "privilegeId": "VirtualMachine.Config.ChangeTracking",
            },
        ),
        ("RestrictedVersion", vim.fault.RestrictedVersion, {}),
        ("ApplicationQuiesceFault", vim.fault.ApplicationQuiesceFault, {}),
        ("FileFault", vim.fault.FileFault, {"file": "[ds] x/x.vmdk"}),
        ("FileLocked", vim.fault.FileLocked, {"file": "[ds] x/x.vmdk"}),
        ("InvalidState", vim.fault.InvalidState, {}),
        ("NotAuthenticated", vim.fault.NotAuthenticated, {"privilegeId": "System.View"}),
        ("TaskInProgress", vim.fault.TaskInProgress, {"task": ("Task", "task-7")}),
    ],
)
def test_a_call_is_refused_as_often_as_wanted(
    vcenter: Vcenter, client: Client, name: str, kind: type[Exception], members: dict[str, Any]
) -> None:
    vcenter.inject("CurrentTime", name, times=2, message=f"because of {name}", **members)
    service = vim.ServiceInstance("ServiceInstance", client.stub)
    for _ in range(2):
        with pytest.raises(kind) as caught:
            service.CurrentTime()
        fault: Any = caught.value
        assert fault.msg == f"because of {name}"
        for member, wanted in members.items():
            told = getattr(fault, member)
            text = wanted if isinstance(wanted, str) else wanted[1]
            assert getattr(told, "_moId", told) == text
    assert service.CurrentTime() is not None


def test_a_task_fails_without_having_done_anything(vcenter: Vcenter, client: Client) -> None:
    vm = Machine(vcenter, client, "failing", MIB)
    vcenter.fail_task("CreateSnapshot_Task", "ApplicationQuiesceFault", message="the guest is busy")
    with pytest.raises(vim.fault.ApplicationQuiesceFault) as caught:
        client.take_snapshot(vm.moref)
    fault: Any = caught.value
    assert fault.msg == "the guest is busy"
    assert vcenter.list_snapshots("failing") == []
    vm.take_snapshot()
    assert vcenter.list_snapshots("failing") == ["ours"]


def test_properties_are_told_as_wanted_of_one_object_only(vcenter: Vcenter, client: Client) -> None:
    wanted: dict[str, tuple[str | None, Any]] = {
        "runtime.consolidationNeeded": (value("xsd:boolean", "true"), True),
        "config.template": (value("xsd:boolean", "true"), True),
        "guest.toolsRunningStatus": (value("xsd:string", "guestToolsRunning"), "guestToolsRunning"),
        "config.instanceUuid": (None, None),
    }
    vcenter.add_vm("told", MIB)
    vcenter.add_vm("other", MIB)
    for path, (text, _) in wanted.items():
        vcenter.override(vcenter.moref("told"), path, text)
    told = client.read(client.vm(vcenter.moref("told")), "name", *wanted)
    assert told.pop("name") == "told"
    assert told == {path: shown for path, (_, shown) in wanted.items() if shown is not None}
    other = client.read(client.vm(vcenter.moref("other")), *wanted)
    assert other["config.template"] is False
    assert other["config.instanceUuid"]
    vcenter.clear_trouble()
    assert (
        client.read(client.vm(vcenter.moref("told")), "config.template")["config.template"] is False
    )


def test_an_ended_session_is_told_of_with_every_call(vcenter: Vcenter, client: Client) -> None:
    """Rule 2."""
    vm = Machine(vcenter, client, "expired", MIB)
    snapshot, change_id = vm.take_snapshot()
    assert vcenter.expire_sessions() >= 1
    with pytest.raises(vim.fault.NotAuthenticated):
        client.read(client.vm(vm.moref), "name")
    with pytest.raises(vim.fault.NotAuthenticated):
        vm.list_areas(snapshot, change_id)
    client.login()
    assert vm.list_areas(snapshot, change_id) == []


def test_an_ended_session_may_look_like_an_empty_inventory(
    vcenter: Vcenter, client: Client
) -> None:
    """Rule 3."""
    vcenter.add_vm("hidden", MIB)
    assert "hidden" in client.list_names()
    vcenter.trouble.is_empty = True
    assert client.list_names() == []
    assert client.list_names() == []
    client.login()
    assert "hidden" in client.list_names()


def test_a_vcenter_that_was_away_goes_on_as_if_nothing_had_been(
    vcenter: Vcenter, client: Client
) -> None:
    vcenter.add_vm("patient", MIB)
    with vcenter.outage():
        for _ in range(2):
            with pytest.raises(HTTPException):
                client.list_names()
    assert "patient" in client.list_names()


def test_a_vcenter_that_starts_again_knows_no_session(vcenter: Vcenter, client: Client) -> None:
    with vcenter.outage(is_restart=True), pytest.raises(HTTPException):
        client.list_names()
    with pytest.raises(vim.fault.NotAuthenticated):
        client.list_names()
    client.login()
    client.list_names()


def test_a_call_may_do_its_work_and_nobody_learns_of_it(vcenter: Vcenter, client: Client) -> None:
    vm = Machine(vcenter, client, "lost", MIB)
    vm.write(0, b"x")
    vcenter.trouble.lost_answers["CreateSnapshot_Task"] = 1
    with pytest.raises(HTTPException):
        client.take_snapshot(vm.moref)
    (snapshot,) = client.read(client.vm(vm.moref), "rootSnapshot")["rootSnapshot"]
    assert content_of(vcenter, snapshot).read_bytes() == b"x".ljust(MIB, b"\0")
    client.remove_snapshot(snapshot)
    vm.take_snapshot()


def test_a_method_takes_its_time_and_others_do_not_wait(vcenter: Vcenter, client: Client) -> None:
    vcenter.trouble.delays["CurrentTime"] = 4.0
    other = Client(vcenter)
    ended: list[float] = []

    def ask() -> None:
        vim.ServiceInstance("ServiceInstance", other.stub).CurrentTime()
        ended.append(time.monotonic())

    began = time.monotonic()
    thread = threading.Thread(target=ask)
    thread.start()
    client.list_names()
    assert not ended
    thread.join()
    other.close()
    assert ended[0] - began >= 4.0


def test_all_calls_of_many_clients_are_counted(vcenter: Vcenter) -> None:
    before = vcenter.calls["CurrentTime"]
    clients = [Client(vcenter) for _ in range(8)]

    def ask(client: Client) -> None:
        for _ in range(50):
            vim.ServiceInstance("ServiceInstance", client.stub).CurrentTime()

    threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in clients:
        client.close()
    assert vcenter.calls["CurrentTime"] - before == 400


def test_who_hangs_up_leaves_no_connection_behind(make_vcenter: Callable[..., Vcenter]) -> None:
    lab = make_vcenter()
    simulator = psutil.Process(lab.pid)

    def count() -> int:
        return len([one for one in simulator.net_connections() if one.status == "ESTABLISHED"])

    assert count() == 1  # the lab's own session
    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(closing(Client(lab)))
        assert count() == 11
    wait_until(lambda: count() == 1, SECONDS_MAX, "connections to end")


def test_two_vcenters_have_nothing_in_common(make_vcenter: Callable[..., Vcenter]) -> None:
    one, other = make_vcenter("-vms", "2"), make_vcenter("-vms", "3")
    with closing(Client(one)) as client, closing(Client(other)) as second:
        assert len(client.list_names()) == 2
        assert len(second.list_names()) == 3
        identities = {each.content.about.instanceUuid for each in (client, second)}
        assert len(identities) == 2
    with pytest.raises(vim.fault.InvalidLogin):
        Client(one, password=other.password)
    assert one.certificate_pem != other.certificate_pem


# Who may ask.


def test_a_wrong_password_is_refused(vcenter: Vcenter) -> None:
    with pytest.raises(vim.fault.InvalidLogin):
        Client(vcenter, password="wrong")  # noqa: S106 - it is wrong


def test_nothing_is_told_without_a_login(vcenter: Vcenter) -> None:
    vcenter.add_vm("secret", MIB)
    client = Client(vcenter, password=None)
    with pytest.raises(vim.fault.NotAuthenticated):
        client.list_names()
    with pytest.raises(vim.fault.NotAuthenticated):
        client.read(client.vm(vcenter.moref("secret")), "name")
    client.close()


def test_nothing_is_told_after_the_logout(vcenter: Vcenter, client: Client) -> None:
    vcenter.add_vm("left", MIB)
    client.content.sessionManager.Logout()
    with pytest.raises(vim.fault.NotAuthenticated):
        client.read(client.vm(vcenter.moref("left")), "name")
