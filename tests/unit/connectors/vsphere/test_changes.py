"""Rules 10 to 12: what changed is asked for page by page, and never believed where it is odd."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from sendense.connectors.vsphere import changes, failure
from sendense.core.errors import Denied, SendenseError, Unavailable
from sendense.core.extent import Extent

SIZE = 1000


@dataclass
class Canned:
    """A session whose vCenter tells these pages: start, length and areas, or raises."""

    pages: list[Any]

    def __post_init__(self) -> None:
        self.asked: list[int] = []

    def run(self, doing: str, action: Any) -> Any:
        try:
            return action(self)
        except vmodl.MethodFault as error:
            raise failure.translate(error, doing=doing) from error

    def bind(self, _kind: type, _moref: str) -> Any:
        return SimpleNamespace(QueryChangedDiskAreas=self.query)

    def query(self, _snapshot: Any, key: int, start: int, change_id: str) -> Any:
        assert (key, change_id) == (2000, "52 aa/7")
        self.asked.append(start)
        page = self.pages.pop(0)
        if isinstance(page, Exception):
            raise page
        first, length, areas = page
        return SimpleNamespace(
            startOffset=first,
            length=length,
            changedArea=[SimpleNamespace(start=one, length=count) for one, count in areas],
        )


def ask(*pages: Any, size: int = SIZE) -> tuple[list[Extent], list[int]]:
    canned = Canned(list(pages))
    found = changes.list_changed(
        canned,  # type: ignore[arg-type]
        vm_moref="vm-1",
        snapshot_moref="snapshot-1",
        key=2000,
        base_change_id="52 aa/7",
        size_bytes=size,
    )
    return list(found), canned.asked


def refuse(*pages: Any) -> SendenseError:
    with pytest.raises(SendenseError) as caught:
        ask(*pages)
    return caught.value


def test_one_page_is_asked_for_once() -> None:
    assert ask((0, 1000, [(10, 5), (20, 5)])) == ([Extent(10, 5), Extent(20, 5)], [0])


def test_the_next_page_begins_where_the_last_one_said_that_it_ends() -> None:
    found, asked = ask((0, 300, [(0, 10)]), (300, 400, [(650, 10)]), (700, 300, []))
    assert found == [Extent(0, 10), Extent(650, 10)]
    assert asked == [0, 300, 700]


def test_an_empty_page_is_not_the_end() -> None:
    found, _ = ask((0, 300, []), (300, 700, [(900, 100)]))
    assert found == [Extent(900, 100)]


def test_a_page_without_a_list_of_areas_is_empty() -> None:
    assert ask((0, 1000, [])) == ([], [0])


def test_nothing_is_asked_at_or_behind_the_end() -> None:
    found, asked = ask((0, 4000, [(900, 400)]))
    assert found == [Extent(900, 100)]
    assert asked == [0]


def test_what_begins_before_the_start_asked_for_is_cut() -> None:
    """VCenter may answer from the edge of a block."""
    found, _ = ask((0, 500, [(400, 150)]), (448, 552, [(448, 102), (600, 10)]))
    assert found == [Extent(400, 150), Extent(600, 10)]


def test_an_area_of_length_nothing_is_none() -> None:
    assert ask((0, 1000, [(5, 0)]))[0] == []


@pytest.mark.parametrize(
    "pages",
    [
        [(0, 0, [])],
        [(0, 300, []), (300, 0, [])],
        [(300, 700, [])],  # what about the start?
        [(0, 1000, [(20, 5), (10, 5)])],
        [(0, 1000, [(20, -5)])],
        [(0, 500, []), (500, 500, [(400, 10)])],
    ],
)
def test_an_answer_that_makes_no_sense_means_a_full_read(pages: list[Any]) -> None:
    error = refuse(*pages)
    assert isinstance(error, Unavailable)
    assert error.kind == "tracking-lost"


@pytest.mark.parametrize(
    "fault", [vim.fault.FileFault, vmodl.fault.InvalidArgument, vim.fault.NotFound]
)
def test_a_refusal_means_a_full_read_with_vcenter_s_words(fault: Any) -> None:
    error = refuse(fault(msg="Error caused by file"))
    assert error.kind == "tracking-lost"
    assert "Error caused by file" in error.message


@pytest.mark.parametrize(
    "fault", [vim.fault.NoPermission(privilegeId="A.B"), vim.fault.RestrictedVersion()]
)
def test_what_a_person_must_mend_does_not_become_a_full_read(fault: Any) -> None:
    error = refuse(fault)
    assert isinstance(error, Denied)


def test_a_vcenter_that_is_away_is_asked_again_later() -> None:
    class Away(Canned):
        def query(self, *_: Any) -> Any:
            raise Unavailable("away", kind="vsphere-unreachable")

    with pytest.raises(Unavailable) as caught:
        list(
            changes.list_changed(
                Away([]),  # type: ignore[arg-type]
                vm_moref="vm-1",
                snapshot_moref="s",
                key=2000,
                base_change_id="x/1",
                size_bytes=1,
            )
        )
    assert caught.value.kind == "vsphere-unreachable"


def test_pages_without_end_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "PAGES_MAX", 3)
    error = refuse((0, 1, []), (1, 1, []), (2, 1, []))
    assert error.kind == "tracking-lost"


@pytest.mark.parametrize(
    ("base", "now", "word"),
    [
        ("52 aa/7", "52 aa/8", None),
        ("52 aa/7", "52 aa/7", "went back"),
        ("52 aa", "52 aa", None),
        ("52 aa/x", "52 aa/y", None),
        ("52 aa/7", None, "tracking is off"),
        ("52 aa/7", "52 bb/8", "was reset"),
        ("52 aa/7", "52 aa/6", "went back"),
    ],
)
def test_a_base_counts_only_while_the_same_tracking_goes_on(
    base: str, now: str | None, word: str | None
) -> None:
    """Rules 10 and 11."""
    reason = changes.explain_lost(base, now)
    assert reason is None if word is None else word in str(reason)
