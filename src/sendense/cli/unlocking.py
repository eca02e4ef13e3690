"""Keys of encrypted repositories, as a person or a script gives them: never as an argument."""

import getpass
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sendense.cli import credentials
from sendense.cli.command import Session
from sendense.cli.failure import usage

RECOVERY_KEY_VARIABLE = "SENDENSE_RECOVERY_KEY"
HUB_VARIABLE = "SENDENSE_HUB_RECOVERY_KEY"
PASSPHRASE_VARIABLE = "SENDENSE_PASSPHRASE"  # noqa: S105 - a variable's name
_PREFIX = "SENDENSE-1"  # a recovery key's; what a person types without it is a passphrase

RecoveryKeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--recovery-key-file",
        metavar="FILE",
        help=f"A file that holds the recovery key; or set {RECOVERY_KEY_VARIABLE}.",
    ),
]
PassphraseFileOption = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        help=f"A file whose only line is a passphrase; or set {PASSPHRASE_VARIABLE}.",
    ),
]


@dataclass(frozen=True)
class Given:
    """What was given to open a repository with; at most one of the two.

    Attributes:
        ask: whether a person may be asked where neither was given.
    """

    recovery_key: str | None = None
    passphrase: str | None = None
    ask: bool = False

    def to_body(self) -> dict[str, Any]:
        """Return it as the API's requests name it."""
        named = {"recovery_key": self.recovery_key, "passphrase": self.passphrase}
        return {name: value for name, value in named.items() if value is not None}


def collect(
    session: Session, recovery_key_file: Path | None, passphrase_file: Path | None
) -> Given:
    """Return what the options or the environment give; a file counts before a variable."""
    if recovery_key_file is not None and passphrase_file is not None:
        raise usage("give --recovery-key-file or --passphrase-file, one of them")
    if recovery_key_file is not None:
        return Given(recovery_key=credentials.read_file(session, recovery_key_file, "recovery key"))
    if passphrase_file is not None:
        return Given(passphrase=credentials.read_file(session, passphrase_file, "passphrase"))
    key, phrase = os.environ.get(RECOVERY_KEY_VARIABLE), os.environ.get(PASSPHRASE_VARIABLE)
    if key:
        return Given(recovery_key=key)
    if phrase:
        return Given(passphrase=phrase)
    return Given(ask=sys.stdin.isatty())


def collect_hub_key(session: Session, file: Path | None) -> str:
    """Return the server's own recovery key from a file, the environment, or a person."""
    if file is not None:
        return credentials.read_file(session, file, "recovery key")
    if key := os.environ.get(HUB_VARIABLE):
        return key
    if not sys.stdin.isatty():
        raise usage(
            "the server's recovery key is needed, and nobody is here to ask",
            hint="give --recovery-key-file FILE",
        )
    return getpass.getpass("The server's recovery key: ").strip()


def ask() -> Given:
    """Ask a person for either."""
    typed = getpass.getpass("Recovery key or passphrase: ").strip()
    if typed.upper().startswith(_PREFIX):
        return Given(recovery_key=typed)
    return Given(passphrase=typed)


def ask_twice() -> str:
    """Ask a person for a new passphrase, twice, so that a slip is noticed."""
    if not sys.stdin.isatty():
        raise usage(
            "a passphrase is needed, and nobody is here to ask", hint="give --passphrase-file FILE"
        )
    typed = getpass.getpass("New passphrase: ")
    if getpass.getpass("Once more: ") != typed:
        raise usage("the two are not the same")
    return typed


def show_recovery_key(
    session: Session,
    text: str,
    *,
    whose: str = "Its recovery key, told this once:",
    opens: str = "Whoever has it and the repository can restore every backup. Without the server"
    " and without it, nobody can.",
) -> None:
    """Print a recovery key: as text, and on a terminal as a QR code too."""
    session.output.line(whose)
    session.output.line("")
    session.output.line(f"  {text}")
    session.output.line("")
    if sys.stdout.isatty():
        import segno  # only here: the other commands need not wait for it

        segno.make(text, error="m").terminal(compact=True)
    session.output.note(
        f"Print it or write it down, and keep it away from this machine. {opens}", style=""
    )
