"""`sendense vm`: the VMs that discovery found."""

from typing import Annotated, Any

import typer

from sendense.cli import lookup, paging, tags, text
from sendense.cli.backup import print_backups
from sendense.cli.command import Session, command, group
from sendense.cli.failure import usage
from sendense.cli.output import Column

app = group("vm", "The VMs found by discovery.")

VmArgument = Annotated[str, typer.Argument(metavar="VM", help="Name or id of the VM.")]


@command(
    app,
    "list",
    examples=["sendense vm list", "sendense vm list --source lab", "sendense vm list --search web"],
)
def list_vms(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    session: Session,
    source: Annotated[str | None, typer.Option(help="Only this source's, by name or id.")] = None,
    search: Annotated[
        str | None, typer.Option(help="Only those with this text in name, path or guest.")
    ] = None,
    tag: Annotated[
        str | None, typer.Option(metavar="KEY=VALUE", help="Only those with this tag.")
    ] = None,
    protected: Annotated[
        bool | None, typer.Option("--protected/--unprotected", help="With or without a backup.")
    ] = None,
    limit: paging.LimitOption = None,
    offset: paging.OffsetOption = None,
) -> None:
    """List VMs."""
    source_id = lookup.find_id(session.api, "sources", source) if source else None
    answer = session.api.get(
        "vms",
        source_id=source_id,
        q=search,
        tag=tag,
        protected=protected,
        limit=limit,
        offset=offset,
    )
    if session.answered(answer):
        return
    entries = answer.data["vms"]
    if not entries:
        session.output.note("no VMs; `sendense source discover SOURCE` finds them")
        return
    session.output.table(
        [
            Column("NAME"),
            Column("POWER"),
            Column("DISKS", right=True),
            Column("LAST BACKUP (UTC)"),
            Column("ID"),
        ],
        [
            (
                entry.get("name"),
                entry.get("power_state") or text.MISSING,
                entry.get("disk_count", text.MISSING),
                text.moment(entry.get("last_backup_at")),
                entry["id"],
            )
            for entry in entries
        ],
    )
    session.output.shown(len(entries), answer.data)


@command(app, "show", examples=["sendense vm show web1"])
def show(session: Session, vm: VmArgument) -> None:
    """Show one VM."""
    answer = session.api.get("vms", lookup.find_id(session.api, "vms", vm))
    if session.answered(answer):
        return
    _print_vm(session, answer.data)


@command(app, "disks", examples=["sendense vm disks web1"])
def disks(session: Session, vm: VmArgument) -> None:
    """List a VM's disks."""
    answer = session.api.get("vms", lookup.find_id(session.api, "vms", vm), "disks")
    if session.answered(answer):
        return
    session.output.table(
        [
            Column("N", right=True),
            Column("DISK"),
            Column("CAPACITY", right=True),
            Column("TRACKING"),
            Column("EXCLUDED"),
            Column("LABEL"),
        ],
        [
            (
                entry.get("index"),
                entry.get("disk_id"),
                text.size(entry.get("capacity_bytes")),
                entry.get("tracking") or text.MISSING,
                (entry.get("excluded_reason") or "yes") if entry.get("excluded") else "no",
                entry.get("label") or text.MISSING,
            )
            for entry in answer.data["disks"]
        ],
    )


@command(app, "backups", examples=["sendense vm backups web1"])
def backups(
    session: Session,
    vm: VmArgument,
    limit: paging.LimitOption = None,
    offset: paging.OffsetOption = None,
) -> None:
    """List a VM's backups."""
    vm_id = lookup.find_id(session.api, "vms", vm)
    answer = session.api.get("vms", vm_id, "backups", limit=limit, offset=offset)
    if session.answered(answer):
        return
    print_backups(session, answer.data)


@command(
    app,
    "readiness",
    examples=["sendense vm readiness web1", "sendense vm readiness web1 --repository main"],
)
def readiness(
    session: Session,
    vm: VmArgument,
    repository: Annotated[
        str | None,
        typer.Option("--repository", "-r", help="Look at the backups in it too; name or id."),
    ] = None,
) -> None:
    """Say whether a VM can be backed up, incrementally and consistently, and if not, why."""
    vm_id = lookup.find_id(session.api, "vms", vm)
    repository_id = lookup.find_id(session.api, "repositories", repository) if repository else None
    answer = session.api.get("vms", vm_id, "readiness", repository_id=repository_id)
    if session.answered(answer):
        return
    data = answer.data
    of_disks = tuple(f"{disk['disk_id']}: " for disk in data["disks"])
    reasons = [reason for reason in data["reasons"] if not reason.startswith(of_disks)]
    session.output.facts(
        [
            ("Backup possible", text.yes_no(data["backup_possible"])),
            ("Incremental", text.yes_no(data["incremental_possible"])),
            ("Consistent", _yes_no_unknown(data.get("consistent_possible"))),
            ("Reason", "; ".join(reasons)),
            ("Missing privileges", ", ".join(data.get("missing_privileges") or ())),
        ]
    )
    for note in data.get("notes") or ():
        session.output.note(f"note: {note}")
    session.output.table(
        [Column("DISK"), Column("BACKUP"), Column("INCREMENTAL"), Column("REASON")],
        [
            (
                disk["disk_id"],
                text.yes_no(disk["backup_possible"]),
                text.yes_no(disk["incremental_possible"]),
                disk["reason"] or text.MISSING,
            )
            for disk in data["disks"]
        ],
    )


@command(
    app,
    "update",
    examples=[
        "sendense vm update web1 --tag tier=gold",
        "sendense vm update web1 --exclude 1",
        "sendense vm update web1 --include-all",
    ],
)
def update(
    session: Session,
    vm: VmArgument,
    tag: tags.TagOption = None,
    exclude: Annotated[
        list[int] | None,
        typer.Option(
            "--exclude",
            min=0,
            metavar="N",
            help="Leave disk N out of backups. Repeatable; replaces.",
        ),
    ] = None,
    *,
    include_all: Annotated[
        bool, typer.Option("--include-all", help="Leave no disk out any more.")
    ] = False,
) -> None:
    """Set a VM's tags, or which disks its backups leave out."""
    if exclude and include_all:
        raise usage("--exclude and --include-all contradict each other")
    body: dict[str, Any] = {}
    if tag:
        body["tags"] = tags.parse(tag)
    if exclude or include_all:
        body["excluded_disks"] = exclude or []
    if not body:
        raise usage("nothing to change; give --tag, --exclude or --include-all")
    answer = session.api.patch("vms", lookup.find_id(session.api, "vms", vm), body=body)
    if session.answered(answer):
        return
    _print_vm(session, answer.data)


@command(app, "remove", examples=["sendense vm remove web1 --yes"])
def remove(
    session: Session,
    vm: VmArgument,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Take a VM out of the catalog; discovery finds it again while its source has it."""
    vm_id = lookup.find_id(session.api, "vms", vm)
    session.output.confirm(f"Remove VM {vm} from the catalog?", yes=yes)
    answer = session.api.delete("vms", vm_id)
    session.tell(answer, f"VM {vm} removed")


def _yes_no_unknown(value: object) -> str:
    return "unknown" if value is None else text.yes_no(value)


def _print_vm(session: Session, vm: dict[str, Any]) -> None:
    session.output.facts(
        [
            ("Name", vm.get("name")),
            ("Id", vm["id"]),
            ("Source", vm.get("source_id")),
            ("Path", vm.get("path")),
            ("Power", vm.get("power_state")),
            ("Guest", vm.get("guest_os")),
            ("CPUs", vm.get("cpu_count")),
            ("Memory", text.size(vm["memory_bytes"]) if vm.get("memory_bytes") else None),
            ("Networks", ", ".join(vm.get("networks") or ()) or None),
            ("Disks", vm.get("disk_count")),
            ("Tags", text.listing(vm["tags"]) if vm.get("tags") else None),
            ("Protected", text.yes_no(vm.get("protected"))),
            ("Last backup", text.moment(vm.get("last_backup_at"))),
        ]
    )
