"""Answers are read as pyVmomi reads them, without the devices that nobody looks at."""

import gzip
from http.client import HTTPException, HTTPResponse
from io import BytesIO
from typing import Any
from xml.parsers.expat import ExpatError

import pytest
from pyVmomi import vim, vmodl
from pyVmomi.SoapAdapter import SoapStubAdapter

from demo.vcenter.lab import Vcenter
from sendense.connectors.vsphere import answers, inventory, properties
from sendense.core.units import MIB
from tests.unit.connectors.vsphere.conftest import OpenSession

RETRIEVED = vmodl.query.PropertyCollector.RetrieveResult
STUB: Any = SoapStubAdapter(version="vim.version.version11")

DEVICE = '<VirtualDevice xsi:type="{kind}"><key>{key}</key>{more}</VirtualDevice>'
ANSWER = """<?xml version="1.0" encoding="UTF-8"?>
<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"
  xmlns:xsd="http://www.w3.org/2001/XMLSchema"
  xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
<soapenv:Body><RetrievePropertiesExResponse xmlns="urn:vim25"><returnval>
<objects><obj type="VirtualMachine">vm-1</obj>
<propSet><name>config.hardware.device</name>
<val xsi:type="ArrayOfVirtualDevice">{devices}</val></propSet>
<propSet><name>name</name><val xsi:type="xsd:string">web</val></propSet>
</objects></returnval></RetrievePropertiesExResponse></soapenv:Body></soapenv:Envelope>"""
FAULT = """<?xml version="1.0" encoding="UTF-8"?>
<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"
  xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body><soapenv:Fault>
<faultcode>ServerFaultCode</faultcode><faultstring>not any more</faultstring>
<detail><NotAuthenticatedFault xmlns="urn:vim25" xsi:type="NotAuthenticated">
<object type="Folder">group-d1</object><privilegeId>System.View</privilegeId>
</NotAuthenticatedFault></detail></soapenv:Fault></soapenv:Body></soapenv:Envelope>"""


class _Socket:
    def __init__(self, sent: bytes) -> None:
        self._sent = sent

    def makefile(self, *_: Any) -> BytesIO:
        return BytesIO(self._sent)


def respond(body: bytes, *, status: str = "200 OK", header: str = "") -> HTTPResponse:
    head = f"HTTP/1.1 {status}\r\n{header}Content-Length: {len(body)}\r\n\r\n"
    response = HTTPResponse(_Socket(head.encode() + body))  # type: ignore[arg-type]
    response.begin()
    return response


def make_answer(coding: str = "identity") -> bytes:
    backing = (
        '<backing xsi:type="VirtualCdromIsoBackingInfo"><fileName>[ds] a.iso</fileName></backing>'
    )
    devices = [
        DEVICE.format(kind="VirtualCdrom", key=3000, more=backing),
        DEVICE.format(kind="ParaVirtualSCSIController", key=1000, more="<busNumber>0</busNumber>"),
        DEVICE.format(kind="VirtualKeyboard", key=600, more=""),
        DEVICE.format(kind="VirtualDisk", key=2000, more="<capacityInKB>4</capacityInKB>"),
        DEVICE.format(kind="VirtualVmxnet3", key=4000, more=""),
    ]
    plain = ANSWER.format(devices="".join(devices)).encode()
    return gzip.compress(plain) if coding == "gzip" else plain


@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_other_devices_are_passed_by_with_all_that_they_hold(coding: str) -> None:
    response = respond(make_answer(coding), header=f"Content-Encoding: {coding}\r\n")
    told = answers.parse(STUB, response, RETRIEVED)
    devices, name = told.objects[0].propSet
    assert [(one.key, type(one)) for one in devices.val] == [
        (1000, vim.vm.device.ParaVirtualSCSIController),
        (2000, vim.vm.device.VirtualDisk),
    ]
    assert devices.val[1].capacityInKB == 4
    assert (name.name, name.val) == ("name", "web")


def test_a_fault_is_an_answer() -> None:
    response = respond(FAULT.encode(), status="500 Internal Server Error")
    told: Any = answers.parse(STUB, response, RETRIEVED)
    assert (type(told), told.msg) == (vim.fault.NotAuthenticated, "not any more")


def test_another_status_is_none() -> None:
    with pytest.raises(HTTPException, match="503 Service Unavailable"):
        answers.parse(STUB, respond(b"", status="503 Service Unavailable"), RETRIEVED)


@pytest.mark.parametrize("body", [make_answer(), make_answer("gzip")[:-8] + bytes(8)])
def test_what_gzip_did_not_pack_is_no_answer(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"gzip|CRC"):
        answers.parse(STUB, respond(body, header="Content-Encoding: gzip\r\n"), RETRIEVED)


@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_an_answer_that_is_cut_off_is_none(coding: str) -> None:
    body = make_answer(coding)
    response = respond(body[: len(body) // 2], header=f"Content-Encoding: {coding}\r\n")
    with pytest.raises((ExpatError, EOFError)):
        answers.parse(STUB, response, RETRIEVED)


def test_what_is_looked_at_is_told_as_pyvmomi_tells_it(
    vcenter: Vcenter, open_session: OpenSession
) -> None:
    vcenter.add_vm("web", 64 * MIB, 8 * MIB)
    moref = vcenter.moref("web")
    with open_session() as session:
        values = properties.read_one(
            session, vim.VirtualMachine, moref, [inventory.DEVICES], doing="look"
        )
        all_devices = session.run(
            "look", lambda login: list(login.bind(vim.VirtualMachine, moref).config.hardware.device)
        )
    looked_at = [one for one in all_devices if isinstance(one, answers.LOOKED_AT)]
    assert len(looked_at) < len(all_devices)
    assert [str(one) for one in values[inventory.DEVICES]] == [str(one) for one in looked_at]
    assert len(inventory.list_disks(values[inventory.DEVICES])) == 2
