"""`sendense repository verify`: through the server by name, without it by path."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from sendense.cli import lookup, text, unlocking, waiting
from sendense.cli.command import Session, command
from sendense.cli.failure import ExitCode, Failure, usage
from sendense.cli.repository_key import is_path
from sendense.core import units
from sendense.core.errors import Invalid


class Level(StrEnum):
    """How deep to look; each includes those before it."""

    V0 = "v0"
    V1 = "v1"
    V2 = "v2"
    V3 = "v3"
    V4 = "v4"


def register(app: typer.Typer) -> None:
    """Add the command to its group."""
    command(
        app,
        "verify",
        examples=[
            "sendense repository verify main",
            "sendense repository verify /mnt/backups --level v4",
            "sendense repository verify /mnt/backups --budget 50GiB --max-seconds 3600",
        ],
    )(verify)


def verify(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    session: Session,
    repository: Annotated[
        str, typer.Argument(metavar="NAME|PATH", help="Name or id, or a directory for no server.")
    ],
    level: Annotated[
        Level,
        typer.Option(
            help="v0: all is there; v1: stored bytes; v2: also what they decode to; v3: also all "
            "disks' maps; v4: also all disks, read whole."
        ),
    ] = Level.V2,
    budget: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Read about so much, as 50GiB.")
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option(min=0, help="Begin with no pack later than that.")
    ] = None,
    recovery_key_file: unlocking.RecoveryKeyFileOption = None,
    passphrase_file: unlocking.PassphraseFileOption = None,
) -> None:
    """Verify that what is stored is what was written, longest unverified first; 7 where not.

    A run may be interrupted, or limited: the next one goes on. What is found bad is never referred
    to again, so that the next backup stores it anew.
    """
    bytes_max = _parse_size(budget)
    if is_path(repository):
        from sendense.cli import standalone_verify  # the engine: loaded only for a path

        given = unlocking.collect(session, recovery_key_file, passphrase_file)
        wanted = standalone_verify.Wanted(int(level[1]), bytes_max, max_seconds)
        standalone_verify.verify(session, repository, given, wanted)
        return
    body = {"level": int(level[1]), "bytes_max": bytes_max, "seconds_max": max_seconds}
    repository_id = lookup.find_id(session.api, "repositories", repository)
    answer = session.api.start("repositories", repository_id, "verify", body=body)
    ended = waiting.wait_for_job(session, str(answer.data["job_id"]))
    if session.output.as_json:
        session.output.json(ended.body)
    report = ended.job.data.get("result")
    if report is None:
        waiting.check_completed(ended)
    print_report(session, repository, report or {})


def print_report(session: Session, place: object, report: dict[str, Any]) -> None:
    """Print what was found. Raises Failure where anything is bad."""
    if not session.output.as_json:
        for name in [*report["bad"], *report["differing"]]:
            session.output.line(f"bad: {name}")
        for line in text.shorten(
            [
                ((one["kind"], one["backup_id"], one["disk_key"]), one["message"])
                for one in (report["check"] or {"problems": []})["problems"]
            ]
        ):
            session.output.line(line)
        session.output.line(
            f"{text.count(report['verified_count'], 'pack')} verified "
            f"({text.size(report['verified_bytes'])}), {report['left_count']} left for the next run"
        )
    if not report["clean"]:
        raise Failure(
            f"repository {place} is damaged: {text.count(report['quarantined_count'], 'bad pack')}",
            ExitCode.CORRUPT,
            hint="back up again: lost data that the VMs still have is stored anew; "
            "`sendense repository restore --salvage` gets back what an old backup still has",
        )


def _parse_size(value: str | None) -> int | None:
    if value is None:
        return None
    try:
        return units.parse_size(value)
    except Invalid as error:
        raise usage(error.message) from None
