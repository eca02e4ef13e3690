"""Readiness: what a source says about a VM now, beside what discovery kept."""

from typing import Any

import pytest

from sendense.connectors.capability import Assessment
from sendense.connectors.fake.source import FakePlatform
from sendense.core.errors import Unavailable
from tests.api.kit import Lab


class AssessingPlatform(FakePlatform):
    """A platform that can say whether a VM can be backed up."""

    def __init__(self, said: Assessment) -> None:
        super().__init__()
        self.said = said
        self.asked: list[str] = []

    def assess(self, vm_uuid: str) -> Assessment:
        self.asked.append(vm_uuid)
        if self.is_gone:
            raise Unavailable("the platform is away")
        return self.said


def ready(lab: Lab, said: Assessment, **query: Any) -> tuple[dict[str, Any], AssessingPlatform]:
    vm_id = lab.add_vm(disks=2)
    lab.track_changes()
    platform = AssessingPlatform(said)
    platform.is_gone = bool(query.pop("gone", False))
    lab.replace_hub(open_source=lambda _kind, _config, _credentials=None: platform)
    return lab.api.get(f"/vms/{vm_id}/readiness", params=query).json(), platform


def test_a_vm_with_nothing_in_the_way_is_ready(lab: Lab) -> None:
    told, platform = ready(lab, Assessment(consistent=True, notes=("tracking will be enabled",)))
    assert len(platform.asked) == 1
    assert (told["backup_possible"], told["incremental_possible"]) == (True, True)
    assert told["consistent_possible"] is True
    assert told["asked"] is True
    assert told["reasons"] == told["missing_privileges"] == []
    assert told["notes"] == ["tracking will be enabled"]


@pytest.mark.parametrize(
    ("said", "possible", "incremental"),
    [
        (Assessment(obstacles=("it is a template: convert it",)), False, False),
        (Assessment(incremental_obstacles=("its hardware is too old",)), True, False),
        (Assessment(consistent_reason="VMware Tools do not run"), True, True),
    ],
)
def test_what_is_in_the_way_is_told(
    lab: Lab, said: Assessment, *, possible: bool, incremental: bool
) -> None:
    told, _ = ready(lab, said)
    assert told["backup_possible"] is possible
    assert told["incremental_possible"] is incremental
    assert told["consistent_possible"] is False
    expected = said.obstacles or said.incremental_obstacles or (said.consistent_reason,)
    assert set(expected) <= set(told["reasons"])


def test_missing_privileges_are_named(lab: Lab) -> None:
    missing = ("VirtualMachine.State.CreateSnapshot",)
    told, _ = ready(lab, Assessment(obstacles=("not allowed",), missing_privileges=missing))
    assert told["missing_privileges"] == list(missing)


def test_a_source_that_does_not_answer_leaves_what_discovery_found(lab: Lab) -> None:
    told, _ = ready(lab, Assessment(), gone=True)
    assert (told["backup_possible"], told["incremental_possible"]) == (True, True)
    assert told["consistent_possible"] is None
    assert told["asked"] is False
    assert "the platform is away" in " ".join(told["reasons"])


def test_nobody_is_asked_where_that_is_not_wanted(lab: Lab) -> None:
    told, platform = ready(lab, Assessment(obstacles=("x",)), ask=False)
    assert platform.asked == []
    assert told["asked"] is False
    assert told["backup_possible"] is True


def test_a_source_that_cannot_tell_is_not_blamed(lab: Lab) -> None:
    vm_id = lab.add_vm(disks=1)
    told = lab.api.get(f"/vms/{vm_id}/readiness").json()
    assert told["asked"] is False
    assert told["consistent_possible"] is None
    assert all("not asked" not in reason for reason in told["reasons"])
