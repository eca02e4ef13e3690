"""Decisions about bitmaps, without a QEMU: what may be believed, and what each outcome changes."""

import pytest

from sendense.connectors.qemu import bitmaps, names
from sendense.connectors.qemu.layout import Bitmap, Disk, Layout

UUID = "6f1c6a52-7e0b-4d53-9a5e-3c1f0d9b2a77"
SIZE = 1 << 20
LINEAGE = "chain1"


def name(snapshot: str, parent: str | None = None, lineage: str = LINEAGE) -> str:
    token = names.token(parent) if parent else names.NO_PARENT
    return str(names.BitmapName(lineage, names.token(snapshot), token))


def bitmap(
    text: str, *, recording: bool = True, inconsistent: bool = False, busy: bool = False
) -> Bitmap:
    return Bitmap(text, recording, inconsistent, busy, persistent=True)


def disk(*found: Bitmap, keeps_bitmaps: bool = True) -> Disk:
    return Disk(
        key=2000,
        index=0,
        qdev="/machine/peripheral/d0/virtio-backend",
        node="disk0",
        top="disk0",
        uuid=UUID,
        size_bytes=SIZE,
        image="/a.qcow2",
        image_format="qcow2" if keeps_bitmaps else "raw",
        keeps_bitmaps=keeps_bitmaps,
        bitmaps=found,
    )


def decide(change_id: str | None, on: Disk) -> bitmaps.Base:
    nodes = {"disk0": {"node-name": "disk0", "file": "/a.qcow2"}}
    return bitmaps.decide_base(change_id, on, Layout((on,), nodes))


def change_id(bitmap_name: str, *, uuid: str = UUID, size: int = SIZE) -> str:
    return str(names.ChangeId(uuid, size, bitmap_name))


def list_steps(actions: list[bitmaps.Action]) -> list[tuple[str, str]]:
    return [
        (
            action["type"].removeprefix("block-dirty-bitmap-"),
            action["data"].get("name", action["data"].get("target")),
        )
        for action in actions
    ]


def test_nothing_asked_for_is_nothing_lost() -> None:
    assert decide(None, disk()) == bitmaps.Base()


def test_a_recording_bitmap_is_the_base() -> None:
    assert decide(change_id(name("a")), disk(bitmap(name("a")))) == bitmaps.Base(name("a"))


@pytest.mark.parametrize(
    ("wanted", "on", "reason"),
    [
        ("52 3c/1", disk(), "not one of QEMU's"),
        (change_id("theirs"), disk(bitmap("theirs")), "not one of QEMU's"),
        (change_id(name("a"), uuid=UUID[::-1]), disk(bitmap(name("a"))), "another disk"),
        (change_id(name("a"), size=512), disk(bitmap(name("a"))), "resized from 512 B"),
        (change_id(name("a")), disk(), "is gone"),
        (change_id(name("a")), disk(keeps_bitmaps=False), "raw cannot store"),
        (
            change_id(name("a")),
            disk(bitmap(name("a"), recording=False, inconsistent=True)),
            "QEMU was killed",
        ),
        (change_id(name("a")), disk(bitmap(name("a"), busy=True)), "in use"),
        (change_id(name("a")), disk(bitmap(name("a"), recording=False)), "interrupted"),
    ],
)
def test_each_way_to_lose_the_base_has_its_reason(wanted: str, on: Disk, reason: str) -> None:
    base = decide(wanted, on)
    assert base.bitmap is None
    assert base.lost_reason is not None
    assert reason in base.lost_reason


def test_a_closed_bitmap_is_used_with_all_that_followed_it() -> None:
    on = disk(
        bitmap(name("c", "b")),
        bitmap(name("a"), recording=False),
        bitmap(name("b", "a"), recording=False),
        bitmap(name("x"), recording=True),
    )
    base = decide(change_id(name("a")), on)
    assert base == bitmaps.Base(name("a"), later=(name("b", "a"), name("c", "b")))


def test_a_gap_between_bitmaps_is_never_bridged() -> None:
    on = disk(bitmap(name("a"), recording=False), bitmap(name("c", "b")))
    assert decide(change_id(name("a")), on).bitmap is None


def test_of_two_followers_neither_is_believed() -> None:
    on = disk(bitmap(name("a"), recording=False), bitmap(name("b", "a")), bitmap(name("c", "a")))
    assert decide(change_id(name("a")), on).bitmap is None


def test_another_lineage_does_not_follow() -> None:
    other = bitmap(name("b", "a", lineage="chain2"))
    assert decide(change_id(name("a")), disk(bitmap(name("a"), recording=False), other)).later == ()
    assert decide(change_id(name("a")), disk(bitmap(name("a"), recording=False), other)).lost_reason


def test_an_inconsistent_follower_breaks_the_chain() -> None:
    follower = bitmap(name("b", "a"), recording=False, inconsistent=True)
    on = disk(bitmap(name("a"), recording=False), follower)
    assert decide(change_id(name("a")), on).bitmap is None


def test_the_moment_closes_the_base_and_begins_the_new_one() -> None:
    on = disk(bitmap(name("a")))
    new = names.BitmapName(LINEAGE, names.token("b"), names.token("a"))
    actions = bitmaps.plan_moment(on, bitmaps.Base(name("a")), new)
    assert list_steps(actions) == [("disable", name("a")), ("add", str(new))]
    assert actions[-1]["data"]["persistent"] is True


def test_the_moment_joins_what_followed_into_the_base() -> None:
    base = bitmaps.Base(name("a"), later=(name("b", "a"), name("c", "b")))
    new = names.BitmapName(LINEAGE, names.token("d"), names.token("a"))
    steps = list_steps(bitmaps.plan_moment(disk(), base, new))
    assert steps == [
        ("disable", name("c", "b")),
        ("merge", name("a")),
        ("remove", name("b", "a")),
        ("remove", name("c", "b")),
        ("add", str(new)),
    ]


def test_bitmaps_of_images_that_cannot_store_them_are_not_persistent() -> None:
    new = names.BitmapName(LINEAGE, names.token("b"))
    (added,) = bitmaps.plan_moment(disk(keeps_bitmaps=False), bitmaps.Base(), new)
    assert added["data"]["persistent"] is False


def test_a_discarded_bitmap_goes_back_into_its_base() -> None:
    on = disk(bitmap(name("a"), recording=False), bitmap(name("b", "a")))
    assert list_steps(bitmaps.plan_discard(on, names.token("b"))) == [
        ("enable", name("a")),
        ("merge", name("a")),
        ("remove", name("b", "a")),
    ]


def test_discarding_twice_or_without_the_new_bitmap_changes_nothing() -> None:
    assert bitmaps.plan_discard(disk(bitmap(name("a"))), names.token("b")) == []
    assert bitmaps.plan_discard(disk(), names.token("b")) == []


@pytest.mark.parametrize("broken", ["base", "new"])
def test_a_base_that_cannot_take_changes_back_is_removed(broken: str) -> None:
    base = bitmap(name("a"), recording=False, inconsistent=broken == "base")
    new = bitmap(name("b", "a"), inconsistent=broken == "new", recording=broken != "new")
    assert list_steps(bitmaps.plan_discard(disk(base, new), names.token("b"))) == [
        ("remove", name("a")),
        ("remove", name("b", "a")),
    ]


@pytest.mark.parametrize("read", ["base", "new"])
def test_what_a_later_snapshot_reads_is_not_taken_back(read: str) -> None:
    base = bitmap(name("a"), recording=False, busy=read == "base")
    new = bitmap(name("b", "a"), recording=read != "new", busy=read == "new")
    assert bitmaps.plan_discard(disk(base, new), names.token("b")) == []


def test_only_bitmaps_of_ours_that_nobody_needs_are_forgotten() -> None:
    on = disk(
        bitmap(name("a")),
        bitmap(name("b", "a")),
        bitmap("theirs"),
        bitmap(name("c"), busy=True),
    )
    assert list_steps(bitmaps.plan_forget(on, {name("b", "a")})) == [("remove", name("a"))]
