"""Names in stored jobs never change: a job that runs over an upgrade would be stranded.

A name may be added here; one that is changed or removed needs `DBOS.patch` and a decision.
"""

from sendense.durable import schema
from sendense.hub.jobs.schemas import JobKind
from sendense.hub.jobs.service import WORKFLOWS as BY_KIND
from sendense.workflows.registry import WORKFLOWS

NAMES = {
    "backup_vm": [
        "plan",
        "take_snapshot",
        "decide",
        "wait_transfers",
        "commit",
        "record",
        "remove_snapshot",
        "finish",
        "stop_transfers",
        "abort_session",
        "note_leftover",
        "fail",
    ],
    "transfer_disk": ["transfer", "mark_disk_failed"],
    "restore_disk": ["restore", "finish", "fail"],
    "discover_vms": ["discover", "finish", "fail"],
    "check_repository": ["check", "finish", "fail"],
    "clean_up": [
        "look",
        "stop_transfers",
        "abort_session",
        "remove_snapshot",
        "note_leftover",
        "fail",
        "record",
        "finish",
        "fail",
        "fail",
        "fail",
    ],
}


def test_names_of_workflows_and_steps_never_change() -> None:
    assert schema.VERSION == "workflows-1"
    assert {one.name: [step.name for step in one.steps] for one in WORKFLOWS} == NAMES


def test_the_hub_starts_only_workflows_that_exist_and_one_for_each_kind_of_job() -> None:
    assert set(BY_KIND) == set(JobKind)
    assert set(BY_KIND.values()) <= {one.name for one in WORKFLOWS}
