"""Each fault of vCenter's becomes an error that says what to do."""

import ssl
from http.client import HTTPException
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from sendense.connectors.vsphere import failure
from sendense.core.errors import Cancelled, Denied, NoSpace, NotFound, SendenseError, Unavailable


@pytest.mark.parametrize(
    ("error", "kind", "category"),
    [
        (vim.fault.InvalidLogin(), "vsphere-login-denied", Denied),
        (vim.fault.NotAuthenticated(), "vsphere-session-lost", Unavailable),
        (vim.fault.RestrictedVersion(), "vsphere-licence-read-only", Denied),
        (vim.fault.NoPermission(privilegeId="A.B"), "vsphere-privilege-missing", Denied),
        (vim.fault.TaskInProgress(), "vsphere-busy", Unavailable),
        (vmodl.fault.ManagedObjectNotFound(), "vm-gone", NotFound),
        (vim.fault.NoDiskSpace(), "no-space", NoSpace),
        (vmodl.fault.HostNotReachable(), "vsphere-unreachable", Unavailable),
        (vmodl.fault.HostNotConnected(), "vsphere-unreachable", Unavailable),
        (vmodl.fault.NotEnoughLicenses(), "vsphere-licence-read-only", Denied),
        (vim.fault.FileLocked(), "vsphere-refused", Unavailable),
        (ssl.SSLError("wrong version number"), "vsphere-tls-failed", Unavailable),
        (ssl.SSLEOFError(8, "EOF occurred"), "vsphere-unreachable", Unavailable),
        (HTTPException("503 Service Unavailable"), "vsphere-unreachable", Unavailable),
        (TimeoutError(), "vsphere-unreachable", Unavailable),
        (ConnectionRefusedError(111, "Connection refused"), "vsphere-unreachable", Unavailable),
    ],
)
def test_a_failure_has_a_kind_of_its_own_and_a_hint(
    error: Exception, kind: str, category: type[SendenseError]
) -> None:
    found = failure.translate(error, doing="look at VM web1")
    assert found.kind == kind
    assert isinstance(found, category)
    assert found.message.startswith("cannot look at VM web1: ")
    assert found.hint


def test_an_error_of_ours_stays_as_it_is() -> None:
    error = Cancelled("enough")
    assert failure.translate(error, doing="anything") is error


def test_a_missing_privilege_is_named_with_where_it_is_missing() -> None:
    fault: Any = vim.fault.NoPermission(
        privilegeId="VirtualMachine.State.CreateSnapshot",
        object=vim.VirtualMachine("vm-16", None),
    )
    found = failure.translate(fault, doing="take a snapshot")
    assert "lacks VirtualMachine.State.CreateSnapshot on vm-16" in found.message
    assert found.fields["privilege"] == "VirtualMachine.State.CreateSnapshot"


def test_a_fault_that_is_not_known_keeps_its_own_words_in_one_line() -> None:
    fault = vim.fault.FileLocked(msg="the file\n is   locked " + "x" * 1000)
    found = failure.translate(fault, doing="consolidate")
    assert "the file is locked" in found.message
    assert "(FileLocked)" in found.message
    assert len(found.message) < 400


def test_an_answer_of_something_else_is_said_to_be_one() -> None:
    found = failure.answer_not_understood(ValueError("not well-formed"))
    assert found.kind == "vsphere-answer-odd"
    assert "not well-formed" in found.message


def test_why_nothing_is_told_of_an_object_is_said_shortly() -> None:
    assert "does not know it" in failure.explain(vmodl.fault.ManagedObjectNotFound())
    assert failure.explain(vim.fault.NoPermission(privilegeId="A.B")).endswith("lacks A.B")
    assert failure.explain(vim.fault.FileLocked(msg="locked")) == "locked (FileLocked)"


def test_a_fault_is_found_behind_the_error_that_it_caused() -> None:
    fault = vim.fault.FileLocked()
    error = failure.translate(fault, doing="x")
    error.__cause__ = fault
    assert failure.find_fault(error, vim.fault.FileLocked)
    assert failure.find_fault(fault, vim.fault.FileLocked)
    assert not failure.find_fault(error, vim.fault.NotFound)
