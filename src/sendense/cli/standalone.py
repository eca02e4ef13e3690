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

from sendense.cli import progress, text
from sendense.cli.command import Session
from sendense.cli.output import Column
from sendense.connectors.base import disk_id
from sendense.core import clock
from sendense.core.clock import SystemClock
from sendense.core.errors import Corrupt, Invalid, NotFound
from sendense.core.ids import SystemIds
from sendense.engine import restore as engine_restore
from sendense.engine.control import Control
from sendense.engine.progress import Progress
from sendense.repository import check as repository_check
from sendense.repository.check import CheckReport
from sendense.repository.manifest import DiskRecord, Manifest
from sendense.repository.repository import Repository
from sendense.repository.storage.local import LocalStorage

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


def list_backups(session: Session, path: Path) -> None:
    """List the backups inside a repository.

    Those that can be read are listed even where another's manifest is damaged; then Corrupt is
    raised afterwards.
    """
    with _open(path) as repository:
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


def stats(session: Session, path: Path) -> None:
    """Count what a repository holds."""
    with _open(path) as repository:
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
            ("Place", path),
        ]
    )


def restore(session: Session, path: Path, target: Target) -> None:
    """Write a disk of a backup to a file. Ctrl-C stops it and leaves no half file."""
    with _open(path) as repository:
        backup = repository.get_backup(target.backup_id)
        disk = _get_disk(backup, target.disk_index)
        with repository.open_disk_reader(backup.backup_id, disk.key) as reader:
            request = engine_restore.RestoreRequest(
                path=target.path,
                format=engine_restore.Format(target.file_format),
                overwrite=target.overwrite,
            )
            restored = _run(session, reader, request)
    if session.output.as_json:
        document = {
            "backup_id": backup.backup_id,
            "disk_id": disk_id(disk.key),
            "path": str(restored.path),
            "format": target.file_format,
            "size_bytes": restored.size_bytes,
            "bytes_written": restored.bytes_written,
        }
        session.output.json(json.dumps(document, ensure_ascii=False))
        return
    session.output.line(
        f"disk {disk.index} of {backup.backup_id} restored: {restored.path}, "
        f"{text.size(restored.size_bytes)} ({text.size(restored.bytes_written)} of data)"
    )


def check(session: Session, path: Path, *, read_data: bool) -> None:
    """Check that a repository is whole. Raises Corrupt, after all that was found is printed."""
    system_clock = SystemClock()
    display = progress.open_display(session.output.err, system_clock, silent=session.output.as_json)
    with _open(path) as repository, display:
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
        _print_report(session, path, report)
    if not report.clean:
        raise Corrupt(
            f"the repository at {path} is damaged: {text.count(report.error_count, 'error')}",
            kind="repository-damaged",
            hint="keep it as it is; backups that no error names can be restored",
        )


def _print_report(session: Session, path: Path, report: CheckReport) -> None:
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
        session.output.line(f"{path} is whole: {looked} ({depth})")
    else:
        session.output.line(f"looked at {looked} ({depth})")


@contextmanager
def _open(path: Path) -> Iterator[Repository]:
    try:
        storage = LocalStorage(path.absolute())
        repository = Repository.open(storage, clock=SystemClock(), ids=SystemIds())
    except NotFound as error:
        raise NotFound(
            f"there is no repository at {path}", kind=error.kind, hint=error.hint, path=str(path)
        ) from error
    try:
        yield repository
    finally:
        repository.close()


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
