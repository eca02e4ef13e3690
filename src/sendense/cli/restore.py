"""`sendense restore`: bringing a disk of a backup back."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from sendense.cli import job, lookup, paging, text, waiting
from sendense.cli.command import Session, command, group
from sendense.cli.failure import usage
from sendense.cli.output import Column

app = group("restore", "Restores of backed-up disks.")

RestoreArgument = Annotated[str, typer.Argument(metavar="RESTORE", help="Id of the restore.")]


class DiskFormat(StrEnum):
    """Formats of a restored file."""

    RAW = "raw"
    QCOW2 = "qcow2"


FormatOption = Annotated[DiskFormat, typer.Option("--format", help="Format of the file.")]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace the file if there is one.")
]
DiskOption = Annotated[
    int | None,
    typer.Option(
        "--disk", min=0, metavar="N", help="Which disk: 0, 1, …; needed unless there is only one."
    ),
]


@command(
    app,
    "start",
    examples=[
        "sendense restore start backup-web1-20260101t000000z-ab12 --disk 0 --to /srv/web1.raw",
        (
            "sendense restore start backup-web1-20260101t000000z-ab12 --disk 0 --to /srv/w.qcow2 "
            "--format qcow2 --overwrite"
        ),
        "sendense restore start backup-db1-20260101t000000z-ab12 --disk 0 --to-vm db1 --overwrite",
    ],
)
def start(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    session: Session,
    backup: Annotated[str, typer.Argument(metavar="BACKUP", help="Id of the backup.")],
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FILE", help="The file to write, on the server's machine."),
    ] = None,
    to_vm: Annotated[
        str | None,
        typer.Option(
            "--to-vm", metavar="VM", help="Or the VM, switched off, whose disk is overwritten."
        ),
    ] = None,
    to_disk: Annotated[
        str | None,
        typer.Option(
            "--to-disk",
            metavar="DISK",
            help="Which disk of that VM; left out, the one of the backed-up disk's name.",
        ),
    ] = None,
    disk: DiskOption = None,
    file_format: FormatOption = DiskFormat.RAW,
    *,
    overwrite: OverwriteOption = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return once the job is started.")
    ] = False,
) -> None:
    """Write a disk of a backup to a file or into a VM, and wait until it is done.

    The file lies on the server's machine, in its data directory or one it allows. A VM (of a
    vSphere source) must be off and without snapshots, and its disk of the very same size; never
    start it before the restore has completed. Ctrl-C stops the waiting, not the restore.
    """
    target = _read_target(session, to, to_vm, to_disk, file_format)
    body: dict[str, Any] = {"backup_id": backup, "target": target, "overwrite": overwrite}
    if disk is not None:
        body["disk_id"] = disk
    answer = session.api.start("restores", body=body)
    restore_id, job_id = str(answer.data["restore_id"]), str(answer.data["job_id"])
    if no_wait:
        if session.output.as_json:
            session.output.json(answer.text)
        else:
            session.output.line(f"restore {restore_id} started")
            session.output.note(f"watch it: sendense job watch {job_id}")
        return
    ended = waiting.wait_for_job(session, job_id)
    if session.output.as_json:
        session.output.json(ended.body)
    waiting.check_completed(ended)
    if not session.output.as_json:
        data = ended.subject.data if ended.subject else {}
        took = text.between(data.get("started_at"), data.get("completed_at"))
        took = "" if took == text.MISSING else f" in {took}"
        session.output.line(f"restore {restore_id} completed{took}: {to_vm or target['path']}")


def _read_target(
    session: Session,
    to: Path | None,
    to_vm: str | None,
    to_disk: str | None,
    file_format: DiskFormat,
) -> dict[str, Any]:
    if (to is None) == (to_vm is None):
        raise usage("give a file by --to, or a VM by --to-vm")
    if to_vm is None:
        if to_disk is not None:
            raise usage("--to-disk belongs to --to-vm")
        assert to is not None, "one of both is given"
        return {"type": "file", "path": str(to.absolute()), "format": file_format}
    target = {"type": "vm", "vm_id": lookup.find_id(session.api, "vms", to_vm)}
    return target if to_disk is None else {**target, "disk_id": to_disk}


@command(app, "list", examples=["sendense restore list"])
def list_restores(
    session: Session,
    backup: Annotated[
        str | None, typer.Option(metavar="BACKUP", help="Only of this backup.")
    ] = None,
    status: Annotated[job.JobStatus | None, typer.Option(help="Only in this state.")] = None,
    limit: paging.LimitOption = None,
    offset: paging.OffsetOption = None,
) -> None:
    """List restores."""
    answer = session.api.get(
        "restores", backup_id=backup, status=status, limit=limit, offset=offset
    )
    if session.answered(answer):
        return
    entries = answer.data["restores"]
    if not entries:
        session.output.note("no restores")
        return
    session.output.table(
        [
            Column("CREATED (UTC)"),
            Column("STATUS"),
            Column("TO"),
            Column("BACKUP"),
            Column("RESTORE"),
        ],
        [
            (
                text.moment(entry.get("created_at")),
                entry.get("status"),
                _target(entry),
                entry.get("backup_id"),
                entry["restore_id"],
            )
            for entry in entries
        ],
    )
    session.output.shown(len(entries), answer.data)


@command(app, "show", examples=["sendense restore show restore-0123456789abcdef"])
def show(session: Session, restore: RestoreArgument) -> None:
    """Show one restore."""
    answer = session.api.get("restores", restore)
    if session.answered(answer):
        return
    data = answer.data
    message, hint = waiting.read_error(data.get("error"))
    session.output.facts(
        [
            ("Restore", data["restore_id"]),
            ("Backup", data.get("backup_id")),
            ("Disk", data.get("disk_id")),
            ("To", _target(data)),
            ("Status", data.get("status")),
            ("Error", message),
            ("Hint", hint),
            ("Progress", text.percent(data.get("progress_percent"))),
            ("Written", text.size(data["bytes_written"])),
            ("Disk size", text.size(data["total_bytes"])),
            ("Created", text.moment(data.get("created_at"))),
            ("Took", text.between(data.get("started_at"), data.get("completed_at"))),
            ("Job", data.get("job_id")),
        ]
    )


@command(app, "cancel", examples=["sendense restore cancel restore-0123456789abcdef"])
def cancel(session: Session, restore: RestoreArgument) -> None:
    """Stop a restore that waits or runs; no half file is left."""
    answer = session.api.post("restores", restore, "cancel")
    session.tell(answer, f"restore {restore} is being cancelled")


def _target(restore: dict[str, Any]) -> str:
    target = restore["target"]
    if target["type"] == "vm":
        return f"{target['disk_id']} of VM {target['vm_name']}"
    return f"{target['path']} ({target['format']})"
