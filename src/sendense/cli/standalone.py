"""A repository given by its path: no server, no database, only the repository itself.

Imported only once a path is given: it brings the engine, which takes longer to load than a request
to the server takes.
"""

import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sendense.cli import progress, text, unlocking
from sendense.cli.command import Session
from sendense.cli.output import Column
from sendense.cli.unlocking import Given
from sendense.connectors.base import disk_id
from sendense.core import clock
from sendense.core.clock import SystemClock
from sendense.core.errors import Corrupt, Invalid, NotFound
from sendense.core.ids import SystemIds
from sendense.engine import restore as engine_restore
from sendense.engine.control import Control
from sendense.engine.progress import Progress
from sendense.repository import check as repository_check
from sendense.repository import descriptor, recipients, recovery
from sendense.repository.check import CheckReport
from sendense.repository.descriptor import Descriptor
from sendense.repository.manifest import DiskRecord, Manifest
from sendense.repository.repository import Repository
from sendense.repository.salvage import Lost, Salvage
from sendense.repository.storage import locations
from sendense.repository.storage.base import Storage

_STOP_SECONDS_MAX = 30.0  # the engine stops within 2 s; a hanging disk must not hang Ctrl-C
_SHOW_SECONDS = 0.2  # five times a second is as live as a bar needs to be


@dataclass(frozen=True)
class Target:
    """What to restore, and where to."""

    backup_id: str
    disk_index: int | None
    path: Path
    file_format: str
    overwrite: bool
    salvage: bool = False


def list_backups(session: Session, place: str, given: Given) -> None:
    """List the backups inside a repository.

    Those that can be read are listed even where another's manifest is damaged; then Corrupt is
    raised afterwards.
    """
    with open_repository(place, given) as repository:
        found, damaged = repository.backups.scan()
    if session.output.as_json:
        document = {"backups": [_describe(one) for one in found], "total": len(found)}
        session.output.json(json.dumps(document, ensure_ascii=False))
    elif found:
        _print_backups(session, found)
    elif not damaged:
        session.output.note("no backups in it")
    if damaged:
        raise damaged[0]


def stats(session: Session, place: str, given: Given) -> None:
    """Count what a repository holds."""
    with open_repository(place, given) as repository:
        counted = repository.stats()
    if session.output.as_json:
        document = {**asdict(counted), "dedup_ratio": counted.dedup_ratio}
        session.output.json(json.dumps(document))
        return
    capacity = counted.capacity
    ratio = counted.dedup_ratio
    session.output.facts(
        [
            ("Backups", counted.backup_count),
            ("Disks in them", text.size(counted.disk_bytes)),
            ("Distinct data", text.size(counted.chunk_bytes)),
            ("Stored", text.size(counted.stored_bytes)),
            ("Disk bytes per byte stored", f"{ratio:.1f}" if ratio else text.MISSING),
            ("Free", text.size(capacity.free_bytes if capacity else None)),
            ("Place", place),
        ]
    )


def restore(session: Session, place: str, target: Target, given: Given) -> None:
    """Write a disk of a backup to a file. Ctrl-C stops it and leaves no half file."""
    with open_repository(place, given) as repository:
        backup = repository.get_backup(target.backup_id)
        disk = _get_disk(backup, target.disk_index)
        salvage = Salvage() if target.salvage else None
        with repository.open_disk_reader(backup.backup_id, disk.key, salvage=salvage) as reader:
            request = engine_restore.RestoreRequest(
                path=target.path,
                format=engine_restore.Format(target.file_format),
                overwrite=target.overwrite,
            )
            restored = _run(session, reader, request)
    lost = salvage.list() if salvage else []
    if session.output.as_json:
        document = {
            "backup_id": backup.backup_id,
            "disk_id": disk_id(disk.key),
            "path": str(restored.path),
            "format": target.file_format,
            "size_bytes": restored.size_bytes,
            "bytes_written": restored.bytes_written,
            "lost": [asdict(one) for one in lost],
        }
        session.output.json(json.dumps(document, ensure_ascii=False))
    else:
        session.output.line(
            f"disk {disk.index} of {backup.backup_id} restored: {restored.path}, "
            f"{text.size(restored.size_bytes)} ({text.size(restored.bytes_written)} of data)"
        )
    if lost:
        raise _tell_lost(restored.path, lost)


def _tell_lost(restored: Path, lost: list[Lost]) -> Corrupt:
    """Write down beside a file what of it is lost, and return the error that says so."""
    listed = restored.with_name(restored.name + ".lost.json")
    listed.write_text(json.dumps([asdict(one) for one in lost], indent=2) + "\n")
    return Corrupt(
        f"{text.size(sum(one.length for one in lost))} of {restored} are lost, and zeros there",
        hint=f"{listed} says which bytes and why",
        kind="disk-salvaged",
    )


def check(session: Session, place: str, given: Given, *, read_data: bool) -> None:
    """Check that a repository is whole. Raises Corrupt, after all that was found is printed."""
    system_clock = SystemClock()
    display = progress.open_display(session.output.err, system_clock, silent=session.output.as_json)
    with open_repository(place, given) as repository, display:
        report = repository_check.check(
            repository,
            read_data=read_data,
            progress=lambda what, done, total: display.show(
                progress.Status(f"checking {what}", 100 * done / total if total else 0)
            ),
        )
    if session.output.as_json:
        document = {"clean": report.clean, **asdict(report)}
        session.output.json(json.dumps(document, ensure_ascii=False))
    else:
        _print_report(session, place, report)
    if not report.clean:
        raise Corrupt(
            f"the repository at {place} is damaged: {text.count(report.error_count, 'error')}",
            kind="repository-damaged",
            hint="keep it as it is; backups that no error names can be restored",
        )


def _print_report(session: Session, place: str, report: CheckReport) -> None:
    lines = [
        (
            (problem.kind, problem.backup_id, problem.disk_key),
            f"{problem.severity}: {problem.kind}: {problem.message}",
        )
        for problem in report.problems
    ]
    for line in text.shorten(lines):
        session.output.line(line)
    if report.problem_count > len(report.problems):
        session.output.line(f"and {report.problem_count - len(report.problems)} more")
    looked = (
        f"{text.count(report.backup_count, 'backup')}, {text.count(report.disk_count, 'disk')}, "
        f"{text.count(report.pack_count, 'pack')}, {text.count(report.chunk_count, 'chunk')}, "
        f"{text.size(report.object_bytes)}"
    )
    depth = "all data read" if report.read_data else "structure only; --read-data reads all data"
    if report.clean:
        session.output.line(f"{place} is whole: {looked} ({depth})")
    else:
        session.output.line(f"looked at {looked} ({depth})")


@contextmanager
def open_repository(place: str, given: Given) -> Iterator[Repository]:
    """Open a repository with what was given. Raises NotFound where there is none."""
    with open_storage(place) as (storage, found):
        root_key = find_root_key(storage, found, given)
        yield Repository.open(storage, root_key=root_key, clock=SystemClock(), ids=SystemIds())


@contextmanager
def open_storage(place: str) -> Iterator[tuple[Storage, Descriptor]]:
    """Open a repository as far as no key is needed. Raises NotFound where there is none."""
    try:
        storage = locations.open_storage(place)
    except NotFound as error:
        raise _no_repository(place, error) from error
    try:
        try:
            found = descriptor.get(storage)
        except NotFound as error:
            raise _no_repository(place, error) from error
        yield storage, found
    finally:
        storage.close()


def _no_repository(place: str, error: NotFound) -> NotFound:
    return NotFound(
        f"there is no repository at {place}", kind=error.kind, hint=error.hint, path=place
    )


def find_root_key(storage: Storage, found: Descriptor, given: Given) -> bytes | None:
    """Return the root key that was given; a person is asked only where one is needed."""
    if given.ask and found.encrypted:
        given = unlocking.ask()
    if given.recovery_key is not None:
        return recovery.parse(given.recovery_key)
    if given.passphrase is not None:
        return recipients.open_by_passphrase(storage, given.passphrase)
    return None


def _get_disk(backup: Manifest, index: int | None) -> DiskRecord:
    held = ", ".join(str(disk.index) for disk in backup.disks)
    if index is None:
        if len(backup.disks) != 1:
            raise Invalid(
                f"backup {backup.backup_id} holds more than one disk: {held}",
                kind="disk-ambiguous",
                hint="say which by --disk",
            )
        return backup.disks[0]
    for disk in backup.disks:
        if disk.index == index:
            return disk
    raise NotFound(
        f"backup {backup.backup_id} holds no disk {index}",
        kind="disk-unknown",
        hint=f"it holds {held}",
    )


def _run(
    session: Session, reader: engine_restore.Reader, request: engine_restore.RestoreRequest
) -> engine_restore.Restored:
    """Restore in a thread, and show how far it is meanwhile."""
    control = Control()
    counted = Progress()
    outcome: list[engine_restore.Restored] = []
    failed: list[BaseException] = []
    # Not Thread.join: interrupted by Ctrl-C, it takes the running thread for ended (bpo-45274).
    finished = threading.Event()

    def work() -> None:
        try:
            outcome.append(
                engine_restore.restore_disk_to_file(
                    reader, request, control=control, progress=counted
                )
            )
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            failed.append(error)
        finally:
            finished.set()

    display = progress.open_display(
        session.output.err, SystemClock(), silent=session.output.as_json
    )
    with display:
        try:
            threading.Thread(target=work, name="restore").start()
            while not finished.wait(_SHOW_SECONDS):
                display.show(_status(counted))
        except BaseException:
            control.cancel("interrupted")
            finished.wait(_STOP_SECONDS_MAX)
            raise
    if failed:
        raise failed[0]
    return outcome[0]


def _status(counted: Progress) -> progress.Status:
    now = counted.snapshot()
    return progress.Status(
        phase=now.phase,
        percent=now.fraction * 100,
        bytes_done=now.bytes_read,
        bytes_total=now.bytes_total or None,
        bytes_per_second=now.rate or None,
        seconds_left=now.seconds_left,
    )


def _print_backups(session: Session, backups: Iterable[Manifest]) -> None:
    session.output.table(
        [
            Column("CREATED (UTC)"),
            Column("VM"),
            Column("DISK", right=True),
            Column("SIZE", right=True),
            Column("TYPE"),
            Column("STORED", right=True),
            Column("BACKUP"),
        ],
        [
            (
                f"{one.created_at:%Y-%m-%d %H:%M:%S}",
                one.vm.name,
                disk.index,
                text.size(disk.size_bytes),
                disk.mode,
                text.size(disk.bytes_stored),
                one.backup_id,
            )
            for one in backups
            for disk in one.disks
        ],
    )


def _describe(backup: Manifest) -> dict[str, Any]:
    """Return a backup in the API's words, as far as the repository knows them."""
    return {
        "backup_id": backup.backup_id,
        "vm_name": backup.vm.name,
        "vm_uuid": backup.vm.uuid,
        "requested_type": backup.requested_type,
        "consistency": backup.consistency,
        "tags": dict(backup.tags),
        "partial": backup.partial,
        "created_at": clock.format_utc(backup.created_at),
        "completed_at": clock.format_utc(backup.completed_at),
        "disks": [
            {
                "disk_id": disk_id(disk.key),
                "index": disk.index,
                "label": disk.label,
                "capacity_bytes": disk.size_bytes,
                "backup_type": disk.mode,
                "type_reason": disk.mode_reason or None,
                "bytes_read": disk.bytes_read,
                "bytes_new": disk.bytes_new,
                "bytes_deduplicated": disk.bytes_deduplicated,
                "bytes_stored": disk.bytes_stored,
            }
            for disk in backup.disks
        ],
    }
