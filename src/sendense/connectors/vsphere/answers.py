"""Reads vCenter's answers, and makes no objects of devices that no backup looks at.

A VM has a dozen devices beside its disks, and pyVmomi's parser takes 10 us for each of their
elements: two thirds of what a listing of many VMs costs.
"""

from functools import cache
from gzip import BadGzipFile, GzipFile
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from typing import Any

from pyVmomi import vim
from pyVmomi.SoapAdapter import XSI_TYPE, SoapDeserializer, SoapResponseDeserializer

_Device = vim.vm.device
# Disks, and what may share its bus with other VMs.
LOOKED_AT = (
    _Device.VirtualDisk,
    _Device.VirtualSCSIController,
    _Device.VirtualNVMEController,
)
_DEVICES: Any = _Device.VirtualDevice
_STATUSES = (HTTPStatus.OK, HTTPStatus.INTERNAL_SERVER_ERROR)  # with what was asked for, or a fault


def parse(stub: Any, answer: HTTPResponse, result: type) -> Any:
    """Return what pyVmomi's reader makes of an answer: lists of devices hold those of `LOOKED_AT`.

    Raises HTTPException for a status that no vCenter answers with, ValueError for what gzip did not
    pack, and whatever pyVmomi stumbles over.

    Args:
        stub: what was asked through.
        answer: nothing of it was read; packed by gzip or not.
        result: the type that the method returns; a fault is returned instead where it is one.
    """
    if answer.status not in _STATUSES:
        raise HTTPException(f"{answer.status} {answer.reason}")
    is_packed = (answer.getheader("Content-Encoding") or "").lower() == "gzip"
    reader: Any = SoapResponseDeserializer(stub)
    reader.deser = _Reader(stub)
    try:
        return reader.Deserialize(GzipFile(fileobj=answer) if is_packed else answer, result)
    except BadGzipFile as error:  # an OSError, and yet the host was reached
        raise ValueError(str(error)) from error


class _Reader(SoapDeserializer):
    """pyVmomi's own, which passes by devices that are not looked at."""

    def __init__(self, stub: Any) -> None:
        super().__init__(stub)  # type: ignore[no-untyped-call]
        self._depth = 0  # of the element within a device that is passed by; 0 outside
        self._is_passed_by = cache(self._is_not_looked_at)

    def StartElementHandler(self, tag: str, attr: dict[str, str]) -> None:  # noqa: N802
        if self._depth or (
            self.stack
            and isinstance(self.stack[-1], _DEVICES.Array)
            and self._is_passed_by(attr.get(XSI_TYPE))
        ):
            self._depth += 1
        else:
            super().StartElementHandler(tag, attr)  # type: ignore[no-untyped-call]

    def EndElementHandler(self, tag: str) -> None:  # noqa: N802
        if self._depth:
            self._depth -= 1
        else:
            super().EndElementHandler(tag)  # type: ignore[no-untyped-call]

    def _is_not_looked_at(self, kind: str | None) -> bool:
        if not kind:
            return False
        namespace, name = self.GetNSAndWsdlname(kind)  # type: ignore[no-untyped-call]
        return not issubclass(self.LookupWsdlType(namespace, name), LOOKED_AT)  # type: ignore[no-untyped-call]
