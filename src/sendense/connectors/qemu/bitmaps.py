"""Decisions about dirty bitmaps; pure, they return the actions of a QMP transaction.

Each snapshot closes the bitmap of its lineage's last backup and begins a new one, at one moment,
and never clears any. A closed bitmap plus all that were begun after it, without a gap, says what
changed since the closed one began; names carry the proof that there is no gap (`names.BitmapName`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sendense.connectors.qemu import names
from sendense.connectors.qemu.layout import Bitmap, Disk, Layout
from sendense.core.units import KIB, format_size

GRANULARITY = 64 * KIB  # qcow2's cluster: finer would cost memory, coarser would read too much

Action = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Base:
    """The bitmap that tells what changed since the parent backup, or why there is none.

    Attributes:
        bitmap: its name, or None.
        later: bitmaps begun since it was closed, oldest first: all have to be merged into it.
        lost_reason: None where `bitmap` is set or nothing was asked for.
    """

    bitmap: str | None = None
    later: tuple[str, ...] = ()
    lost_reason: str | None = None


def decide_base(change_id: str | None, disk: Disk, layout: Layout) -> Base:
    """Find the bitmap that a change id names, and whether it can be believed."""
    if change_id is None:
        return Base()
    wanted = names.find_change_id(change_id)
    if wanted is None or names.find_bitmap_name(wanted.bitmap) is None:
        return Base(lost_reason=f"change id {change_id[:80]!r} is not one of QEMU's")
    bitmap = disk.find_bitmap(wanted.bitmap)
    reason = _explain_mismatch(wanted, disk)
    if reason is None and bitmap is None:
        reason = _explain_missing(wanted.bitmap, disk, layout)
    if reason is not None or bitmap is None:
        return Base(lost_reason=reason)
    return _decide_bitmap(bitmap, disk)


def _explain_mismatch(wanted: names.ChangeId, disk: Disk) -> str | None:
    if wanted.disk_uuid != disk.uuid:
        return f"{disk.label} is another disk than the parent backup's"
    if wanted.size_bytes != disk.size_bytes:
        # QEMU resizes bitmaps with the disk, but leaves the new area clean.
        return (
            f"the disk was resized from {format_size(wanted.size_bytes)} to "
            f"{format_size(disk.size_bytes)}, and QEMU does not track the new area"
        )
    return None


def _decide_bitmap(bitmap: Bitmap, disk: Disk) -> Base:
    if bitmap.inconsistent:
        return Base(lost_reason="QEMU was killed before it could save its change tracking")
    if bitmap.busy:
        return Base(lost_reason="the change tracking is in use by something else inside QEMU")
    if bitmap.recording:
        return Base(bitmap=bitmap.name)
    later = find_later(bitmap, disk)
    if later is None:
        return Base(lost_reason="the change tracking was interrupted since the parent backup")
    return Base(bitmap=bitmap.name, later=later)


def find_later(bitmap: Bitmap, disk: Disk) -> tuple[str, ...] | None:
    """Return the bitmaps that follow a closed one without a gap up to now, or None."""
    ours = {other.name: names.find_bitmap_name(other.name) for other in disk.bitmaps}
    path: list[str] = []
    current = bitmap
    while not current.recording:
        here = ours[current.name]
        assert here is not None, f"{current.name} is not a bitmap of ours"
        following = [
            other
            for other in disk.bitmaps
            if (parsed := ours[other.name]) is not None
            and parsed.lineage == here.lineage
            and parsed.parent == here.token
        ]
        # Two that claim to follow: one is the leftover of a failure; which one nobody can tell.
        if len(following) != 1 or following[0].name in path:
            return None
        current = following[0]
        if current.inconsistent or current.busy:
            return None
        path.append(current.name)
    return tuple(path)


def plan_moment(disk: Disk, base: Base, new: names.BitmapName) -> list[Action]:
    """Return the actions that close the base and begin the new bitmap, at one moment."""
    actions: list[Action] = []
    if base.bitmap is not None:
        actions.append(_act("disable", disk, (base.later or (base.bitmap,))[-1]))
    if base.later:
        assert base.bitmap is not None
        actions.append(_merge(disk, base.bitmap, base.later))
        actions += [_act("remove", disk, name) for name in base.later]
    actions.append(
        _act("add", disk, str(new), persistent=disk.keeps_bitmaps, granularity=GRANULARITY)
    )
    return actions


def plan_discard(disk: Disk, token: str) -> list[Action]:
    """Return the actions that undo a snapshot: what its new bitmaps recorded goes to their bases.

    Nothing where they are gone already. A base that cannot take it over is removed: a missing
    bitmap leads to a full read, a wrong one to a wrong backup. Where a later snapshot reads either
    of the two, both stay: that snapshot already counts on what they say.
    """
    actions: list[Action] = []
    for bitmap in disk.bitmaps:
        parsed = names.find_bitmap_name(bitmap.name)
        if parsed is None or parsed.token != token:
            continue
        base = _find_parent(disk, parsed)
        if bitmap.busy or (base is not None and base.busy):
            continue
        if base is not None and not base.recording:
            if bitmap.inconsistent or base.inconsistent or not bitmap.recording:
                actions.append(_act("remove", disk, base.name))
            else:
                actions.append(_act("enable", disk, base.name))
                actions.append(_merge(disk, base.name, (bitmap.name,)))
        actions.append(_act("remove", disk, bitmap.name))
    return actions


def plan_forget(disk: Disk, kept: Iterable[str]) -> list[Action]:
    """Return the actions that remove every bitmap of ours but those kept."""
    keep = set(kept)
    return [
        _act("remove", disk, bitmap.name)
        for bitmap in disk.bitmaps
        if names.find_bitmap_name(bitmap.name) and bitmap.name not in keep and not bitmap.busy
    ]


def _find_parent(disk: Disk, child: names.BitmapName) -> Bitmap | None:
    for bitmap in disk.bitmaps:
        parsed = names.find_bitmap_name(bitmap.name)
        if parsed and parsed.lineage == child.lineage and parsed.token == child.parent:
            return bitmap
    return None


def _explain_missing(bitmap: str, disk: Disk, layout: Layout) -> str:
    if layout.find_bitmap_below(bitmap, disk) is not None:
        return (
            "an external snapshot was put on top of the disk; the change tracking stayed with the "
            "image below it"
        )
    if not disk.keeps_bitmaps:
        return (
            f"images of format {disk.image_format} cannot store change tracking, and QEMU was "
            "restarted since the parent backup"
        )
    return "the change tracking is gone: QEMU was killed before it was saved, or it was deleted"


def _act(action: str, disk: Disk, name: str, **more: Any) -> Action:
    data = {"node": disk.node, "name": name, **more}
    return {"type": f"block-dirty-bitmap-{action}", "data": data}


def _merge(disk: Disk, target: str, sources: Iterable[str]) -> Action:
    data = {"node": disk.node, "target": target, "bitmaps": list(sources)}
    return {"type": "block-dirty-bitmap-merge", "data": data}
