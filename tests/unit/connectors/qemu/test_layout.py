from typing import Any

import pytest

from sendense.connectors.qemu import layout
from sendense.connectors.qemu.layout import Disk, Layout


def block(**changes: Any) -> dict[str, Any]:
    entry = {
        "qdev": "/machine/peripheral/d0/virtio-backend",
        "removable": False,
        "inserted": {"ro": False, "node-name": "disk0"},
    }
    return entry | changes


def test_a_writable_disk_with_a_medium_is_a_disk() -> None:
    assert layout.is_disk(block())


@pytest.mark.parametrize(
    "changes",
    [
        {"removable": True},
        {"inserted": {"ro": True, "node-name": "disk0"}},
        {"inserted": None},
        {"qdev": None},
    ],
)
def test_drives_without_medium_read_only_and_unattached_ones_are_no_disks(
    changes: dict[str, Any],
) -> None:
    assert not layout.is_disk(block(**changes))


def test_a_serial_number_identifies_a_disk_wherever_it_is_attached() -> None:
    before = layout.identify("vm", {"slot1": "S1", "slot2": ""})
    after = layout.identify("vm", {"slot9": "S1", "slot2": ""})
    assert before["slot1"] == after["slot9"]
    assert before["slot2"] == after["slot2"]


def test_repeated_serial_numbers_identify_nothing() -> None:
    found = layout.identify("vm", {"slot1": "S", "slot2": "S"})
    assert found["slot1"] != found["slot2"]


def test_the_same_slot_of_two_vms_holds_two_disks() -> None:
    assert layout.identify("one", {"slot": ""}) != layout.identify("two", {"slot": ""})


def test_what_a_filter_of_ours_filters_is_found() -> None:
    ours = "sendense-0123456789ab-2000-c"
    graph = {
        "nodes": [
            {"id": 1, "name": ours},
            {"id": 2, "name": "disk0"},
            {"id": 3, "name": "sendense-0123456789ab-2000-f"},
            {"id": 4, "name": "theirs"},
        ],
        "edges": [
            {"parent": 1, "child": 2, "name": "file"},
            {"parent": 1, "child": 3, "name": "target"},
            {"parent": 4, "child": 2, "name": "file"},
        ],
    }
    assert layout.find_filtered(graph) == {ours: "disk0"}


def test_nameless_bitmaps_are_left_out() -> None:
    entries: list[dict[str, Any]] = [
        {"recording": True, "busy": False, "persistent": False},
        {"name": "b", "recording": True, "busy": False, "persistent": True},
    ]
    assert [bitmap.name for bitmap in layout.list_bitmaps(entries)] == ["b"]


def test_a_bitmap_is_found_in_a_chain_of_images_even_in_a_loop() -> None:
    nodes: dict[str, dict[str, Any]] = {
        "top": {"node-name": "top", "file": "/top", "backing_file": "/middle"},
        "middle": {"node-name": "middle", "file": "/middle", "backing_file": "/base"},
        "#block1": {"node-name": "#block1", "file": "/middle"},
        "base": {
            "node-name": "base",
            "file": "/base",
            "backing_file": "/middle",
            "dirty-bitmaps": [{"name": "b"}],
        },
    }
    disk = Disk(2000, 0, "/machine/x", "top", "top", "u", 1, "/top", "qcow2", True, ())  # noqa: FBT003 - positional as in the record
    found = Layout((disk,), nodes)
    assert found.find_bitmap_below("b", disk) == "/base"
    assert found.find_bitmap_below("other", disk) is None
