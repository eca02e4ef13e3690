"""`sendense repository`: where backups are kept; by name through the server, by path without it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sendense.cli import lookup, paging, text, waiting
from sendense.cli.command import Session, command, group
from sendense.cli.failure import ExitCode, Failure, usage
from sendense.cli.output import Column
from sendense.cli.restore import DiskFormat, DiskOption, FormatOption, OverwriteOption

app = group(
    "repository",
    "Places that hold backups. `check`, `list`, `restore` and `stats` also take a path: then they "
    "work on that repository alone, with no server.",
)

RepositoryArgument = Annotated[
    str, typer.Argument(metavar="REPOSITORY", help="Name or id of the repository.")
]
PathArgument = Annotated[
    str, typer.Argument(metavar="PATH", help="The repository's directory; no server is asked.")
]


@command(
    app,
    "add",
    examples=["sendense repository add main --type local --path /var/lib/sendense/backups"],
)
def add(
    session: Session,
    name: Annotated[str, typer.Argument(help="A name of your choice.")],
    path: Annotated[Path, typer.Option(help="Directory on the server's machine; made if missing.")],
    kind: Annotated[str, typer.Option("--type", help="What it stands on.")] = "local",
) -> None:
    """Register a repository, and make it where there is none yet."""
    body = {"name": name, "type": kind, "config": {"path": str(path.absolute())}}
    answer = session.api.post("repositories", body=body)
    if session.answered(answer):
        return
    repository_id = answer.data["id"]
    session.output.line(f"repository {name} added: {repository_id}")


@command(
    app,
    "list",
    examples=["sendense repository list", "sendense repository list /mnt/backups"],
)
def list_repositories(
    session: Session,
    path: Annotated[
        str | None,
        typer.Argument(metavar="[PATH]", help="List the backups inside this directory instead."),
    ] = None,
    limit: paging.LimitOption = None,
    offset: paging.OffsetOption = None,
) -> None:
    """List the repositories, or the backups inside one given by its path."""
    if path is not None:
        from sendense.cli import standalone  # the engine: loaded only for a path

        standalone.list_backups(session, _check_path(path, verb="list"))
        return
    answer = session.api.get("repositories", limit=limit, offset=offset)
    if session.answered(answer):
        return
    entries = answer.data["repositories"]
    if not entries:
        session.output.note("no repositories yet; add one by `sendense repository add`")
        return
    session.output.table(
        [
            Column("NAME"),
            Column("TYPE"),
            Column("STATE"),
            Column("BACKUPS", right=True),
            Column("FREE", right=True),
            Column("ID"),
            Column("PLACE"),
        ],
        [
            (
                entry["name"],
                entry["type"],
                _state(entry),
                entry["backup_count"],
                text.size(entry["free_bytes"]),
                entry["id"],
                entry["config"].get("path", text.MISSING),
            )
            for entry in entries
        ],
    )
    session.output.shown(len(entries), answer.data)


@command(app, "show", examples=["sendense repository show main"])
def show(session: Session, repository: RepositoryArgument) -> None:
    """Show one repository."""
    answer = session.api.get("repositories", _find(session, repository))
    if session.answered(answer):
        return
    _print_repository(session, answer.data)


@command(
    app,
    "test",
    examples=["sendense repository test main", "sendense repository test --path /mnt/backups"],
)
def probe_repository(
    session: Session,
    repository: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Name or id of a registered one.")
    ] = None,
    path: Annotated[
        Path | None, typer.Option(help="A directory on the server's machine to try unsaved.")
    ] = None,
) -> None:
    """Ask whether a repository can be used, before or after it is saved."""
    if (repository is None) == (path is None):
        raise usage("give a repository's name, or --path, one of them")
    if path is not None:
        body = {"type": "local", "config": {"path": str(path.absolute())}}
        answer = session.api.post("repositories", "test", body=body)
    else:
        answer = session.api.post("repositories", _find(session, str(repository)), "test")
    if session.answered(answer):
        return
    data = answer.data
    free = text.size(data["free_bytes"])
    session.output.line(
        f"{'usable' if data['usable'] else 'not usable'}: {data['detail']}, {free} free"
    )


@command(app, "storage", examples=["sendense repository storage main"])
def storage(session: Session, repository: RepositoryArgument) -> None:
    """Show a repository's capacity, measured now."""
    answer = session.api.get("repositories", _find(session, repository), "storage")
    if session.answered(answer):
        return
    data = answer.data
    session.output.facts(
        [
            ("Capacity", text.size(data["capacity_bytes"])),
            ("Used", text.size(data["used_bytes"])),
            ("Free", text.size(data["free_bytes"])),
            ("Backups", data["backup_count"]),
            ("Measured", text.moment(data["measured_at"])),
        ]
    )


@command(
    app,
    "update",
    examples=[
        "sendense repository update main --name primary",
        "sendense repository update main --disable",
    ],
)
def update(
    session: Session,
    repository: RepositoryArgument,
    name: Annotated[str | None, typer.Option(help="The new name.")] = None,
    enabled: Annotated[
        bool | None,
        typer.Option("--enable/--disable", help="Whether backups may be written to it."),
    ] = None,
) -> None:
    """Change a repository's name, or whether it takes backups."""
    body: dict[str, Any] = {}
    if name is not None:
        body["name"] = name
    if enabled is not None:
        body["enabled"] = enabled
    if not body:
        raise usage("nothing to change; give --name, --enable or --disable")
    answer = session.api.patch("repositories", _find(session, repository), body=body)
    if session.answered(answer):
        return
    _print_repository(session, answer.data)


@command(app, "remove", examples=["sendense repository remove main"])
def remove(
    session: Session,
    repository: RepositoryArgument,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Forget a repository. What lies in it stays; refused while the catalog lists backups there."""
    repository_id = _find(session, repository)
    session.output.confirm(f"Forget repository {repository}?", yes=yes)
    answer = session.api.delete("repositories", repository_id)
    if session.answered(answer):
        return
    session.output.line(f"repository {repository} removed; its files stay")


@command(
    app,
    "check",
    examples=[
        "sendense repository check main",
        "sendense repository check /mnt/backups",
        "sendense repository check /mnt/backups --read-data",
    ],
)
def check(
    session: Session,
    repository: Annotated[
        str, typer.Argument(metavar="NAME|PATH", help="Name or id, or a directory for no server.")
    ],
    *,
    read_data: Annotated[
        bool, typer.Option("--read-data", help="Also read and verify every stored chunk.")
    ] = False,
) -> None:
    """Check that a repository's structure is whole; exits with 7 where it is not."""
    if _is_path(repository):
        from sendense.cli import standalone  # the engine: loaded only for a path

        standalone.check(session, Path(repository), read_data=read_data)
        return
    answer = session.api.start(
        "repositories", _find(session, repository), "check", body={"read_data": read_data}
    )
    ended = waiting.wait_for_job(session, str(answer.data["job_id"]))
    if session.output.as_json:
        session.output.json(ended.body)
    report = ended.job.data.get("result")
    if report is None:
        waiting.check_completed(ended)
    _print_check(session, repository, report or {})


@command(
    app,
    "restore",
    examples=[
        (
            "sendense repository restore /mnt/backups --backup backup-web1-20260101t000000z-ab12 "
            "--disk 0 --to web1.raw"
        ),
    ],
)
def restore(  # noqa: PLR0913 - a command's options are its parameters
    session: Session,
    path: PathArgument,
    backup: Annotated[str, typer.Option("--backup", metavar="ID", help="Id of the backup.")],
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="The file to write.")],
    disk: DiskOption = None,
    file_format: FormatOption = DiskFormat.RAW,
    *,
    overwrite: OverwriteOption = False,
) -> None:
    """Write a disk of a backup to a file, from the repository alone: no server, no database."""
    from sendense.cli import standalone  # the engine: loaded only for a path

    standalone.restore(
        session,
        _check_path(path, verb="restore"),
        standalone.Target(backup, disk, to, file_format, overwrite=overwrite),
    )


@command(app, "stats", examples=["sendense repository stats /mnt/backups"])
def stats(session: Session, path: PathArgument) -> None:
    """Count what a repository holds."""
    from sendense.cli import standalone  # the engine: loaded only for a path

    standalone.stats(session, _check_path(path, verb="stats"))


def _is_path(name: str) -> bool:
    """Return whether an argument is a path, not the name of a repository the server knows.

    A path holds a `/`, or is a directory that exists.
    """
    return "/" in name or Path(name).is_dir()


def _find(session: Session, name: str) -> str:
    return lookup.find_id(session.api, "repositories", name)


def _check_path(path: str, *, verb: str) -> Path:
    if not _is_path(path):
        raise usage(
            f"{path} is not a directory",
            hint=f"`sendense repository {verb}` takes a path here; "
            "backups of the server's repositories: `sendense backup list --repository NAME`",
        )
    return Path(path)


def _state(entry: dict[str, Any]) -> str:
    if not entry["enabled"]:
        return "disabled"
    return entry["trouble"] or "ok"


def _print_repository(session: Session, repository: dict[str, Any]) -> None:
    session.output.facts(
        [
            ("Name", repository["name"]),
            ("Id", repository["id"]),
            ("Type", repository["type"]),
            ("Place", repository["config"].get("path")),
            ("State", _state(repository)),
            ("Warnings", text.listing(repository["warnings"]) if repository["warnings"] else None),
            ("Backups", repository["backup_count"]),
            ("Capacity", text.size(repository["capacity_bytes"])),
            ("Free", text.size(repository["free_bytes"])),
            ("Measured", text.moment(repository["measured_at"])),
            ("Chunk size", text.size(repository["chunk_size"])),
            ("Own id", repository["uuid"]),
            ("Created", text.moment(repository["created_at"])),
        ]
    )


def _print_check(session: Session, name: str, report: dict[str, Any]) -> None:
    """Print what a check's job found. Raises Failure where the repository is not whole."""
    if not session.output.as_json:
        lines = [
            (
                (problem["kind"], problem.get("backup_id"), problem.get("disk_key")),
                ": ".join((problem["severity"], problem["kind"], problem["message"])),
            )
            for problem in report["problems"]
        ]
        for line in text.shorten(lines):
            session.output.line(line)
    if not report["clean"]:
        count = text.count(report["error_count"], "error")
        raise Failure(
            f"repository {name} is damaged: {count}",
            ExitCode.CORRUPT,
            hint="keep it as it is; backups that no error names can be restored",
        )
    if not session.output.as_json:
        session.output.line(
            f"repository {name} is whole: {text.count(report['backup_count'], 'backup')}"
        )
