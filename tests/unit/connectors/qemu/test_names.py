import pytest

from sendense.connectors.qemu import names


def test_a_node_name_is_read_back_and_fits_qemus_limit() -> None:
    name = names.NodeName(names.token("backup-3n5v8r1t6y2u9i4o"), 99999, names.ACCESS)
    assert len(str(name)) <= names.NODE_NAME_LENGTH_MAX
    assert names.find_node_name(str(name)) == name


@pytest.mark.parametrize("name", ["disk0", "#block123", "sendense-", "sendense-abc-2000-f", ""])
def test_nodes_of_others_are_not_ours(name: str) -> None:
    assert names.find_node_name(name) is None


@pytest.mark.parametrize("lineage", ["a", "chain-1", "x" * 32, "none", "0123456789ab"])
def test_a_bitmap_name_is_read_back_whatever_the_lineage(lineage: str) -> None:
    for parent in (names.NO_PARENT, names.token("before")):
        name = names.BitmapName(lineage, names.token("now"), parent)
        assert names.find_bitmap_name(str(name)) == name


@pytest.mark.parametrize("name", ["bitmap0", "sendense-x", "libvirt-1", "sendense-a-zz-none"])
def test_bitmaps_of_others_are_not_ours(name: str) -> None:
    assert names.find_bitmap_name(name) is None


def test_a_change_id_is_read_back() -> None:
    change_id = names.ChangeId("6f1c6a52-7e0b-4d53-9a5e-3c1f0d9b2a77", 1 << 30, "sendense-a-b-c")
    assert names.find_change_id(str(change_id)) == change_id
    assert names.find_change_id("52 3c ff/42") is None


def test_two_snapshot_names_have_two_tokens() -> None:
    assert names.token("job-1") != names.token("job-2")
    assert names.token("job-1") == names.token("job-1")
