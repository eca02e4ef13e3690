"""The `Source` over bare QEMU processes."""

import contextlib
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sendense.connectors.base import (
    DiskDescription,
    DiskView,
    Snapshot,
    SnapshotOutcome,
    SnapshotRequest,
    Source,
    Tracking,
    VmDescription,
)
from sendense.connectors.config import PathPolicy
from sendense.connectors.qemu import config as qemu_config
from sendense.connectors.qemu import guard, layout, meter, names, scratch, snapshot, view
from sendense.connectors.qemu.config import VmAddress
from sendense.connectors.qemu.qmp import Qmp
from sendense.core.clock import Clock, SystemClock
from sendense.core.errors import Conflict, Invalid, NotFound, SendenseError, Unavailable
from sendense.core.ids import IdSource, SystemIds

_POWER_STATES = {"running": "on", "shutdown": "off", "guest-panicked": "off"}


def validate_config(config: Mapping[str, Any], resolve: PathPolicy) -> None:
    """Raise Invalid or Denied for what `open_source` would refuse; contacts nothing."""
    qemu_config.parse(config, resolve)


def open_source(config: Mapping[str, Any], resolve: PathPolicy, scratch_root: Path) -> Source:
    """Return the source; see `QemuSource`."""
    return QemuSource(config, resolve, scratch_root)


class QemuSource:
    """VMs of bare QEMU processes; see `Source` for what each method promises.

    Every method opens its own connection to the VM's QMP socket, holds it as short as it can and
    first mends what a killed predecessor left (`guard`).

    Args:
        config: see `config`.
        resolve: asked for each socket, at construction and at each use.
        scratch_root: a private folder with room for what guests overwrite during a backup.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        resolve: PathPolicy,
        scratch_root: Path,
        *,
        clock: Clock | None = None,
        ids: IdSource | None = None,
    ) -> None:
        self._addresses = qemu_config.parse(config, resolve)
        self._allowed = resolve
        self._scratch_root = scratch_root
        self._clock = clock or SystemClock()
        self._ids = ids or SystemIds()
        self._known: dict[str, VmAddress] = {}

    def probe(self) -> str:
        """Contact every VM and say how many answered."""
        vms = self.list_vms()
        disks = sum(len(vm.disks) for vm in vms)
        return f"QEMU: {len(vms)} VMs with {disks} disks answer"

    def list_vms(self) -> list[VmDescription]:
        """Return all VMs with their disks. Raises Unavailable where one does not answer."""
        vms = []
        for address in self._addresses:
            with self._connect(address) as (session, _):
                vms.append(_describe(session, address.name))
        for index, vm in enumerate(vms):
            for other in vms[:index]:
                if other.uuid == vm.uuid:
                    raise Conflict(
                        f"VMs {other.name!r} and {vm.name!r} have the same uuid {vm.uuid}",
                        kind="vm-uuid-repeated",
                        hint="start each QEMU with its own -uuid",
                    )
        return vms

    def confirm_gone(self, vm_uuids: Collection[str]) -> frozenset[str]:
        """Return all: what is not listed is not there."""
        return frozenset(vm_uuids)

    def take_snapshot(self, request: SnapshotRequest) -> Snapshot:
        """Hold all requested disks at one moment; see `snapshot`."""
        with self._connect_by_uuid(request.vm_uuid) as (session, warnings):
            return snapshot.take(session, request, warnings)

    def open_disk(self, reference: dict[str, Any], key: int) -> AbstractContextManager[DiskView]:
        """Open a disk of a snapshot over NBD."""
        _check_reference(reference)
        vm_uuid = reference["vm_uuid"]
        return view.open_view(reference, key, lambda: self._ask_statistics(vm_uuid))

    def remove_snapshot(
        self,
        reference: dict[str, Any],
        outcome: SnapshotOutcome,
        live_change_ids: frozenset[str],
    ) -> None:
        """Remove everything of a snapshot but the bitmaps that are still needed."""
        _check_reference(reference)
        token = reference["token"]
        parsed = [names.find_change_id(change_id) for change_id in live_change_ids]
        kept = frozenset(change_id.bitmap for change_id in parsed if change_id is not None)
        try:
            with self._connect_by_uuid(reference["vm_uuid"]) as (session, _):
                snapshot.remove_nodes(session, token)
                if outcome is SnapshotOutcome.DISCARDED:
                    snapshot.discard_bitmaps(session, token)
                snapshot.forget_bitmaps(session, token, kept)
        except Unavailable as error:
            if error.kind != "qmp-unreachable":
                raise
            # QEMU ended, and the snapshot with it. Bitmaps that it stored prove by their names how
            # they follow each other, so the next snapshot can use or forget them.
            scratch_folder = self._scratch(reference["vm_uuid"])
            scratch_folder.remove_files(token)
            if not scratch_folder.list_tokens():
                scratch_folder.socket.unlink(missing_ok=True)
                scratch_folder.remove_empty_folders()

    def find_snapshot(self, vm_uuid: str, name: str) -> dict[str, Any] | None:
        """Return the reference of what exists of a snapshot, or None."""
        try:
            with self._connect_by_uuid(vm_uuid) as (session, _):
                return snapshot.find_reference(session, names.token(name))
        except Unavailable as error:
            if error.kind != "qmp-unreachable":
                raise
            return snapshot.find_files(self._scratch(vm_uuid), names.token(name))

    def close(self) -> None:
        """Nothing is held between calls."""

    def _ask_statistics(self, vm_uuid: str) -> meter.Statistics:
        """Ask a VM, which is looked for once only: this happens every second, beside others."""
        if vm_uuid not in self._known:
            with self._connect_by_uuid(vm_uuid):
                pass
        return meter.ask(self._allowed(self._known[vm_uuid].qmp))

    def _resolve(self, address: VmAddress) -> tuple[Path, Path | None]:
        agent = None if address.agent is None else self._allowed(address.agent)
        return self._allowed(address.qmp), agent

    def _scratch(self, vm_uuid: str) -> scratch.Scratch:
        return scratch.Scratch(self._scratch_root, str(uuid.UUID(vm_uuid)))

    @contextlib.contextmanager
    def _connect(self, address: VmAddress) -> Iterator[tuple[snapshot.Session, list[str]]]:
        # Asked again at each use: what a path leads to may have changed since registration.
        qmp_path, agent_path = self._resolve(address)
        with Qmp(qmp_path) as qmp:
            warnings = guard.heal(qmp, agent_path)
            vm_uuid = _identify(qmp, address.name)
            self._known[vm_uuid] = address
            yield (
                snapshot.Session(
                    qmp=qmp,
                    vm_uuid=vm_uuid,
                    agent=agent_path,
                    scratch=self._scratch(vm_uuid),
                    clock=self._clock,
                    ids=self._ids,
                ),
                warnings,
            )

    @contextlib.contextmanager
    def _connect_by_uuid(self, vm_uuid: str) -> Iterator[tuple[snapshot.Session, list[str]]]:
        with contextlib.ExitStack() as stack:
            yield self._find(stack, vm_uuid)

    def _find(
        self, stack: contextlib.ExitStack, vm_uuid: str
    ) -> tuple[snapshot.Session, list[str]]:
        known = self._known.get(vm_uuid)
        candidates = [known] if known else []
        candidates += [address for address in self._addresses if address is not known]
        silent: SendenseError | None = None
        for address in candidates:
            attempt = contextlib.ExitStack()
            try:
                session, warnings = attempt.enter_context(self._connect(address))
            except Unavailable as error:
                silent = silent or error
                continue
            if session.vm_uuid == vm_uuid:
                stack.push(attempt)
                return session, warnings
            attempt.close()
        if silent is not None:
            raise silent  # it may have been the one
        raise NotFound(
            f"no VM of this source has the uuid {vm_uuid}",
            kind="vm-unknown",
            hint="discover the source again",
        )


def _identify(qmp: Qmp, name: str) -> str:
    found = uuid.UUID(qmp.execute("query-uuid")["UUID"])
    return str(found if found.int else uuid.uuid5(names.NAMESPACE, f"vm {name}"))


def _describe(session: snapshot.Session, name: str) -> VmDescription:
    qmp = session.qmp
    status = qmp.execute("query-status")["status"]
    return VmDescription(
        uuid=session.vm_uuid,
        name=name,
        power_state=_POWER_STATES.get(status, "paused"),
        disks=tuple(
            DiskDescription(
                key=disk.key,
                index=disk.index,
                label=disk.label,
                uuid=disk.uuid,
                capacity_bytes=disk.size_bytes,
                tracking=Tracking.SUPPORTED,  # images that cannot store it track until QEMU ends
                datastore=disk.image,
                excluded_reason=disk.excluded_reason,
            )
            for disk in layout.read(qmp, session.vm_uuid).disks
        ),
        path=qmp.execute("query-name").get("name"),
        cpu_count=len(qmp.execute("query-cpus-fast")),
        memory_bytes=qmp.execute("query-memory-size-summary")["base-memory"],
    )


def _check_reference(reference: dict[str, Any]) -> None:
    if reference.get("version") != snapshot.REFERENCE_VERSION:
        raise Invalid("the reference is not one of a QEMU snapshot", kind="reference-invalid")
