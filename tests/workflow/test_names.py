"""Names in stored jobs never change: a job that runs over an upgrade would be stranded.

A name may be added here; one that is changed or removed needs `DBOS.patch` and a decision.
"""

import sys

from sendense.durable import schema
from sendense.durable.definition import Step
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
    "discover_vms": ["discover", "remove_orphans", "finish", "fail"],
    "check_repository": ["check", "finish", "fail"],
    "import_repository": ["import_backups", "finish", "fail"],
    "collect_garbage": ["collect", "finish", "fail"],
    "verify_repository": ["verify", "finish", "fail"],
    "export_hub": ["export", "finish", "fail"],
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


def test_every_step_that_is_written_is_used_by_a_workflow() -> None:
    """A step that a workflow left out for another of the same name would end a job by half."""
    used = {id(step) for workflow in WORKFLOWS for step in workflow.steps}
    unused = [
        f"{module}.{name}"
        for module, found in list(sys.modules.items())
        if module.startswith("sendense.workflows.")
        for name, value in vars(found).items()
        if isinstance(value, Step) and id(value) not in used
    ]
    assert unused == []
