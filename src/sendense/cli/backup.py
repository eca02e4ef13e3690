"""`sendense backup`: making, finding and deleting backups."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from sendense.cli import lookup, paging, tags, text, waiting
from sendense.cli.command import Session, command, group
from sendense.cli.job import JobStatus
from sendense.cli.output import Column

app = group("backup", "Backups of VMs.")

BackupArgument = Annotated[str, typer.Argument(metavar="BACKUP", help="Id of the backup.")]


class BackupType(StrEnum):
    """What to ask for; `auto` is incremental wherever that is possible."""

    AUTO = "auto"
    FULL = "full"
    INCREMENTAL = "incremental"


class ConsistencyChoice(StrEnum):
    """Whether the guest's file systems are frozen for the snapshot."""

    REQUIRE = "require"
    PREFER = "prefer"
    OFF = "off"


@command(
    app,
    "start",
    examples=[
        "sendense backup start web1 --repository main",
        "sendense backup start web1 --repository main --type full --tag why=upgrade",
        "sendense backup start web1 --repository main --disk 0 --no-wait",
    ],
)
def start(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    session: Session,
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name or id of the VM.")],
    repository: Annotated[str, typer.Option("--repository", "-r", help="Where to; name or id.")],
    disk: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Only disk N (0, 1, …); all disks at one moment if left out."
        ),
    ] = None,
    kind: Annotated[BackupType, typer.Option("--type", help="What to read.")] = BackupType.AUTO,
    tag: tags.TagOption = None,
    consistency: Annotated[
        ConsistencyChoice | None,
        typer.Option(help="Freeze the guest's file systems: server's default is prefer."),
    ] = None,
    *,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return once the job is started.")
    ] = False,
) -> None:
    """Back a VM up, and wait until it is done.

    Ctrl-C stops the waiting, not the backup; it is cancelled by `sendense backup cancel`.
    """
    repository_id = lookup.find_id(session.api, "repositories", repository)
    vm_id = lookup.find_id(session.api, "vms", vm)
    body: dict[str, Any] = {"vm_id": vm_id, "repository_id": repository_id, "backup_type": kind}
    if disk is not None:
        body["disk_id"] = disk
    if tag:
        body["tags"] = tags.parse(tag)
    if consistency is not None:
        body["consistency"] = consistency
    answer = session.api.start("backups", body=body)
    if no_wait:
        _print_started(session, answer.text, answer.data)
        return
    if not session.output.as_json:
        session.output.note(f"backup {answer.data['backup_id']}")
    ended = waiting.wait_for_job(session, str(answer.data["job_id"]))
    if session.output.as_json:
        session.output.json(ended.body)
    waiting.check_completed(ended)
    if not session.output.as_json and ended.subject is not None:
        _print_result(session, ended.subject.data)


@command(
    app,
    "list",
    examples=[
        "sendense backup list",
        "sendense backup list --vm web1 --status completed",
        "sendense backup list --repository main --type full --json",
    ],
)
def list_backups(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    session: Session,
    vm: Annotated[str | None, typer.Option(help="Only this VM's, by name or id.")] = None,
    repository: Annotated[
        str | None, typer.Option("--repository", "-r", help="Only those in it, by name or id.")
    ] = None,
    kind: Annotated[BackupType | None, typer.Option("--type", help="Only these.")] = None,
    status: Annotated[JobStatus | None, typer.Option(help="Only in this state.")] = None,
    tag: Annotated[
        str | None, typer.Option(metavar="KEY=VALUE", help="Only with this tag.")
    ] = None,
    after: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only made at or after this time, ISO 8601.")
    ] = None,
    before: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only made before this time, ISO 8601.")
    ] = None,
    limit: paging.LimitOption = None,
    offset: paging.OffsetOption = None,
    *,
    deleted: Annotated[
        bool, typer.Option("--deleted", help="Those deleted instead, whose space is not yet freed.")
    ] = False,
) -> None:
    """List backups."""
    answer = session.api.get(
        "backups",
        vm_id=lookup.find_id(session.api, "vms", vm) if vm else None,
        repository_id=lookup.find_id(session.api, "repositories", repository)
        if repository
        else None,
        backup_type=kind,
        status=status,
        tag=tag,
        created_after=after,
        created_before=before,
        deleted=deleted or None,
        limit=limit,
        offset=offset,
    )
    if session.answered(answer):
        return
    print_backups(session, answer.data)


@command(app, "show", examples=["sendense backup show backup-web1-20260101t000000z-ab12"])
def show(session: Session, backup: BackupArgument) -> None:
    """Show everything about one backup."""
    answer = session.api.get("backups", backup)
    if session.answered(answer):
        return
    _print_backup(session, answer.data)


@command(
    app,
    "chain",
    examples=["sendense backup chain web1", "sendense backup chain web1 --disk 0 -r main"],
)
def chain(
    session: Session,
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name or id of the VM.")],
    disk: Annotated[int | None, typer.Option(min=0, metavar="N", help="Only disk N.")] = None,
    repository: Annotated[
        str | None, typer.Option("--repository", "-r", help="Only in this one, by name or id.")
    ] = None,
) -> None:
    """Show which backups of a VM's disks build on which."""
    repository_id = lookup.find_id(session.api, "repositories", repository) if repository else None
    vm_id = lookup.find_id(session.api, "vms", vm)  # a name may hold a slash, a path may not
    answer = session.api.get("backups", vm_id, "chain", disk_id=disk, repository_id=repository_id)
    if session.answered(answer):
        return
    chains = answer.data.get("chains", [answer.data])
    if not chains:
        session.output.note(f"no chain of VM {vm}: nothing of it is backed up")
    for number, entry in enumerate(chains):
        if number:
            session.output.line("")
        _print_chain(session, entry)


@command(
    app,
    "delete",
    examples=["sendense backup delete backup-web1-20260101t000000z-ab12"],
)
def delete(
    session: Session,
    backup: BackupArgument,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a backup; the others of its chain stay restorable."""
    if not yes:
        data = session.api.get("backups", backup).data
        asked = f"of VM {data.get('vm_name')} from {text.moment(data.get('created_at'))} UTC"
        session.output.confirm(f"Delete backup {backup} {asked}?", yes=yes)
    answer = session.api.delete("backups", backup)
    session.tell(answer, f"backup {backup} deleted")


@command(
    app,
    "hold",
    examples=["sendense backup hold backup-web1-20260101t000000z-ab12 --why 'case 7/2026'"],
)
def hold(
    session: Session,
    backup: BackupArgument,
    why: Annotated[str, typer.Option(help="For people; the refusal to delete repeats it.")] = "",
) -> None:
    """Let nobody delete a backup until it is released."""
    answer = session.api.post("backups", backup, "hold", body={"why": why})
    session.tell(answer, f"backup {backup} is held")


@command(app, "release", examples=["sendense backup release backup-web1-20260101t000000z-ab12"])
def release(session: Session, backup: BackupArgument) -> None:
    """Let a held backup go: it can be deleted again."""
    answer = session.api.delete("backups", backup, "hold")
    session.tell(answer, f"backup {backup} is not held")


@command(app, "cancel", examples=["sendense backup cancel backup-web1-20260101t000000z-ab12"])
def cancel(session: Session, backup: BackupArgument) -> None:
    """Stop a backup that waits or runs; nothing of it is kept."""
    job_id = session.api.get("backups", backup).data.get("job_id")
    answer = session.api.post("jobs", str(job_id), "cancel")
    session.tell(answer, f"backup {backup} is being cancelled")


def print_backups(session: Session, data: dict[str, Any]) -> None:
    """Print a list of backups as a table."""
    entries = data["backups"]
    if not entries:
        session.output.note("no backups")
        return
    session.output.table(
        [
            Column("CREATED (UTC)"),
            Column("VM"),
            Column("TYPE"),
            Column("STATUS"),
            Column("READ", right=True),
            Column("NEW", right=True),
            Column("BACKUP"),
        ],
        [
            (
                text.moment(entry.get("created_at")),
                entry.get("vm_name"),
                entry.get("backup_type"),
                _status(entry),
                text.size(entry.get("bytes_read")),
                text.size(entry.get("bytes_new")),
                entry.get("backup_id"),
            )
            for entry in entries
        ],
    )
    session.output.shown(len(entries), data)


def _status(backup: dict[str, Any]) -> str:
    status = str(backup.get("status"))
    if status == "completed" and backup.get("partial"):
        return "partial"
    if status == "running":
        return f"running {text.percent(backup.get('progress_percent'))}"
    return status


def _print_started(session: Session, body: str, data: dict[str, Any]) -> None:
    if session.output.as_json:
        session.output.json(body)
        return
    kind = data.get("backup_type")
    reason = f" ({data['type_reason']})" if data.get("type_reason") else ""
    session.output.line(f"backup {data['backup_id']} started: {kind}{reason}")
    session.output.note(f"watch it: sendense job watch {data['job_id']}")


def _print_result(session: Session, backup: dict[str, Any]) -> None:
    kind = backup.get("backup_type")
    reason = f" ({backup['type_reason']})" if backup.get("type_reason") else ""
    took = text.between(backup.get("started_at"), backup.get("completed_at"))
    session.output.line(
        f"backup {backup['backup_id']} completed: {kind}{reason}, "
        f"read {text.size(backup.get('bytes_read'))}, "
        f"new {text.size(backup.get('bytes_new'))}, {took}"
    )
    if backup.get("partial"):
        session.output.warn(f"partial: {_skipped(backup)}")
    for warning in backup.get("warnings") or []:
        session.output.warn(warning)


def _moment(value: object) -> str | None:
    return text.moment(value) if value else None


def _hold(hold: dict[str, Any] | None) -> str | None:
    return f"{hold['who']}: {hold['why']}" if hold else None


def _print_backup(session: Session, backup: dict[str, Any]) -> None:
    message, hint = waiting.read_error(backup.get("error"))
    session.output.facts(
        [
            ("Backup", backup.get("backup_id")),
            ("VM", f"{backup.get('vm_name')} ({backup.get('vm_id')})"),
            ("Repository", backup.get("repository_id")),
            ("Status", _status(backup)),
            ("Skipped", _skipped(backup)),
            ("Warnings", text.listing(backup["warnings"]) if backup.get("warnings") else None),
            ("Error", message),
            ("Hint", hint),
            ("Type", backup.get("backup_type")),
            ("Asked for", backup.get("requested_type")),
            ("Reason", backup.get("type_reason")),
            ("Parent", backup.get("parent_backup_id")),
            ("Consistency", backup.get("consistency")),
            ("Created", text.moment(backup.get("created_at"))),
            ("Took", text.between(backup.get("started_at"), backup.get("completed_at"))),
            ("Phase", backup.get("current_phase")),
            ("Size", text.size(backup.get("total_bytes"))),
            ("Read", text.size(backup.get("bytes_read"))),
            ("New", text.size(backup.get("bytes_new"))),
            ("Deduplicated", text.size(backup.get("bytes_deduplicated"))),
            ("Rate", text.rate(backup.get("transfer_speed_bps"))),
            ("Verified", text.listing(backup.get("verification") or "never")),
            ("Immutable until", _moment(backup.get("immutable_until"))),
            ("Held by", _hold(backup.get("hold"))),
            ("Tags", text.listing(backup["tags"]) if backup.get("tags") else None),
            ("Job", backup.get("job_id")),
        ]
    )
    if not backup.get("disks"):
        return
    session.output.line("")
    session.output.table(
        [
            Column("DISK"),
            Column("SIZE", right=True),
            Column("TYPE"),
            Column("STATUS"),
            Column("READ", right=True),
            Column("NEW", right=True),
            Column("REASON"),
        ],
        [
            (
                disk.get("disk_id"),
                text.size(disk.get("capacity_bytes")),
                disk.get("backup_type") or text.MISSING,
                disk.get("status"),
                text.size(disk.get("bytes_read")),
                text.size(disk.get("bytes_new")),
                disk.get("type_reason") or text.MISSING,
            )
            for disk in backup["disks"]
        ],
    )


def _skipped(backup: dict[str, Any]) -> str:
    return "; ".join(f"{disk['disk_id']}: {disk['reason']}" for disk in backup.get("skipped") or [])


def _print_chain(session: Session, entry: dict[str, Any]) -> None:
    place = f"{entry.get('vm_name')} {entry.get('disk_id')} in {entry.get('repository_id')}"
    backups = text.count(entry.get("total_backups"), "backup")
    total = text.size(entry.get("total_size_bytes"))
    session.output.line(f"{place}: {backups}, {total}", style="bold")
    session.output.table(
        [Column("CREATED (UTC)"), Column("TYPE"), Column("STATUS"), Column("BACKUP"), Column("")],
        [
            (
                text.moment(backup.get("created_at")),
                backup.get("backup_type"),
                _status(backup),
                backup.get("backup_id"),
                _chain_role(entry, backup),
            )
            for backup in entry.get("backups", [])
        ],
    )


def _chain_role(entry: dict[str, Any], backup: dict[str, Any]) -> str:
    roles = []
    if backup.get("backup_id") == entry.get("full_backup_id"):
        roles.append("base")
    if backup.get("backup_id") == entry.get("latest_backup_id"):
        roles.append("latest")
    return ", ".join(roles)
