"""`sendense repository` for a path alone: what no server is ever asked for, and what all share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from sendense.cli import repository_gc, repository_key, repository_verify, unlocking
from sendense.cli.command import Session, command, group
from sendense.cli.failure import usage
from sendense.cli.repository_key import is_path
from sendense.cli.restore import DiskFormat, DiskOption, FormatOption, OverwriteOption

app = group(
    "repository",
    "Places that hold backups. `check`, `create`, `gc`, `key`, `list`, `restore`, `stats` and "
    "`verify` also take a path, or the URL of a place in an object store (s3://, az://, gs://): "
    "then they work on that repository alone, with no server.",
)
app.add_typer(repository_key.app)
repository_gc.register(app)
repository_verify.register(app)

EncryptionOption = Annotated[
    bool,
    typer.Option("--encryption/--no-encryption", help="Whether a new repository is encrypted."),
]
AcceptUnfitOption = Annotated[
    bool,
    typer.Option(
        "--accept-unfit",
        help="Use an object store that failed its trial; two writers at once may lose data.",
    ),
]
ImmutableDaysOption = Annotated[
    int,
    typer.Option(
        "--immutable-days",
        min=0,
        metavar="N",
        help="Nobody deletes a backup of a new repository for so many days; it stays so.",
    ),
]


class LockMode(StrEnum):
    """How a storage locks objects."""

    GOVERNANCE = "governance"
    COMPLIANCE = "compliance"
    ATTRIBUTE = "attribute"


LockModeOption = Annotated[
    LockMode | None,
    typer.Option(
        "--lock-mode",
        help="Let the storage lock objects for as long: a bucket's object lock, or the immutable"
        " attribute of a directory's files.",
    ),
]
PathArgument = Annotated[
    str,
    typer.Argument(metavar="PATH", help="The repository's directory or URL; no server is asked."),
]


@command(
    app,
    "create",
    examples=[
        "sendense repository create /mnt/backups",
        "sendense repository create /mnt/backups --passphrase-file phrase.txt --json",
        "sendense repository create 's3://backups/main?region=eu-central-1'",
    ],
)
def create(  # noqa: PLR0913 - a command's options are its parameters
    session: Session,
    path: PathArgument,
    passphrase_file: unlocking.PassphraseFileOption = None,
    *,
    encryption: EncryptionOption = True,
    accept_unfit: AcceptUnfitOption = False,
    immutable_days: ImmutableDaysOption = 0,
    lock_mode: LockModeOption = None,
) -> None:
    """Make a repository in an empty or missing folder, with no server; `add` registers it.

    Given the URL of a place in an object store, the store is tried out first.
    """
    from sendense.cli import standalone_key  # the engine: loaded only here

    given = unlocking.collect(session, None, passphrase_file)
    standalone_key.create(
        session,
        path,
        given,
        standalone_key.Wanted(
            encryption=encryption,
            accept_unfit=accept_unfit,
            **immutability(immutable_days, lock_mode),
        ),
    )


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
def restore(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    session: Session,
    path: PathArgument,
    backup: Annotated[str, typer.Option("--backup", metavar="ID", help="Id of the backup.")],
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="The file to write.")],
    disk: DiskOption = None,
    file_format: FormatOption = DiskFormat.RAW,
    recovery_key_file: unlocking.RecoveryKeyFileOption = None,
    passphrase_file: unlocking.PassphraseFileOption = None,
    *,
    overwrite: OverwriteOption = False,
    salvage: Annotated[
        bool,
        typer.Option(
            "--salvage",
            help="Restore all that can be read; what is missing is zeros, and FILE.lost.json says "
            "where.",
        ),
    ] = False,
) -> None:
    """Write a disk of a backup to a file, from the repository alone: no server, no database."""
    from sendense.cli import standalone  # the engine: loaded only for a path

    standalone.restore(
        session,
        check_path(path, verb="restore"),
        standalone.Target(backup, disk, to, file_format, overwrite=overwrite, salvage=salvage),
        unlocking.collect(session, recovery_key_file, passphrase_file),
    )


@command(app, "stats", examples=["sendense repository stats /mnt/backups"])
def stats(
    session: Session,
    path: PathArgument,
    recovery_key_file: unlocking.RecoveryKeyFileOption = None,
    passphrase_file: unlocking.PassphraseFileOption = None,
) -> None:
    """Count what a repository holds."""
    from sendense.cli import standalone  # the engine: loaded only for a path

    given = unlocking.collect(session, recovery_key_file, passphrase_file)
    standalone.stats(session, check_path(path, verb="stats"), given)


def immutability(days: int, mode: LockMode | None) -> dict[str, Any]:
    """Return the options as the API's requests name them."""
    if mode is not None and not days:
        raise usage("--lock-mode needs --immutable-days")
    return {**({"immutable_days": days} if days else {}), **({"lock_mode": mode} if mode else {})}


def check_path(path: str, *, verb: str) -> str:
    """Return a repository's path, or raise a usage failure for what is none."""
    if not is_path(path):
        raise usage(
            f"{path} is not a directory",
            hint=f"`sendense repository {verb}` takes a path here; "
            "backups of the server's repositories: `sendense backup list --repository NAME`",
        )
    return path
