from dataclasses import replace

import pytest

from sendense.connectors.base import DiskSnapshot, Tracking
from sendense.engine import plan
from sendense.engine.plan import Decision, Mode, Parent, Reason, Wish

CHUNK = 512 * 1024
PARENT = Parent(uuid="u-1", size_bytes=1 << 30, chunk_size=CHUNK, change_id="c-1")
SNAPSHOT = DiskSnapshot(key=2000, size_bytes=1 << 30, uuid="u-1", change_id="c-2")


def decide(
    *,
    wish: Wish = Wish.AUTO,
    parent: Parent | None = PARENT,
    tracking: Tracking = Tracking.SUPPORTED,
    chunk_size: int = CHUNK,
    snapshot: DiskSnapshot | None = SNAPSHOT,
) -> Decision:
    return plan.decide_mode(
        wish, parent, tracking=tracking, chunk_size=chunk_size, snapshot=snapshot
    )


@pytest.mark.parametrize("wish", [Wish.AUTO, Wish.INCREMENTAL])
@pytest.mark.parametrize("snapshot", [SNAPSHOT, None])
def test_a_matching_parent_is_continued(wish: Wish, snapshot: DiskSnapshot | None) -> None:
    decision = decide(wish=wish, snapshot=snapshot)
    assert decision == Decision(Mode.INCREMENTAL)
    assert not decision.is_fallback


def test_a_full_read_on_request_is_no_fallback() -> None:
    decision = decide(wish=Wish.FULL)
    assert (decision.mode, decision.code) == (Mode.FULL, Reason.REQUESTED)
    assert not decision.is_fallback


def test_the_first_backup_is_full_even_where_an_incremental_was_asked_for() -> None:
    decision = decide(wish=Wish.INCREMENTAL, parent=None)
    assert (decision.mode, decision.code) == (Mode.FULL, Reason.FIRST_BACKUP)
    assert not decision.is_fallback


@pytest.mark.parametrize(
    ("parent", "code", "word"),
    [
        (replace(PARENT, deleted=True), Reason.PARENT_DELETED, "deleted"),
        (replace(PARENT, suspect_reason="bytes differed"), Reason.CHAIN_SUSPECT, "bytes differed"),
        (replace(PARENT, change_id=None), Reason.PARENT_WITHOUT_CHANGE_ID, "tracked"),
        (replace(PARENT, uuid="u-0"), Reason.DISK_REPLACED, "u-0"),
        (replace(PARENT, size_bytes=1 << 29), Reason.DISK_GROWN, "536870912 to 1073741824"),
        (replace(PARENT, size_bytes=1 << 31), Reason.DISK_SHRUNK, "2147483648 to 1073741824"),
        (replace(PARENT, chunk_size=1 << 20), Reason.CHUNK_SIZE_CHANGED, "1.0 MiB to 512.0 KiB"),
    ],
)
def test_a_parent_that_does_not_match_means_a_full_read_that_says_why(
    parent: Parent, code: Reason, word: str
) -> None:
    decision = decide(parent=parent)
    assert (decision.mode, decision.code) == (Mode.FULL, code)
    assert word in decision.reason
    assert decision.is_fallback


def test_a_source_without_tracking_is_read_in_full() -> None:
    decision = decide(tracking=Tracking.UNSUPPORTED)
    assert (decision.mode, decision.code) == (Mode.FULL, Reason.NO_TRACKING)


def test_the_platforms_own_reason_is_passed_on() -> None:
    decision = decide(snapshot=replace(SNAPSHOT, base_lost_reason="the bitmap is inconsistent"))
    assert decision.code is Reason.TRACKING_LOST
    assert decision.reason == "change tracking lost: the bitmap is inconsistent"


def test_a_differing_sample_names_the_place() -> None:
    decision = plan.sample_differed(start=1048576)
    assert (decision.mode, decision.code) == (Mode.FULL, Reason.SAMPLE_DIFFERED)
    assert "1048576" in decision.reason
