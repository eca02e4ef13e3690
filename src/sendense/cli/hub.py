"""`sendense hub`: what the server knows beyond backups, into repositories and back."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sendense.cli import lookup, unlocking, waiting
from sendense.cli.command import Session, command, group
from sendense.cli.options import Config, DataDir

app = group(
    "hub",
    "The server's own catalog: exported, sealed, into repositories, and a new server made of it.",
)

PlaceArgument = Annotated[
    str,
    typer.Argument(metavar="PATH", help="A repository's directory or URL; no server is asked."),
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--recovery-key-file",
        metavar="FILE",
        help=f"A file that holds the server's own recovery key; or set {unlocking.HUB_VARIABLE}.",
    ),
]


@command(app, "export", examples=["sendense hub export", "sendense hub export main"])
def export(
    session: Session,
    repository: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Name or id; without it, every enabled one."),
    ] = None,
) -> None:
    """Export the catalog into one repository or all. The server does so once a day by itself."""
    if repository is not None:
        ids = [lookup.find_id(session.api, "repositories", repository)]
    else:
        ids = [str(one["id"]) for one in session.api.list_all("repositories") if one["enabled"]]
    results: list[Any] = []
    for repository_id in ids:
        answer = session.api.start("repositories", repository_id, "hub-export")
        ended = waiting.wait_for_job(session, str(answer.data["job_id"]))
        waiting.check_completed(ended)
        results.append(ended.job.data)
    if session.output.as_json:
        session.output.json(json.dumps({"jobs": results, "total": len(results)}))
        return
    for job in results:
        session.output.line(f"{job['result']['rows']} rows exported: {job['result']['export']}")
    for warning in sorted({one for job in results for one in job["result"]["warnings"]}):
        session.output.warn(warning)
    if not results:
        session.output.note("no enabled repositories, so nothing was exported")


@command(
    app,
    "recovery-key",
    examples=["sendense hub recovery-key", "sendense hub recovery-key --data-dir /srv/sendense"],
)
def recovery_key(session: Session, config: Config = None, data_dir: DataDir = None) -> None:
    """Show the key that opens the server's exports. Run it as the server's user, on its machine.

    Whoever has it and a repository can log in to your sources and restore every backup.
    """
    from sendense.cli import hub_alone  # the whole server, which takes a second to load

    hub_alone.show_recovery_key(session, config=config, data_dir=data_dir)


@command(app, "list", examples=["sendense hub list /mnt/backups --recovery-key-file hub-key.txt"])
def list_exports(
    session: Session, place: PlaceArgument, recovery_key_file: KeyFileOption = None
) -> None:
    """List the exports in a repository that a server's recovery key opens."""
    from sendense.cli import hub_alone  # the whole server, which takes a second to load

    hub_alone.list_exports(session, place, unlocking.collect_hub_key(session, recovery_key_file))


@command(
    app,
    "restore",
    examples=[
        "sendense hub restore /mnt/backups --recovery-key-file hub-key.txt",
        "sendense hub restore 's3://backups/main' --data-dir /srv/sendense",
    ],
)
def restore(
    session: Session,
    place: PlaceArgument,
    recovery_key_file: KeyFileOption = None,
    export_name: Annotated[
        str | None,
        typer.Option("--export", metavar="NAME", help="Which one; by default the newest."),
    ] = None,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Make a new server's empty catalog what an export holds; then start the server.

    Nothing is changed where the catalog is not empty. The server that was lost must not run any
    more: the new one is the same to your sources.
    """
    from sendense.cli import hub_alone  # the whole server, which takes a second to load

    given = unlocking.collect_hub_key(session, recovery_key_file)
    hub_alone.restore(
        session, place, given, export_name=export_name, config=config, data_dir=data_dir
    )
