"""Tasks are waited for, and one whose end nobody knows is no VM that is gone."""

import pytest
from pyVmomi import vim

from demo.vcenter.lab import Vcenter
from sendense.connectors.vsphere import tasks
from sendense.core.clock import ManualClock
from sendense.core.errors import Unavailable
from tests.unit.connectors.vsphere.conftest import OpenSession


def test_a_task_that_vcenter_forgot_is_to_be_tried_again(open_session: OpenSession) -> None:
    with pytest.raises(Unavailable) as caught:
        tasks.wait(
            open_session(), "task-999999", doing="remove it", seconds_max=9.0, clock=ManualClock()
        )
    assert caught.value.kind == "vsphere-task-lost"
    assert "cannot remove it" in caught.value.message
    assert caught.value.hint


def test_a_task_that_nothing_is_told_of_is_not_waited_for(
    vcenter: Vcenter, open_session: OpenSession
) -> None:
    vcenter.add_vm("tasked", 1 << 20)
    session = open_session()
    vm = vcenter.moref("tasked")
    task = session.run(
        "start", lambda login: login.bind(vim.VirtualMachine, vm).PowerOnVM_Task()._moId
    )
    vcenter.override(task, "info.state", None)
    with pytest.raises(Unavailable) as caught:
        tasks.wait(session, task, doing="start it", seconds_max=9.0, clock=ManualClock())
    assert caught.value.kind == "vsphere-task-lost"
    assert "tells nothing of it" in caught.value.message
