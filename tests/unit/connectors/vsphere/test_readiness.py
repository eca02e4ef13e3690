"""Can a VM be backed up? Rules 7, 8, 16 and 23 of the sources' design, as decisions."""

from typing import Any

import pytest

from sendense.connectors.vsphere import privileges, readiness
from sendense.connectors.vsphere.readiness import (
    CONNECTION,
    CONSOLIDATION,
    POWER,
    SNAPSHOTS,
    TEMPLATE,
    TOOLS,
    TRACKING_ENABLED,
    TRACKING_SUPPORTED,
    WANTED,
)

READY = {
    TEMPLATE: False,
    TRACKING_SUPPORTED: True,
    TRACKING_ENABLED: True,
    POWER: "poweredOn",
    CONNECTION: "connected",
    CONSOLIDATION: False,
    TOOLS: "guestToolsRunning",
}


def decide(held: Any = WANTED, **changes: Any) -> Any:
    paths = {
        "template": TEMPLATE,
        "supported": TRACKING_SUPPORTED,
        "enabled": TRACKING_ENABLED,
        "power": POWER,
        "connection": CONNECTION,
        "consolidation": CONSOLIDATION,
        "tools": TOOLS,
        "snapshots": SNAPSHOTS,
    }
    told = {**READY, **{paths[name]: value for name, value in changes.items()}}
    return readiness.decide(told, held)


def test_a_vm_with_nothing_in_the_way_is_ready() -> None:
    found = decide()
    assert (found.obstacles, found.incremental_obstacles, found.notes) == ((), (), ())
    assert (found.consistent, found.consistent_reason) == (True, None)
    assert found.missing_privileges == ()


def test_rule_7_a_template_is_to_be_converted_or_cloned() -> None:
    [reason] = decide(template=True).obstacles
    assert "convert" in reason
    assert "clone" in reason


@pytest.mark.parametrize("state", ["disconnected", "inaccessible", "orphaned", "invalid"])
def test_a_vm_whose_host_is_away_is_told(state: str) -> None:
    [reason] = decide(connection=state).obstacles
    assert state in reason


def test_rule_8_old_hardware_cannot_track_changes() -> None:
    found = decide(supported=False, enabled=False)
    assert "version 7" in found.incremental_obstacles[0]
    assert found.obstacles == found.notes == ()


def test_rule_8_tracking_is_switched_on_by_the_first_backup() -> None:
    found = decide(enabled=False)
    assert found.incremental_obstacles == ()
    assert "switches change tracking on" in found.notes[0]


def test_rule_8_tracking_is_not_switched_on_beside_snapshots() -> None:
    found = decide(enabled=False, snapshots=["snapshot-1"])
    assert "remove its snapshots" in found.incremental_obstacles[0]
    assert decide(enabled=True, snapshots=["snapshot-1"]).incremental_obstacles == ()


@pytest.mark.parametrize(
    ("power", "tools", "consistent"),
    [
        ("poweredOn", "guestToolsRunning", True),
        ("poweredOn", "guestToolsNotRunning", False),
        ("poweredOn", "guestToolsExecutingScripts", False),
        ("poweredOff", "guestToolsNotRunning", True),
        ("suspended", "guestToolsRunning", False),
    ],
)
def test_rule_16_file_systems_come_to_rest_where_tools_run(
    power: str, tools: str, *, consistent: bool
) -> None:
    found = decide(power=power, tools=tools)
    assert found.consistent is consistent
    assert (found.consistent_reason is None) is consistent


@pytest.mark.parametrize("lacked", privileges.BACKUP)
def test_rule_23_a_missing_privilege_is_named(lacked: str) -> None:
    found = decide(held=set(WANTED) - {lacked})
    assert found.missing_privileges == (lacked,)
    assert lacked in found.obstacles[0]


def test_rule_23_without_the_right_to_track_a_vm_is_read_in_full() -> None:
    found = decide(held=privileges.BACKUP, enabled=False)
    assert found.obstacles == ()
    assert "VirtualMachine.Config.ChangeTracking" in found.incremental_obstacles[0]
    tracked = decide(held=privileges.BACKUP, enabled=True)
    assert tracked.incremental_obstacles == ()
    assert tracked.missing_privileges == ("VirtualMachine.Config.ChangeTracking",)


def test_privileges_that_nobody_can_tell_are_not_called_missing() -> None:
    assert decide(held=None).missing_privileges == ()


def test_what_may_matter_is_noted() -> None:
    found = decide(consolidation=True, snapshots=["snapshot-1"])
    assert len(found.notes) == 2
    assert found.obstacles == ()


def test_a_platform_that_tells_nothing_is_not_called_ready_for_consistency() -> None:
    found = readiness.decide({}, None)
    assert found.obstacles == ()
    assert found.consistent is False
