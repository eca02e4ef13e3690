"""Can a VM of a vCenter be backed up now, incrementally and consistently? Rules 7, 8, 16 and 23.

A pure decision from properties and privileges; who asks the vCenter for them is `source.py`.
What is wrong with single disks (rule 17) discovery keeps with each disk.
"""

from collections.abc import Collection, Mapping
from typing import Any

from sendense.connectors.capability import Assessment
from sendense.connectors.vsphere import privileges

TEMPLATE = "config.template"
TRACKING_SUPPORTED = "capability.changeTrackingSupported"
TRACKING_ENABLED = "config.changeTrackingEnabled"
POWER = "runtime.powerState"
CONNECTION = "runtime.connectionState"
CONSOLIDATION = "runtime.consolidationNeeded"
TOOLS = "guest.toolsRunningStatus"
SNAPSHOTS = "rootSnapshot"
# Leaf paths (rule 6); one that the platform does not tell is not in the answer.
PATHS = (
    TEMPLATE,
    TRACKING_SUPPORTED,
    TRACKING_ENABLED,
    POWER,
    CONNECTION,
    CONSOLIDATION,
    TOOLS,
    SNAPSHOTS,
)
WANTED = (*privileges.BACKUP, *privileges.TRACKING)


def decide(told: Mapping[str, Any], held: Collection[str] | None) -> Assessment:
    """Return what a VM's properties and its user's privileges mean for a backup.

    Args:
        told: the values of `PATHS`.
        held: those of `WANTED` that the user has on the VM; None where nobody could tell.
    """
    missing = () if held is None else privileges.list_missing(WANTED, held)
    consistent, why_not = _decide_consistency(told)
    return Assessment(
        obstacles=_list_obstacles(told, missing),
        incremental_obstacles=_list_incremental_obstacles(told, missing),
        consistent=consistent,
        consistent_reason=why_not,
        missing_privileges=missing,
        notes=_list_notes(told),
    )


def _list_obstacles(told: Mapping[str, Any], missing: Collection[str]) -> tuple[str, ...]:
    found = []
    if told.get(TEMPLATE):
        found.append(
            "it is a template, of which no snapshot can be taken: convert it to a virtual machine,"
            " or clone it and back up the clone"
        )
    state = told.get(CONNECTION)
    if state is not None and str(state) != "connected":
        found.append(f"its host does not answer to the vCenter: the VM is {state}")
    needed = [one for one in missing if one in privileges.BACKUP]
    if needed:
        found.append(f"the source's user lacks privileges on it: {', '.join(needed)}")
    return tuple(found)


def _list_incremental_obstacles(
    told: Mapping[str, Any], missing: Collection[str]
) -> tuple[str, ...]:
    if told.get(TRACKING_SUPPORTED) is False:
        return ("it cannot track changes: upgrade its virtual hardware to version 7 or newer",)
    if told.get(TRACKING_ENABLED):
        return ()
    untracked = "changes are not tracked yet, and"
    if told.get(SNAPSHOTS):
        why = "tracking is switched on only where a VM has no snapshot: remove its snapshots"
        return (f"{untracked} {why}",)
    lacked = [one for one in privileges.TRACKING if one in missing]
    if lacked:
        why = "the source's user may not switch that on: give it"
        return (f"{untracked} {why} {', '.join(lacked)}",)
    return ()


def _decide_consistency(told: Mapping[str, Any]) -> tuple[bool, str | None]:
    """Return whether a snapshot holds file systems at rest, and why not."""
    power, tools = str(told.get(POWER, "")), str(told.get(TOOLS, ""))
    if power == "poweredOff":
        return True, None  # nothing writes
    if power == "suspended":
        return False, "it is suspended: what its memory holds is not in a backup"
    if tools == "guestToolsRunning":
        return True, None
    return False, (
        "VMware Tools do not run in it, so its file systems cannot be brought to rest: install and"
        " start them (open-vm-tools on Linux), or be content with crash-consistent backups"
    )


def _list_notes(told: Mapping[str, Any]) -> tuple[str, ...]:
    found = []
    if told.get(TRACKING_SUPPORTED) is not False and not told.get(TRACKING_ENABLED):
        found.append("its first backup switches change tracking on and reads everything")
    if told.get(SNAPSHOTS):
        found.append("it has snapshots of its own; backups leave them alone, but they cost space")
    if told.get(CONSOLIDATION):
        found.append("its disks need consolidation: a snapshot was not removed well before")
    return tuple(found)
