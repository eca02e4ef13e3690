"""`sendense repository key`: who can open an encrypted repository beside its recovery key."""

from pathlib import Path
from typing import Annotated

import typer

from sendense.cli import credentials, lookup, text, unlocking
from sendense.cli.command import Session, command, group
from sendense.cli.output import Column

app = group(
    "key",
    "Passphrases that open an encrypted repository, beside its recovery key. Given a path, they "
    "work on that repository alone, with no server.",
)

PlaceArgument = Annotated[
    str, typer.Argument(metavar="NAME|PATH", help="Name or id, or a directory for no server.")
]


def is_path(name: str) -> bool:
    """Return whether an argument is a path, not the name of a repository the server knows.

    A path holds a `/`, or is a directory that exists.
    """
    return "/" in name or Path(name).is_dir()


@command(
    app,
    "list",
    examples=["sendense repository key list main", "sendense repository key list /mnt/backups"],
)
def list_recipients(session: Session, repository: PlaceArgument) -> None:
    """List the passphrases that open a repository."""
    if is_path(repository):
        from sendense.cli import standalone_key  # the engine: loaded only for a path

        standalone_key.list_recipients(session, repository)
        return
    repository_id = lookup.find_id(session.api, "repositories", repository)
    answer = session.api.get("repositories", repository_id, "keys")
    if session.answered(answer):
        return
    for name in answer.data["damaged"]:
        session.output.warn(f"{name} is damaged")
    print_recipients(session, answer.data["recipients"])


@command(
    app,
    "add",
    examples=[
        "sendense repository key add main --label 'head office'",
        "sendense repository key add /mnt/backups --recovery-key-file key.txt",
    ],
)
def add(
    session: Session,
    repository: PlaceArgument,
    label: Annotated[str, typer.Option(help="A word on who has it.")] = "",
    new: Annotated[
        Path | None,
        typer.Option(
            "--new-passphrase-file",
            metavar="FILE",
            help="A file whose only line is the new passphrase; without it, you are asked.",
        ),
    ] = None,
    recovery_key_file: unlocking.RecoveryKeyFileOption = None,
    passphrase_file: unlocking.PassphraseFileOption = None,
) -> None:
    """Let a passphrase open a repository. A path needs a key that opens it already."""
    passphrase = (
        credentials.read_file(session, new, "passphrase")
        if new is not None
        else unlocking.ask_twice()
    )
    if is_path(repository):
        from sendense.cli import standalone_key  # the engine: loaded only for a path

        standalone_key.add_passphrase(
            session,
            repository,
            passphrase,
            label=label,
            given=unlocking.collect(session, recovery_key_file, passphrase_file),
        )
        return
    repository_id = lookup.find_id(session.api, "repositories", repository)
    body = {"passphrase": passphrase, "label": label}
    answer = session.api.post("repositories", repository_id, "keys", body=body)
    session.tell(answer, f"passphrase added: {answer.data['recipient_id']}")


@command(
    app,
    "remove",
    examples=["sendense repository key remove main k3j5h2g8s1ab --yes"],
)
def remove(
    session: Session,
    repository: PlaceArgument,
    recipient: Annotated[str, typer.Argument(help="Its id, as `key list` shows it.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Let a passphrase open a repository no more.

    Whoever had it may have kept the key itself; against that, only a new repository helps.
    """
    session.output.confirm(f"Remove {recipient} from {repository}?", yes=yes)
    if is_path(repository):
        from sendense.cli import standalone_key  # the engine: loaded only for a path

        standalone_key.remove(session, repository, recipient)
        return
    repository_id = lookup.find_id(session.api, "repositories", repository)
    answer = session.api.delete("repositories", repository_id, "keys", recipient)
    session.tell(answer, f"recipient {recipient} removed")


def print_recipients(session: Session, entries: list[dict[str, str]]) -> None:
    """Print recipients as the API shows them."""
    if not entries:
        session.output.note("no passphrases; the recovery key opens it")
        return
    session.output.table(
        [Column("ID"), Column("KIND"), Column("LABEL"), Column("ADDED")],
        [
            (one["recipient_id"], one["kind"], one["label"], text.moment(one["created_at"]))
            for one in entries
        ],
    )
