"""What a transfer does about a parent that went away; the rest is tried in tests/workflow."""

import pytest

from sendense.core.errors import Conflict
from sendense.engine import plan
from sendense.engine.backup import Transfer
from sendense.engine.plan import Decision
from sendense.repository.manifest import Mode
from sendense.workflows import transfer_disk
from sendense.workflows.backup_plan import DiskDecision

DECIDED = DiskDecision(2000, Decision(Mode.INCREMENTAL), "parent", "change")


class Attempts:
    """An engine that finds the parent in some state."""

    def __init__(self, kind: str | None) -> None:
        self.kind = kind
        self.asked: list[tuple[str | None, Decision]] = []

    def __call__(self, parent_backup_id: str | None, decision: Decision) -> Transfer:
        self.asked.append((parent_backup_id, decision))
        if self.kind is not None and parent_backup_id is not None:
            raise Conflict("it cannot be built upon", kind=self.kind)
        return Transfer(None, decision)  # type: ignore[arg-type]  # not looked at


def test_a_disk_is_transferred_as_decided() -> None:
    attempts = Attempts(None)
    assert transfer_disk._move(attempts, DECIDED).decision == DECIDED.decision
    assert attempts.asked == [("parent", DECIDED.decision)]


def test_a_parent_deleted_since_the_decision_leads_to_a_full_read_without_it() -> None:
    attempts = Attempts("parent-deleted")
    moved = transfer_disk._move(attempts, DECIDED)
    assert moved.decision.mode is Mode.FULL
    assert attempts.asked[1:] == [(None, plan.parent_deleted())]


def test_another_conflict_fails_the_transfer() -> None:
    with pytest.raises(Conflict) as caught:
        transfer_disk._move(Attempts("session-ended"), DECIDED)
    assert caught.value.kind == "session-ended"
