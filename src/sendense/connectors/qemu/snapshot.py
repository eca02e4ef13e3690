"""One moment of some disks of a running VM: take it, find it again, remove it.

How the moment comes about. A `copy-before-write` filter per disk is prepared beside the running
guest. Then the guest's CPUs are paused for some milliseconds; QEMU completes every request; the
filters are put between devices and disks; one transaction closes the old bitmaps and begins the new
ones; the guest runs on. No request of the guest can fall between any two of these, so all disks
and all bitmaps share one moment. From then on what the guest overwrites is first copied to a
fleecing file, and a `snapshot-access` node over the filter shows the disk as it was.

A fleecing file that cannot be written breaks the snapshot (`on-cbw-error=break-snapshot`): readers
get an error and the backup fails, while the guest notices nothing.
"""

import contextlib
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sendense.connectors.base import (
    Consistency,
    ConsistencyWish,
    DiskRequest,
    DiskSnapshot,
    Snapshot,
    SnapshotRequest,
)
from sendense.connectors.qemu import bitmaps, guard, layout, names
from sendense.connectors.qemu.agent import AgentRefused, AgentSilent
from sendense.connectors.qemu.qmp import CommandFailed, Qmp
from sendense.connectors.qemu.scratch import Scratch
from sendense.core.clock import Clock
from sendense.core.errors import Conflict, Denied, Invalid, NotFound, SendenseError, Unavailable
from sendense.core.ids import IdSource

COPY_SECONDS_MAX = 30  # a fleecing disk that hangs longer breaks the snapshot, not the guest
EXPORT_CLOSE_SECONDS_MAX = 30.0  # a request in flight has to end first
POLL_SECONDS = 0.02
CONNECT_SECONDS_MAX = 5.0
PAUSE_SECONDS_NOTABLE = 1.0  # people notice a pause from here on
REFERENCE_VERSION = 1


@dataclass(frozen=True, slots=True)
class Session:
    """One VM under one open connection, and what is needed to work on it."""

    qmp: Qmp
    vm_uuid: str
    agent: Path | None
    scratch: Scratch
    clock: Clock
    ids: IdSource


@dataclass(slots=True)
class _Plan:
    """A disk of the snapshot that is being taken."""

    disk: layout.Disk
    request: DiskRequest
    base: bitmaps.Base
    bitmap: names.BitmapName
    fleece: Path

    def node(self, role: str) -> str:
        return str(names.NodeName(self.bitmap.token, self.disk.key, role))


@dataclass(slots=True)
class _Moment:
    """How the moment came about."""

    consistency: Consistency = Consistency.CRASH
    warnings: list[str] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)


def take(session: Session, request: SnapshotRequest, warnings: list[str]) -> Snapshot:
    """Take the snapshot, or return it where it stands already; see `Source.take_snapshot`."""
    token = names.token(request.name)
    found = find_intact(session, token)
    if found is not None:
        return _to_snapshot(found)
    moment = _Moment(warnings=warnings)
    moment.warnings += _clear_the_way(session, token)
    now = layout.read(session.qmp, session.vm_uuid)
    for disk_request in request.disks:
        _check(now, disk_request)
    _start_server(session)
    try:
        record = _take_new(session, request, now, moment)
    except Exception as error:
        # The caller has no reference yet. What cannot be undone now is found by its names later.
        with contextlib.suppress(SendenseError):
            remove_nodes(session, token)
            discard_bitmaps(session, token)
        raise _explain(error) from error
    session.scratch.write_record(token, record)
    return _to_snapshot(record)


def find_intact(session: Session, token: str) -> dict[str, Any] | None:
    """Return the record of a snapshot that is complete and can be read, or None."""
    record = session.scratch.find_record(token)
    if record is None:
        return None
    nodes = {
        node["node-name"]: node
        for node in session.qmp.execute("query-named-block-nodes", flat=True)
    }
    exports = {export["id"] for export in session.qmp.execute("query-block-exports")}
    for disk in record["disks"]:
        fleece = nodes.get(str(names.NodeName(token, disk["key"], names.FLEECE)))
        # The file's name holds this moment's nonce: a snapshot of an earlier try never matches.
        if fleece is None or fleece.get("file") != disk["fleece"]:
            return None
        if disk["export"] not in nodes or disk["export"] not in exports:
            return None
    return record


def find_reference(session: Session, token: str) -> dict[str, Any] | None:
    """Return a reference to whatever exists of a snapshot, complete or not, or None."""
    now = layout.read(session.qmp, session.vm_uuid)
    has_nodes = any(name.token == token for name in now.list_own_nodes())
    has_bitmaps = any(
        (parsed := names.find_bitmap_name(bitmap.name)) and parsed.token == token
        for disk in now.disks
        for bitmap in disk.bitmaps
    )
    if has_nodes or has_bitmaps or token in session.scratch.list_tokens():
        record = find_intact(session, token)
        return record or _reference(session.scratch, token, "", [])
    return None


def find_files(scratch: Scratch, token: str) -> dict[str, Any] | None:
    """Return a reference to a snapshot whose QEMU ended, or None where it left no files."""
    return _reference(scratch, token, "", []) if token in scratch.list_tokens() else None


def remove_nodes(session: Session, token: str) -> None:
    """Remove exports, filters, nodes and files of a snapshot; nothing where they are gone."""
    qmp = session.qmp
    now = layout.read(qmp, session.vm_uuid)
    own = [name for name in now.list_own_nodes() if name.token == token]
    _remove_exports(session, token)
    for role in (names.ACCESS, names.FILTER, names.FLEECE):
        for name in own:
            if name.role != role:
                continue
            for disk in now.disks:
                if disk.top == str(name):
                    qmp.execute("qom-set", path=disk.qdev, property="drive", value=disk.node)
            qmp.execute("blockdev-del", node_name=str(name))
    session.scratch.remove_files(token)
    _stop_idle_server(session)


def discard_bitmaps(session: Session, token: str) -> None:
    """Give what a snapshot's new bitmaps recorded back to those that it closed."""
    now = layout.read(session.qmp, session.vm_uuid)
    _transact(session.qmp, [a for disk in now.disks for a in bitmaps.plan_discard(disk, token)])


def forget_bitmaps(session: Session, token: str, kept: frozenset[str]) -> None:
    """Remove all bitmaps of ours but those kept, on the VM's disks.

    `kept` holds names of bitmaps. Those that the snapshot `token` began are kept as well, and those
    of snapshots that stand: the clean-up of an old job must not touch the backup that runs now.
    """
    now = layout.read(session.qmp, session.vm_uuid)
    standing = {name.token for name in now.list_own_nodes()} | {token}
    actions = []
    for disk in now.disks:
        new = {
            bitmap.name
            for bitmap in disk.bitmaps
            if (parsed := names.find_bitmap_name(bitmap.name)) and parsed.token in standing
        }
        actions += bitmaps.plan_forget(disk, kept | new)
    _transact(session.qmp, actions)


def _clear_the_way(session: Session, token: str) -> list[str]:
    """Remove what is left of snapshots whose jobs are over: one VM has one backup at a time."""
    now = layout.read(session.qmp, session.vm_uuid)
    stale = {name.token for name in now.list_own_nodes()} | session.scratch.list_tokens()
    warnings = []
    for other in sorted(stale - {token}):
        remove_nodes(session, other)
        warnings.append("the leftovers of an earlier snapshot were removed")
    remove_nodes(session, token)
    discard_bitmaps(session, token)
    return warnings


def _check(now: layout.Layout, request: DiskRequest) -> None:
    disk = now.find_disk(request.key)
    if disk is None:
        raise NotFound(
            f"the VM has no disk with key {request.key}",
            kind="disk-unknown",
            hint="discover the source again",
            key=request.key,
        )
    if disk.excluded_reason is not None:
        raise Invalid(f"disk {disk.label}: {disk.excluded_reason}", kind="disk-excluded")


def _take_new(
    session: Session, request: SnapshotRequest, now: layout.Layout, moment: _Moment
) -> dict[str, Any]:
    token, nonce = names.token(request.name), session.ids.token(8)
    session.scratch.prepare()
    plans = [
        _prepare(session, disk_request, now, token=token, nonce=nonce)
        for disk_request in request.disks
    ]
    _hold(session, request.consistency, plans, moment)
    for plan in plans:
        session.qmp.execute(
            "blockdev-add",
            driver="snapshot-access",
            node_name=plan.node(names.ACCESS),
            file=plan.node(names.FILTER),
        )
        _export(session.qmp, plan)
    if moment.pauses and max(moment.pauses) > PAUSE_SECONDS_NOTABLE:
        moment.warnings.append(f"the VM was paused for {max(moment.pauses):.1f} s")
    reference = _reference(session.scratch, token, nonce, plans)
    return reference | {
        "moment": f"{token}-{nonce}",
        "consistency": moment.consistency.value,
        "warnings": moment.warnings,
        "paused_seconds": round(sum(moment.pauses), 4),
    }


def _prepare(
    session: Session, request: DiskRequest, now: layout.Layout, *, token: str, nonce: str
) -> _Plan:
    disk = now.find_disk(request.key)
    assert disk is not None, "checked before"
    base = bitmaps.decide_base(request.base_change_id, disk, now)
    parent = names.find_bitmap_name(base.bitmap) if base.bitmap else None
    plan = _Plan(
        disk=disk,
        request=request,
        base=base,
        bitmap=names.BitmapName(
            request.lineage, token, parent.token if parent else names.NO_PARENT
        ),
        fleece=session.scratch.create_fleece(token, disk.key, nonce, disk.size_bytes),
    )
    session.qmp.execute(
        "blockdev-add",
        driver="file",
        node_name=plan.node(names.FLEECE),
        filename=str(plan.fleece),
        discard="unmap",
    )
    session.qmp.execute(
        "blockdev-add",
        driver="copy-before-write",
        node_name=plan.node(names.FILTER),
        file=disk.node,
        target=plan.node(names.FLEECE),
        on_cbw_error="break-snapshot",
        cbw_timeout=COPY_SECONDS_MAX,
    )
    return plan


def _hold(session: Session, wish: ConsistencyWish, plans: list[_Plan], moment: _Moment) -> None:
    """Bring about the moment, with the guest's file systems frozen where wished and possible."""
    if wish is ConsistencyWish.OFF:
        _insert(session, plans, moment)
        return
    reason = None
    if session.agent is None:
        reason = "no guest agent is configured for this VM"
    elif not guard.is_running(session.qmp):
        reason = "the VM is paused, so its guest agent cannot answer"
    else:
        try:
            with guard.frozen(session.qmp, session.agent, moment.warnings) as count:
                _insert(session, plans, moment)
                moment.consistency = Consistency.FILESYSTEM if count else Consistency.CRASH
            if not count:
                moment.warnings.append("the guest agent froze nothing: no file system is mounted")
        except (AgentSilent, AgentRefused) as error:
            reason = error.message
    if reason is None:
        return
    if wish is ConsistencyWish.REQUIRE:
        raise AgentSilent(
            f"file-system consistency is required, but {reason}",
            hint="start the guest agent, or ask for consistency `prefer`",
        )
    moment.warnings.append(f"only crash-consistent: {reason}")
    _insert(session, plans, moment)


def _insert(session: Session, plans: list[_Plan], moment: _Moment) -> None:
    actions = [
        action
        for plan in plans
        for action in bitmaps.plan_moment(plan.disk, plan.base, plan.bitmap)
    ]
    with guard.paused(session.qmp, session.clock, moment.pauses):
        for plan in plans:
            session.qmp.execute(
                "qom-set",
                path=plan.disk.qdev,
                property="drive",
                value=plan.node(names.FILTER),
            )
        _transact(session.qmp, actions)


def _export(qmp: Qmp, plan: _Plan) -> None:
    arguments: dict[str, Any] = {}
    if plan.base.bitmap is not None:
        # Closed by now: QEMU exports no bitmap read-only that still records.
        arguments["bitmaps"] = [{"node": plan.disk.node, "name": plan.base.bitmap}]
    name = plan.node(names.ACCESS)
    qmp.execute("block-export-add", type="nbd", id=name, node_name=name, name=name, **arguments)


def _reference(scratch: Scratch, token: str, nonce: str, plans: list[_Plan]) -> dict[str, Any]:
    return {
        "version": REFERENCE_VERSION,
        "vm_uuid": scratch.vm_uuid,
        "token": token,
        "nonce": nonce,
        "socket": str(scratch.socket),
        "disks": [
            {
                "key": plan.disk.key,
                "uuid": plan.disk.uuid,
                "qdev": plan.disk.qdev,
                "size_bytes": plan.disk.size_bytes,
                "export": plan.node(names.ACCESS),
                "fleece": str(plan.fleece),
                "base": plan.base.bitmap,
                "base_lost_reason": plan.base.lost_reason,
                "change_id": str(
                    names.ChangeId(plan.disk.uuid, plan.disk.size_bytes, str(plan.bitmap))
                ),
            }
            for plan in plans
        ],
    }


def _to_snapshot(record: dict[str, Any]) -> Snapshot:
    return Snapshot(
        reference=record,
        moment=record["moment"],
        consistency=Consistency(record["consistency"]),
        disks=tuple(
            DiskSnapshot(
                key=disk["key"],
                size_bytes=disk["size_bytes"],
                uuid=disk["uuid"],
                change_id=disk["change_id"],
                base_lost_reason=disk["base_lost_reason"],
            )
            for disk in record["disks"]
        ),
        warnings=tuple(record["warnings"]),
    )


def _start_server(session: Session) -> None:
    """Make QEMU's one NBD server listen on our socket, unless it does already."""
    session.scratch.prepare()
    path = session.scratch.socket
    is_ours = _listens(path)
    if not is_ours:
        path.unlink(missing_ok=True)  # left by a QEMU that was killed
        try:
            session.qmp.execute(
                "nbd-server-start",
                addr={"type": "unix", "data": {"path": str(path)}},
                max_connections=0,
            )
        except CommandFailed as error:
            if "already running" in error.description:
                raise Conflict(
                    "QEMU's NBD server is in use by something else",
                    kind="nbd-server-busy",
                    hint="QEMU has one NBD server: wait for the migration, mirror or other backup",
                ) from error
            raise
    if not os.access(path, os.W_OK):
        raise Denied(
            f"QEMU's NBD socket {path} may not be opened by this user",
            hint="run the hub as the user that runs QEMU",
        )


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_SECONDS_MAX)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _stop_idle_server(session: Session) -> None:
    listens = _listens(session.scratch.socket)
    if listens and session.qmp.execute("query-block-exports"):
        return
    if listens:
        session.qmp.execute("nbd-server-stop")
    session.scratch.socket.unlink(missing_ok=True)
    session.scratch.remove_empty_folders()


def _remove_exports(session: Session, token: str) -> None:
    deadline = session.clock.monotonic() + EXPORT_CLOSE_SECONDS_MAX
    asked: set[str] = set()
    while True:
        left = [
            export
            for export in session.qmp.execute("query-block-exports")
            if (parsed := names.find_node_name(export["id"])) and parsed.token == token
        ]
        if not left:
            return
        if session.clock.monotonic() > deadline:
            raise Unavailable(f"QEMU did not close export {left[0]['id']}", kind="export-stuck")
        for export in left:
            if export["id"] not in asked and not export["shutting-down"]:
                session.qmp.execute("block-export-del", id=export["id"], mode="hard")
                asked.add(export["id"])
        session.clock.sleep(POLL_SECONDS)


def _transact(qmp: Qmp, actions: list[bitmaps.Action]) -> None:
    if actions:
        qmp.execute("transaction", actions=actions)


def _explain(error: Exception) -> Exception:
    if isinstance(error, OSError):
        return Unavailable(f"the scratch folder cannot be used: {error}", kind="scratch-folder")
    return error
