"""A client of the stand-in that knows nothing of ours: pyVmomi alone."""

import ssl
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pyVmomi import vim, vmodl
from pyVmomi.SoapAdapter import SoapStubAdapter

from demo.vcenter.lab import API_VERSION, Vcenter

TASK_SECONDS_MAX = 60.0
PAGES_MAX = 1000
_Collector = vmodl.query.PropertyCollector


class Client:
    """One session, logged in unless `password` is None."""

    def __init__(self, lab: Vcenter, password: str | None = "") -> None:
        self._lab = lab
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.load_verify_locations(cadata=lab.certificate_pem)
        self._connect()
        try:
            if password is not None:
                self._log_in(password or lab.password)
        except BaseException:
            self.close()
            raise

    def login(self) -> None:
        """Begin a new session; vcsim does not let one log in a second time."""
        self.close()
        self._connect()
        self._log_in(self._lab.password)

    def _connect(self) -> None:
        self.stub: Any = SoapStubAdapter(
            host="127.0.0.1", port=self._lab.port, version=API_VERSION, sslContext=self._context
        )
        self.content: Any = vim.ServiceInstance("ServiceInstance", self.stub).RetrieveContent()

    def _log_in(self, password: str) -> None:
        self.content.sessionManager.Login(self._lab.username, password, None)

    def close(self) -> None:
        """Hang up."""
        self.stub.DropConnections()

    def vm(self, moref: str) -> Any:
        """Return a VM."""
        return vim.VirtualMachine(moref, self.stub)

    def read(self, managed: Any, *paths: str) -> dict[str, Any]:
        """Return properties of an object, as far as they are told."""
        page = self.content.propertyCollector.RetrievePropertiesEx(
            [
                _Collector.FilterSpec(
                    objectSet=[_Collector.ObjectSpec(obj=managed)],
                    propSet=[_Collector.PropertySpec(type=type(managed), pathSet=list(paths))],
                )
            ],
            _Collector.RetrieveOptions(),
        )
        return {} if page is None else {one.name: one.val for one in page.objects[0].propSet}

    def list_names(self) -> list[str]:
        """Return the names of all VMs, by a view."""
        manager, folder = self.content.viewManager, self.content.rootFolder
        view = manager.CreateContainerView(
            container=folder, type=[vim.VirtualMachine], recursive=True
        )
        through = _Collector.TraversalSpec(type=vim.view.ContainerView, path="view", skip=False)
        page = self.content.propertyCollector.RetrievePropertiesEx(
            [
                _Collector.FilterSpec(
                    objectSet=[_Collector.ObjectSpec(obj=view, skip=True, selectSet=[through])],
                    propSet=[_Collector.PropertySpec(type=vim.VirtualMachine, pathSet=["name"])],
                )
            ],
            _Collector.RetrieveOptions(),
        )
        return [] if page is None else [one.propSet[0].val for one in page.objects]

    def wait(self, task: Any) -> Any:
        """Return what a task ended with, or raise its fault."""
        deadline = time.monotonic() + TASK_SECONDS_MAX
        while True:
            told = self.read(task, "info.state", "info.error", "info.result")
            if told["info.state"] == "error":
                raise told["info.error"]
            if told["info.state"] == "success":
                return told.get("info.result")
            assert time.monotonic() < deadline, told
            time.sleep(0.01)

    def take_snapshot(self, moref: str, name: str = "ours") -> Any:
        """Take a snapshot of a VM."""
        task = self.vm(moref).CreateSnapshot_Task(
            name=name, description="", memory=False, quiesce=False
        )
        return self.wait(task)

    def remove_snapshot(self, snapshot: Any) -> None:
        """Remove a snapshot."""
        self.wait(snapshot.RemoveSnapshot_Task(removeChildren=False))

    def find_change_ids(self, managed: Any) -> dict[int, str | None]:
        """Return the change ids of the disks of a snapshot or a VM, by key."""
        path = "config.hardware.device"
        devices: list[Any] = self.read(managed, path)[path]
        disks: list[Any] = [one for one in devices if isinstance(one, vim.vm.device.VirtualDisk)]
        return {disk.key: disk.backing.changeId for disk in disks}

    def list_pages(
        self, moref: str, snapshot: Any, key: int, change_id: str, size_bytes: int
    ) -> Iterator[Any]:
        """Yield what is told about changes, call by call."""
        offset = 0
        for _ in range(PAGES_MAX):
            if offset >= size_bytes:
                return
            page = self.vm(moref).QueryChangedDiskAreas(snapshot, key, offset, change_id)
            assert page.startOffset == offset
            assert page.length > 0
            yield page
            offset += page.length
        raise AssertionError("pages without end")


def list_areas(pages: Sequence[Any]) -> list[tuple[int, int]]:
    """Return start and length of the areas of pages."""
    return [(one.start, one.length) for page in pages for one in page.changedArea or ()]
