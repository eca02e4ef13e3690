"""A vCenter to try things on: simulator, stand-in, and hands to change what is in it."""

import contextlib
import secrets
import ssl
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from pyVmomi import vim, vmodl
from pyVmomi.SoapAdapter import SoapStubAdapter

from demo.vcenter import simulator, soap
from demo.vcenter.content import Content
from demo.vcenter.simulator import USER, Simulator
from demo.vcenter.standin import StandIn

KEY_FIRST = 2000
TASK_SECONDS_MAX = 60.0
POLL_SECONDS = 0.01
API_VERSION = "vim.version.version11"


class Vcenter:
    """A simulated vCenter that tracks changes and holds disk content.

    Attributes:
        host: `127.0.0.1:PORT`, where a source finds it.
        file_dir: for the reader `file`.
        trouble: what is to go wrong; see standin.
    """

    def __init__(self, folder: Path, *options: str, password: str = "") -> None:
        self.username, self.password = USER, password or secrets.token_urlsafe(12)
        self.file_dir = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.content = Content(folder)
        self._simulator = Simulator(simulator.build(), self.password, *options)
        try:
            self._login()
            self._standin = StandIn(
                self._simulator.port, self.content, self._describe_disks, self._end_of_task
            )
        except BaseException:
            self._simulator.close()
            raise
        self.trouble = self._standin.trouble
        self.calls = self._standin.calls
        self.snapshot_names = self._standin.snapshot_names
        self.host = f"127.0.0.1:{self._standin.port}"
        self.port, self.simulator_port = self._standin.port, self._simulator.port
        self.certificate_pem = self._standin.certificate_pem

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything."""
        self._standin.close()
        self._stub.DropConnections()
        self._simulator.close()

    @property
    def is_running(self) -> bool:
        """Whether the simulator lives."""
        return self._simulator.is_running

    @property
    def pid(self) -> int:
        """The simulator's process."""
        return self._simulator.pid

    def read_log(self) -> str:
        """Return the end of what the simulator said."""
        return self._simulator.read_log()

    def describe(self, **more: object) -> dict[str, object]:
        """Return the configuration of a source that reads this vCenter's files."""
        return {
            "host": self.host,
            "certificate_pem": self.certificate_pem,
            "reader": "file",
            "file_dir": str(self.file_dir),
            **more,
        }

    @property
    def credentials(self) -> dict[str, str]:
        """Return who may log in."""
        return {"username": self.username, "password": self.password}

    # What is in it.

    def add_vm(self, name: str, *sizes: int, powered_on: bool = False) -> str:
        """Create a VM with disks of these sizes, keys 2000 and up; return its instance uuid."""
        store = self._content.rootFolder.childEntity[0].datastore[0].name
        disks = [
            _add_disk(KEY_FIRST + number, number, size, f"[{store}] {name}/{name}-{number}.vmdk")
            for number, size in enumerate(sizes)
        ]
        vm = self._create(name, disks, f"[{store}]")
        if powered_on:
            self._do(vm.PowerOnVM_Task())
        return str(vm.config.instanceUuid)

    def _create(self, name: str, disks: list[Any], path: str, **more: object) -> Any:
        controller = vim.vm.device.ParaVirtualSCSIController(
            key=1000, busNumber=0, sharedBus="noSharing"
        )
        added = vim.vm.device.VirtualDeviceSpec(operation="add", device=controller)
        spec = vim.vm.ConfigSpec(
            name=name,
            guestId="debian12_64Guest",
            numCPUs=2,
            memoryMB=2048,
            files=vim.vm.FileInfo(vmPathName=path),
            deviceChange=[added, *disks],
            **more,
        )
        folder = self._content.rootFolder.childEntity[0].vmFolder
        return self._do(folder.CreateVM_Task(config=spec, pool=self._find(vim.ResourcePool)))

    def get_vm(self, name: str) -> Any:
        """Return the managed object of a VM."""
        for datacenter in self._content.rootFolder.childEntity:
            path = f"{datacenter.name}/vm/{name}"
            vm = self._content.searchIndex.FindByInventoryPath(path)
            if vm is not None:
                return vm
        raise LookupError(name)

    def moref(self, name: str) -> str:
        """Return a VM's reference."""
        return _moref(self.get_vm(name))

    def power(self, name: str, *, on: bool) -> None:
        """Switch a VM on or off."""
        vm = self.get_vm(name)
        self._do(vm.PowerOnVM_Task() if on else vm.PowerOffVM_Task())

    def rename(self, name: str, other: str) -> None:
        """Give a VM another name."""
        self._do(self.get_vm(name).Rename_Task(other))

    def reregister(self, name: str) -> None:
        """Let a VM get another reference, as one does that is taken out of the inventory and back.

        vcsim registers without reading the configuration file, so the parts are put together anew.
        """
        vm = self.get_vm(name)
        old, config = _moref(vm), vm.config
        disks = [one for one in config.hardware.device if _is_disk(one)]
        vm.UnregisterVM()
        devices = [_attach(disk) for disk in disks]
        folder = config.files.vmPathName.rpartition("/")[0]
        self._create(name, devices, f"{folder}-again", instanceUuid=config.instanceUuid)
        self.content.move(old, self.moref(name))

    def destroy(self, name: str) -> None:
        """Delete a VM."""
        self._do(self.get_vm(name).Destroy_Task())

    def reconfigure(self, name: str, **wanted: object) -> None:
        """Change members of a VM's configuration."""
        vm = self.get_vm(name)
        self._do(vm.ReconfigVM_Task(vim.vm.ConfigSpec(**wanted)))
        if wanted.get("changeTrackingEnabled") is False:
            self.content.forget(_moref(vm))

    def grow_disk(self, name: str, key: int, size_bytes: int) -> None:
        """Make a disk longer."""
        disk = self._find_disk(self.get_vm(name), key)
        disk.capacityInBytes, disk.capacityInKB = size_bytes, size_bytes // 1024
        self._change_disk(name, disk, "edit")

    def edit_disk(self, name: str, key: int, **backing: object) -> None:
        """Change members of a disk's backing, such as `diskMode`."""
        disk = self._find_disk(self.get_vm(name), key)
        for member, value in backing.items():
            setattr(disk.backing, member, value)
        self._change_disk(name, disk, "edit")

    def add_disk(self, name: str, key: int, size_bytes: int) -> None:
        """Attach an empty disk."""
        folder = self.get_vm(name).config.files.vmPathName.rpartition("/")[0]
        spec = _add_disk(key, key - KEY_FIRST, size_bytes, f"{folder}/disk-{key}.vmdk")
        self.reconfigure(name, deviceChange=[spec])

    def remove_disk(self, name: str, key: int) -> None:
        """Detach a disk and forget what it held."""
        vm = self.get_vm(name)
        self._change_disk(name, self._find_disk(vm, key), "remove")
        self.content.detach(_moref(vm), key)

    def _change_disk(self, name: str, disk: Any, operation: str) -> None:
        spec = vim.vm.device.VirtualDeviceSpec(operation=operation, device=disk)
        self.reconfigure(name, deviceChange=[spec])

    def _find_disk(self, vm: Any, key: int) -> Any:
        return next(one for one in vm.config.hardware.device if one.key == key)

    # Its snapshots.

    def take_snapshot(self, name: str, snapshot_name: str) -> str:
        """Take a snapshot as a user does, past the stand-in; return its reference."""
        vm = self.get_vm(name)
        with self.content.lock:  # nothing is written between the snapshot and its content
            task = vm.CreateSnapshot_Task(
                name=snapshot_name, description="", memory=False, quiesce=False
            )
            snapshot = _moref(self._do(task))
            sizes, tracks = self._describe_disks(_moref(vm))
            self.content.freeze(_moref(vm), snapshot, sizes, tracks=tracks)
        return snapshot

    def remove_snapshot(self, name: str, snapshot_name: str) -> None:
        """Remove a snapshot as a user does; its children stay."""
        snapshot = self._find_snapshot(name, snapshot_name)
        self._do(snapshot.RemoveSnapshot_Task(removeChildren=False))
        self.content.drop(_moref(snapshot))

    def revert(self, name: str, snapshot_name: str) -> None:
        """Put a VM back to what a snapshot holds, as a user does."""
        snapshot = self._find_snapshot(name, snapshot_name)
        with self.content.lock:
            self._do(snapshot.RevertToSnapshot_Task())
            self.content.revert(self.moref(name), _moref(snapshot))

    def list_snapshots(self, name: str) -> list[str]:
        """Return the names of a VM's snapshots, sorted."""
        return sorted(node.name for node in self._walk_snapshots(name))

    def _find_snapshot(self, name: str, snapshot_name: str) -> Any:
        for node in self._walk_snapshots(name):
            if node.name == snapshot_name:
                return node.snapshot
        raise LookupError(snapshot_name)

    def _walk_snapshots(self, name: str) -> Iterator[Any]:
        tree = getattr(self.get_vm(name), "snapshot", None)  # without any there is no such member
        waiting = list(tree.rootSnapshotList) if tree is not None else []
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(node.childSnapshotList)

    # Its disks' bytes.

    def live(self, name: str, key: int) -> Path:
        """Return the file that the guest writes."""
        vm = self.get_vm(name)
        return self.content.live(_moref(vm), key, self._describe_disks(_moref(vm))[0][key])

    def write(self, name: str, key: int, offset: int, data: bytes) -> None:
        """Write as the guest does."""
        self.content.write(self.live(name, key), offset, data)

    def snapshot_content(self, snapshot: str, key: int) -> Path:
        """Return what a snapshot held, even if it was removed since."""
        return self.content.get_frozen(snapshot, key).path

    def reset_tracking(self, name: str, key: int) -> None:
        """Do what a hard power-off does to change tracking."""
        self.content.reset(self.moref(name), key)

    # Trouble.

    def inject(self, method: str, fault: str, *, times: int = 1, **members: Any) -> None:
        """Let the next calls of a method be refused."""
        waiting = self.trouble.faults.setdefault(method, deque())
        waiting.extend([soap.fault(fault, **members)] * times)

    def fail_task(self, method: str, fault: str, *, times: int = 1, **members: Any) -> None:
        """Let the next tasks that a method starts end with a fault; vcsim never sees them."""
        waiting = self.trouble.failing_tasks.setdefault(method, deque())
        waiting.extend([lambda moref: soap.failed_task(moref, fault, **members)] * times)

    def override(self, moref: str, path: str, value: str | None) -> None:
        """Let a property be told with another value: `<val xsi:type="xsd:boolean">true</val>`."""
        self.trouble.properties[moref, path] = value

    def expire_sessions(self) -> int:
        """End all sessions but our own; return how many there were."""
        manager = self._content.sessionManager
        own = manager.currentSession.key
        others = [one.key for one in manager.sessionList if one.key != own]
        manager.TerminateSession(others)
        self._standin.expire()
        return len(others)

    @contextlib.contextmanager
    def outage(self, *, is_restart: bool = False) -> Iterator[None]:
        """Let vCenter be away; after a restart it knows no session any more."""
        self.trouble.is_away = True
        try:
            if is_restart:
                self.expire_sessions()
            yield
        finally:
            self.trouble.is_away = False

    def clear_trouble(self) -> None:
        """Let everything go well again."""
        self.trouble.faults.clear()
        self.trouble.failing_tasks.clear()
        self.trouble.delays.clear()
        self.trouble.properties.clear()
        self.trouble.lost_answers.clear()
        self.trouble.is_empty = self.trouble.is_away = False

    # Its own session, past the stand-in.

    def _login(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # the loopback of a simulator
        context.verify_mode = ssl.CERT_NONE
        stub: Any = SoapStubAdapter(
            host="127.0.0.1", port=self._simulator.port, version=API_VERSION, sslContext=context
        )
        content: Any = vim.ServiceInstance("ServiceInstance", stub).RetrieveContent()
        self._content = content
        content.sessionManager.Login(self.username, self.password, None)
        self._stub = stub

    def _describe_disks(self, vm_moref: str) -> tuple[dict[int, int], bool]:
        vm: Any = vim.VirtualMachine(vm_moref, self._stub)
        config = vm.config
        disks = [one for one in config.hardware.device if _is_disk(one)]
        sizes = {one.key: int(one.capacityInBytes or one.capacityInKB * 1024) for one in disks}
        return sizes, bool(config.changeTrackingEnabled)

    def _end_of_task(self, moref: str) -> str | None:
        try:
            result = self._do(vim.Task(moref, self._stub))
        except vmodl.MethodFault:
            return None
        return "" if result is None else _moref(result)

    def _do(self, task: Any) -> Any:
        deadline = time.monotonic() + TASK_SECONDS_MAX
        while task.info.state not in {"success", "error"}:
            if time.monotonic() > deadline:
                raise TimeoutError(f"task {_moref(task)}")
            time.sleep(POLL_SECONDS)
        if task.info.state == "error":
            raise task.info.error
        return task.info.result

    def _list(self, kind: type) -> Iterator[Any]:
        view = self._content.viewManager.CreateContainerView(
            container=self._content.rootFolder, type=[kind], recursive=True
        )
        try:
            yield from view.view
        finally:
            view.Destroy()

    def _find(self, kind: type) -> Any:
        return next(self._list(kind))


def value(kind: str, text: str) -> str:
    """Return a property's value as `override` wants it, as `value("xsd:boolean", "true")`."""
    return f'<val xsi:type="{kind}">{text}</val>'


def _add_disk(key: int, unit: int, size_bytes: int, path: str) -> Any:
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
        fileName=path, diskMode="persistent", thinProvisioned=True
    )
    disk = vim.vm.device.VirtualDisk(
        key=key,
        controllerKey=1000,
        unitNumber=unit if unit < 7 else unit + 1,  # noqa: PLR2004 - 7 is the controller's own
        capacityInBytes=size_bytes,
        capacityInKB=size_bytes // 1024,
        backing=backing,
    )
    return vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=disk)


def _attach(disk: Any) -> Any:
    return vim.vm.device.VirtualDeviceSpec(operation="add", device=disk)


def _is_disk(device: Any) -> bool:
    return isinstance(device, vim.vm.device.VirtualDisk)


def _moref(managed: Any) -> str:
    return str(managed._moId)  # noqa: SLF001 - pyVmomi has no other name for it
