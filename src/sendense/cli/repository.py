"""`sendense repository`: where backups are kept; by name through the server, by path without it."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sendense.cli import lookup, standalone, text, waiting
from sendense.cli.command import Session, command, group
from sendense.cli.failure import usage
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
    if session.output.as_json:
        session.output.json(answer.text)
        return
    repository_id = lookup.id_of("repositories", answer.data)
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
) -> None:
    """List the repositories, or the backups inside one given by its path."""
    if path is not None:
        standalone.list_backups(session, _check_path(path, verb="list"))
        return
    answer = session.api.get("repositories")
    if session.output.as_json:
        session.output.json(answer.text)
        return
    entries = answer.data["repositories"]
    if not entries:
        session.output.note("no repositories yet; add one by `sendense repository add`")
        return
    session.output.table(
        [
            Column("NAME"),
            Column("TYPE"),
            Column("FREE", right=True),
            Column("ID"),
            Column("PLACE"),
        ],
        [
            (
                entry.get("name"),
                entry.get("type"),
                text.size(_capacity(entry, "free_bytes", "available_bytes")),
                lookup.id_of("repositories", entry),
                (entry.get("config") or {}).get("path") or text.MISSING,
            )
            for entry in entries
        ],
    )


@command(app, "show", examples=["sendense repository show main"])
def show(session: Session, repository: RepositoryArgument) -> None:
    """Show one repository."""
    answer = session.api.get("repositories", _find(session, repository))
    if session.output.as_json:
        session.output.json(answer.text)
        return
    _print_repository(session, answer.data)


@command(app, "test", examples=["sendense repository test main"])
def probe_repository(session: Session, repository: RepositoryArgument) -> None:
    """Ask whether a repository can be read and written."""
    answer = session.api.post("repositories", _find(session, repository), "test")
    if session.output.as_json:
        session.output.json(answer.text)
        return
    session.output.facts(_facts_of(answer.data))


@command(app, "storage", examples=["sendense repository storage main"])
def storage(session: Session, repository: RepositoryArgument) -> None:
    """Show a repository's capacity, measured now."""
    answer = session.api.get("repositories", _find(session, repository), "storage")
    if session.output.as_json:
        session.output.json(answer.text)
        return
    session.output.facts(_facts_of(answer.data))


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
    if session.output.as_json:
        session.output.json(answer.text)
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
    if session.output.as_json:
        if answer.text:
            session.output.json(answer.text)
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
    if standalone.is_path(repository):
        standalone.check(session, Path(repository), read_data=read_data)
        return
    answer = session.api.start(
        "repositories", _find(session, repository), "check", body={"read_data": read_data}
    )
    if "job_id" not in answer.data:
        _print_check(session, answer.text, answer.data)
        return
    ended = waiting.wait_for_job(session, str(answer.data["job_id"]))
    if session.output.as_json:
        session.output.json(ended.body)
    waiting.check_completed(ended)
    if not session.output.as_json:
        session.output.line(f"repository {repository} is whole")


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
    disk: DiskOption,
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="The file to write.")],
    file_format: FormatOption = DiskFormat.RAW,
    *,
    overwrite: OverwriteOption = False,
) -> None:
    """Write a disk of a backup to a file, from the repository alone: no server, no database."""
    standalone.restore(
        session,
        _check_path(path, verb="restore"),
        standalone.Target(backup, disk, to, file_format, overwrite=overwrite),
    )


@command(app, "stats", examples=["sendense repository stats /mnt/backups"])
def stats(session: Session, path: PathArgument) -> None:
    """Count what a repository holds."""
    standalone.stats(session, _check_path(path, verb="stats"))


def _find(session: Session, name: str) -> str:
    if standalone.is_path(name):
        raise usage(f"{name} is a path; this command takes a repository's name or id")
    return lookup.find_id(session.api, "repositories", name)


def _check_path(path: str, *, verb: str) -> Path:
    if not standalone.is_path(path):
        raise usage(
            f"{path} is not a directory",
            hint=f"`sendense repository {verb}` takes a path here; "
            "backups of the server's repositories: `sendense backup list --repository NAME`",
        )
    return Path(path)


def _capacity(entry: dict[str, Any], *names: str) -> object:
    places = [entry, entry.get("capacity") or {}, entry.get("storage") or {}]
    return next(
        (place[name] for place in places for name in names if place.get(name) is not None), None
    )


def _facts_of(data: dict[str, Any]) -> list[tuple[str, object]]:
    """Return any flat answer as facts: sizes by their names' ending, the rest as it is."""
    facts: list[tuple[str, object]] = []
    for key, value in data.items():
        name = key.removesuffix("_bytes").replace("_", " ").capitalize()
        if key.endswith("_bytes"):
            facts.append((name, text.size(value)))
        elif key.endswith("_at"):
            facts.append((name, text.moment(value)))
        elif isinstance(value, bool):
            facts.append((name, text.yes_no(value)))
        elif value is not None:
            facts.append((name, text.listing(value)))
    return facts


def _print_repository(session: Session, repository: dict[str, Any]) -> None:
    session.output.facts(
        [
            ("Name", repository.get("name")),
            ("Id", lookup.id_of("repositories", repository)),
            *(
                fact
                for fact in _facts_of(repository)
                if fact[0] not in {"Name", "Id", "Repository id", "Config"}
            ),
            ("Configuration", json.dumps(repository.get("config"), ensure_ascii=False)),
        ]
    )


def _print_check(session: Session, body: str, data: dict[str, Any]) -> None:
    if session.output.as_json:
        session.output.json(body)
    else:
        session.output.facts(_facts_of(data))
