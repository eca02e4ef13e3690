"""`sendense repository gc`: through the server by name, without it by path."""

from typing import Annotated, Any

import typer

from sendense.cli import lookup, text, unlocking, waiting
from sendense.cli.command import Session, command
from sendense.cli.repository_key import is_path


def register(app: typer.Typer) -> None:
    """Add the command to its group."""
    command(
        app,
        "gc",
        examples=[
            "sendense repository gc main --preview",
            "sendense repository gc /mnt/backups",
            "sendense repository gc /mnt/backups --now --yes",
        ],
    )(collect)


def collect(  # noqa: PLR0913 - a command's options are its parameters
    session: Session,
    repository: Annotated[
        str, typer.Argument(metavar="NAME|PATH", help="Name or id, or a directory for no server.")
    ],
    recovery_key_file: unlocking.RecoveryKeyFileOption = None,
    passphrase_file: unlocking.PassphraseFileOption = None,
    deletes_per_second: Annotated[
        float | None, typer.Option(min=0.1, help="Delete no faster, to spare the storage.")
    ] = None,
    *,
    preview: Annotated[
        bool, typer.Option("--preview", help="Only say what would be deleted.")
    ] = False,
    now: Annotated[
        bool, typer.Option("--now", help="Do not leave a day between condemning and deleting.")
    ] = False,
    yes: Annotated[
        bool,
        typer.Option("--yes", "-y", help="Do not ask, not even where much would be deleted."),
    ] = False,
) -> None:
    """Free the space of deleted backups, while backups go on.

    A run deletes what the run before has condemned a day ago or earlier, and condemns anew. It may
    be interrupted at any time. A server does this once a day by itself.
    """
    if now and not preview:
        session.output.confirm("Delete at once what no backup needs?", yes=yes)
    if not is_path(repository):
        body: dict[str, Any] = {"preview": preview, "now": now, "confirmed": yes}
        if deletes_per_second is not None:
            body["deletes_per_second"] = deletes_per_second
        _ask_server(session, repository, body)
        return
    from sendense.cli import standalone_gc  # the engine: loaded only for a path

    given = unlocking.collect(session, recovery_key_file, passphrase_file)
    if preview:
        standalone_gc.preview(session, repository, given)
        return
    pace = standalone_gc.Pace(now=now, is_confirmed=yes, deletes_per_second=deletes_per_second)
    standalone_gc.collect(session, repository, given, pace)


def print_preview(session: Session, found: dict[str, Any]) -> None:
    """Print what a run would delete."""
    session.output.facts(
        [
            ("Deleted backups", found["backup_count"]),
            ("Packs to delete", found["pack_count"]),
            ("Packs to rewrite", found["sparse_count"]),
            ("To copy for it", text.size(found["copied_bytes"])),
            ("To be freed", text.size(found["freed_bytes"])),
            ("Stored in packs", text.size(found["total_bytes"])),
            (
                "Locked, not needed",
                text.size(found["locked_bytes"]) if found["locked_bytes"] else None,
            ),
            ("Reclaimable after", found["reclaimable_after"]),
            ("Waits for", text.listing(found["waits_for"]) if found["waits_for"] else None),
        ]
    )


def print_report(session: Session, report: dict[str, Any]) -> None:
    """Print what a run has done."""
    session.output.line(
        f"{text.size(report['freed_bytes'])} freed: {text.count(report['pack_count'], 'pack')}, "
        f"{text.count(report['backup_count'], 'deleted backup')}"
    )
    if report["locked_bytes"]:
        session.output.line(
            f"{text.size(report['locked_bytes'])} are locked and not needed: reclaimable after"
            f" {text.moment(report['reclaimable_after'])} UTC"
        )
    if not report["is_done"]:
        left = text.duration(report["grace_seconds"])
        session.output.line(f"what is condemned now is deleted by a run in {left} or later")


def _ask_server(session: Session, name: str, body: dict[str, Any]) -> None:
    repository_id = lookup.find_id(session.api, "repositories", name)
    answer = session.api.start("repositories", repository_id, "gc", body=body)
    ended = waiting.wait_for_job(session, str(answer.data["job_id"]))
    if session.output.as_json:
        session.output.json(ended.body)
    waiting.check_completed(ended)
    if session.output.as_json:
        return
    (print_preview if body["preview"] else print_report)(session, ended.job.data["result"])
