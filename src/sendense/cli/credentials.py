"""Usernames and passwords of platforms: from a file, standard input or a person, never an argument.

What stands on a command line is seen by every user of the machine, and kept in the shell's history.
"""

import getpass
import os
import stat
import sys
from pathlib import Path
from typing import Annotated

import typer

from sendense.cli.command import Session
from sendense.cli.failure import usage

BYTES_MAX = 4096  # a password has a line; more is another file

UsernameOption = Annotated[
    str | None, typer.Option("--username", help="Who logs in to the platform.")
]
PasswordFileOption = Annotated[
    Path | None,
    typer.Option("--password-file", metavar="FILE", help="A file whose only line is the password."),
]
PasswordStdinOption = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from standard input.")
]


def find(
    session: Session, *, username: str | None, file: Path | None, stdin: bool
) -> dict[str, str] | None:
    """Return what to log in with, or None where nothing was said about it.

    Raises a usage failure where a part is missing and nobody can be asked.
    """
    if username is None:
        if file is not None or stdin:
            raise usage("a password needs --username too")
        return None
    if file is not None and stdin:
        raise usage("give --password-file or --password-stdin, one of them")
    return {"username": username, "password": _find_password(session, username, file, stdin=stdin)}


def _find_password(session: Session, username: str, file: Path | None, *, stdin: bool) -> str:
    if file is not None:
        return read_file(session, file, "password")
    if stdin:
        return _check(sys.stdin.buffer.read(BYTES_MAX + 1), "standard input", "password")
    if not sys.stdin.isatty():
        raise usage(
            f"a password for {username} is needed, and nobody is here to ask",
            hint="give --password-file FILE or --password-stdin",
        )
    typed = getpass.getpass(f"Password of {username}: ").encode()
    return _check(typed, "what was typed", "password")


def read_file(session: Session, path: Path, what: str) -> str:
    """Return the one line that a file of a secret holds; warn where others may read it."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(BYTES_MAX + 1)
    except OSError as error:
        raise usage(f"cannot read the {what} from {path}: {error.strerror}") from error
    if stat.S_ISREG(mode) and mode & stat.S_IROTH:
        session.output.warn(f"every user of this machine may read {path}")
    return _check(content, str(path), what)


def _check(content: bytes, place: str, what: str) -> str:
    """Return the one line that the content holds, which no message repeats."""
    if len(content) > BYTES_MAX:
        raise usage(f"{place} holds more than a {what}: over {BYTES_MAX} bytes")
    try:
        text = content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise usage(f"{place} is not UTF-8") from None
    if not text:
        raise usage(f"{place} holds no {what}")
    if "\n" in text:
        raise usage(f"{place} holds more than one line")
    return text
