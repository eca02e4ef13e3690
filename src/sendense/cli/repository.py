"""`sendense repository`: where backups are kept; by name through the server, by path without it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sendense.cli import lookup, paging, tags, text, unlocking, waiting
from sendense.cli.command import Session, command
from sendense.cli.failure import ExitCode, Failure, usage
from sendense.cli.output import Column
from sendense.cli.repository_alone import (
    AcceptUnfitOption,
    EncryptionOption,
    ImmutableDaysOption,
    LockModeOption,
    app,
    check_path,
    immutability,
)
from sendense.cli.repository_key import is_path

RepositoryArgument = Annotated[
    str, typer.Argument(metavar="REPOSITORY", help="Name or id of the repository.")
]

_TYPES = {"s3": "s3", "az": "azure", "gs": "gcs"}
StoreOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Place in an object store: s3://…, az://… or gs://…, without credentials.",
    ),
]


@command(
    app,
    "add",
    examples=[
        "sendense repository add main --type local --path /var/lib/sendense/backups",
        "sendense repository add nas --path /srv/backups --require host=nas1",
        "sendense repository add old --path /mnt/old --recovery-key-file key.txt",
        "sendense repository add vault --path /mnt/vault --immutable-days 30",
        "sendense repository add offsite --store 's3://backups/main?region=eu-central-1'",
    ],
)
def add(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    session: Session,
    name: Annotated[str, typer.Argument(help="A name of your choice.")],
    path: Annotated[
        Path | None, typer.Option(help="Directory on the server's machine; made if missing.")
    ] = None,
    store: StoreOption = None,
    kind: Annotated[
        str | None,
        typer.Option("--type", help="What it stands on; left out, path or URL say it."),
    ] = None,
    require: tags.RequireOption = None,
    recovery_key_file: unlocking.RecoveryKeyFileOption = None,
    passphrase_file: unlocking.PassphraseFileOption = None,
    *,
    encryption: EncryptionOption = True,
    accept_unfit: AcceptUnfitOption = False,
    immutable_days: ImmutableDaysOption = 0,
    lock_mode: LockModeOption = None,
) -> None:
    """Register a repository, and make it where there is none yet.

    A new one is encrypted, and its recovery key is printed, this once. A passphrase opens one that
    exists, and is added to a new one. An object store is tried out first; the server and its
    workers need its credentials in their environment.
    """
    found, config = _read_place(path, store)
    if accept_unfit:
        config["accept_unfit"] = True
    config.update(immutability(immutable_days, lock_mode))
    given = unlocking.collect(session, recovery_key_file, passphrase_file)
    body = {
        "name": name,
        "type": kind or found,
        "config": {**config, "encryption": encryption, **given.to_body()},
        **tags.parse_required(require),
    }
    answer = session.api.post("repositories", body=body)
    if session.answered(answer):
        return
    repository_id = answer.data["id"]
    session.output.line(f"repository {name} added: {repository_id}")
    for warning in answer.data["warnings"]:
        session.output.warn(warning)
    if answer.data["recovery_key"] is not None:
        unlocking.show_recovery_key(session, answer.data["recovery_key"])


@command(
    app,
    "import",
    examples=[
        "sendense repository import main",
        "sendense repository import /mnt/backups --name main --recovery-key-file key.txt",
    ],
)
def import_backups(
    session: Session,
    repository: Annotated[
        str,
        typer.Argument(
            metavar="NAME|PATH", help="Name or id, or a directory of the server's, or a URL."
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Register the directory under this name first.")
    ] = None,
    recovery_key_file: unlocking.RecoveryKeyFileOption = None,
    passphrase_file: unlocking.PassphraseFileOption = None,
) -> None:
    """Bring a repository's backups into the server's list: those that it does not have.

    A server that lost its database, or a new one, can restore them at once. VMs and sources come
    back too; give the sources their configuration and credentials again, and discover.
    """
    if is_path(repository) != (name is not None):
        raise usage("give --name together with a path, and only then")
    if name is not None:
        given = unlocking.collect(session, recovery_key_file, passphrase_file)
        if given.ask:
            given = unlocking.ask()
        is_url = "://" in repository
        kind, config = _read_place(
            None if is_url else Path(repository), repository if is_url else None
        )
        body = {"name": name, "type": kind, "config": {**config, **given.to_body()}}
        repository_id = str(session.api.post("repositories", body=body).data["id"])
    else:
        repository_id = _find(session, repository)
    answer = session.api.start("repositories", repository_id, "import")
    ended = waiting.wait_for_job(session, str(answer.data["job_id"]))
    if session.output.as_json:
        session.output.json(ended.body)
    waiting.check_completed(ended)
    if session.output.as_json:
        return
    result = ended.job.data["result"]
    session.output.line(
        f"{text.count(result['backups_added'], 'backup')} imported,"
        f" {result['backups_known']} known before"
    )
    for line in ended.job.data["log"]:
        session.output.warn(line["message"])


@command(
    app,
    "unlock",
    examples=["sendense repository unlock main --recovery-key-file key.txt"],
)
def unlock(
    session: Session,
    repository: RepositoryArgument,
    recovery_key_file: unlocking.RecoveryKeyFileOption = None,
    passphrase_file: unlocking.PassphraseFileOption = None,
) -> None:
    """Give the server the key of an encrypted repository again, where it has lost its own."""
    given = unlocking.collect(session, recovery_key_file, passphrase_file)
    if given.ask:
        given = unlocking.ask()
    answer = session.api.post(
        "repositories", _find(session, repository), "unlock", body=given.to_body()
    )
    session.tell(answer, f"repository {repository} unlocked")


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
    recovery_key_file: unlocking.RecoveryKeyFileOption = None,
    passphrase_file: unlocking.PassphraseFileOption = None,
) -> None:
    """List the repositories, or the backups inside one given by its path."""
    if path is not None:
        from sendense.cli import standalone  # the engine: loaded only for a path

        given = unlocking.collect(session, recovery_key_file, passphrase_file)
        standalone.list_backups(session, check_path(path, verb="list"), given)
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
                _place(entry["config"]),
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
    store: StoreOption = None,
) -> None:
    """Ask whether a repository can be used, before or after it is saved."""
    if (repository is None) == (path is None and store is None):
        raise usage("give a repository's name, or a place to try, one of them")
    if repository is None:
        kind, config = _read_place(path, store)
        body = {"type": kind, "config": config}
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
    session.tell(answer, f"repository {repository} removed; its files stay")


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
    recovery_key_file: unlocking.RecoveryKeyFileOption = None,
    passphrase_file: unlocking.PassphraseFileOption = None,
    *,
    read_data: Annotated[
        bool, typer.Option("--read-data", help="Also read and verify every stored chunk.")
    ] = False,
) -> None:
    """Check that a repository's structure is whole; exits with 7 where it is not."""
    if is_path(repository):
        from sendense.cli import standalone  # the engine: loaded only for a path

        given = unlocking.collect(session, recovery_key_file, passphrase_file)
        standalone.check(session, repository, given, read_data=read_data)
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


def _find(session: Session, name: str) -> str:
    return lookup.find_id(session.api, "repositories", name)


def _read_place(path: Path | None, store: str | None) -> tuple[str, dict[str, Any]]:
    """Return the type and the configuration of the place that is given."""
    if (path is None) == (store is None):
        raise usage("give --path, or --store for an object store, one of them")
    if path is not None:
        return "local", {"path": str(path.absolute())}
    scheme = str(store).partition("://")[0]
    return _TYPES.get(scheme, scheme), {"url": store}


def _place(config: dict[str, Any]) -> str:
    return str(config.get("path") or config.get("url") or text.MISSING)


def _trial(config: dict[str, Any]) -> str | None:
    """Return how the trial of an object store went."""
    trial = config.get("trial")
    if trial is None:
        return None
    told = f"{trial['rounds']} times {trial['writers']} writers at once"
    return f"{told}: {'passed' if trial['fit'] else 'FAILED'}"


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
            ("Place", _place(repository["config"])),
            ("Trial", _trial(repository["config"])),
            ("State", _state(repository)),
            ("Warnings", text.listing(repository["warnings"]) if repository["warnings"] else None),
            ("Backups", repository["backup_count"]),
            ("Capacity", text.size(repository["capacity_bytes"])),
            ("Free", text.size(repository["free_bytes"])),
            ("Measured", text.moment(repository["measured_at"])),
            ("Chunk size", text.size(repository["chunk_size"])),
            ("Encrypted", text.yes_no(repository["encrypted"])),
            ("Immutable", _immutability(repository)),
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


def _immutability(repository: dict[str, Any]) -> str | None:
    if not repository.get("immutable_days"):
        return None
    days = text.count(repository["immutable_days"], "day")
    return f"{days}, locked by {repository['lock_mode']}" if repository.get("lock_mode") else days
