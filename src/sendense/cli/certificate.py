"""Trusting a platform's certificate: shown on first contact, and pinned once somebody says yes."""

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sendense.cli import text
from sendense.cli.client import Answer
from sendense.cli.command import Session
from sendense.cli.failure import ExitCode, Failure, usage

BYTES_MAX = 64 * 1024  # of a chain of certificates; more is another file
_DIGITS = 64  # of a SHA-256

CertificateOption = Annotated[
    Path | None,
    typer.Option(
        "--certificate", metavar="FILE", help="Trust this certificate (PEM) and no other."
    ),
]
FingerprintOption = Annotated[
    str | None,
    typer.Option(
        "--trust-fingerprint",
        metavar="SHA256",
        help="Trust the certificate that the host shows now, if it has this SHA-256.",
    ),
]


def read(path: Path) -> str:
    """Return the PEM that a file holds."""
    try:
        with path.open("rb") as file:
            content = file.read(BYTES_MAX + 1)
    except OSError as error:
        raise usage(f"cannot read the certificate {path}: {error.strerror}") from error
    if len(content) > BYTES_MAX:
        raise usage(f"{path} is larger than certificates are: over {text.size(BYTES_MAX)}")
    try:
        return content.decode("ascii")
    except UnicodeDecodeError:
        raise usage(f"{path} is no PEM", hint="openssl x509 -inform der -in FILE") from None


def pin(
    session: Session, kind: str, config: dict[str, Any], *, fingerprint: str | None
) -> dict[str, Any]:
    """Return the configuration with the certificate that the host shows, where it must be pinned.

    It must be where the machine itself does not trust it. Then a fingerprint that was given must
    be its own, or a person is asked. Nothing is logged in to.
    """
    wanted = None if fingerprint is None else parse_fingerprint(fingerprint)
    unpinned = {key: value for key, value in config.items() if key != "certificate_pem"}
    found = session.api.post("sources", "test", body={"type": kind, "config": unpinned}).data
    shown = found.get("certificate")
    if not isinstance(shown, dict):
        raise Failure(f"{config.get('host')} showed no certificate", ExitCode.UNAVAILABLE)
    if wanted is not None:
        if parse_fingerprint(str(shown["sha256"])) != wanted:
            raise _another(config, shown)
    elif shown.get("trusted"):
        return unpinned
    else:
        _ask(session, config, shown)
    return {**unpinned, "certificate_pem": shown["pem"]}


def parse_fingerprint(given: str) -> str:
    """Return a SHA-256 as bare lower-case digits, however it was written."""
    bare = re.sub(r"[:\s]", "", given).lower().removeprefix("sha256").removeprefix("=")
    if re.fullmatch(rf"[0-9a-f]{{{_DIGITS}}}", bare) is None:
        raise usage(
            f"{given} is no SHA-256 fingerprint: {_DIGITS} hexadecimal digits",
            hint="openssl x509 -noout -fingerprint -sha256 -in FILE prints one",
        )
    return bare


def facts(shown: dict[str, Any]) -> list[tuple[str, object]]:
    """Return what to show of a certificate."""
    return [
        ("SHA-256", shown.get("sha256")),
        ("Subject", shown.get("subject")),
        ("Issuer", shown.get("issuer")),
        ("Valid from", text.moment(shown.get("not_before"))),
        ("Valid until", text.moment(shown.get("not_after"))),
        ("Trusted", text.yes_no(shown.get("trusted"))),
        ("Problem", "; ".join(shown.get("problems") or ())),
    ]


def require_trusted(tested: Answer) -> None:
    """Raise the failure for a login that was not tried, because of the host's certificate."""
    shown = tested.data.get("certificate")
    if not shown or shown.get("trusted"):
        return
    raise Failure(
        f"nobody was logged in: the host's certificate is not trusted: {_tell_problems(shown)}",
        ExitCode.DENIED,
        hint="compare its SHA-256 with the one that the host's own console shows, then give it as"
        " --certificate FILE; `sendense source add` shows and pins it",
        body=tested.text,
    )


def _tell_problems(shown: dict[str, Any]) -> str:
    return "; ".join(shown.get("problems") or ()) or "it is not trusted here"


def _ask(session: Session, config: dict[str, Any], shown: dict[str, Any]) -> None:
    host = config.get("host")
    if session.output.as_json or not sys.stdin.isatty():
        raise Failure(
            f"the certificate of {host} is not trusted: {_tell_problems(shown)}; its SHA-256 is"
            f" {shown['sha256']}",
            ExitCode.DENIED,
            hint="compare it with the one that the host's own console shows, then add"
            f" --trust-fingerprint {shown['sha256']}",
        )
    session.output.note(f"{host} shows a certificate that this hub does not trust:", style="")
    for name, value in facts(shown):
        if value:
            session.output.note(f"  {name + ':':<12} {value}", style="")
    session.output.note(
        "Compare the SHA-256 with the one that the host's own console shows.", style=""
    )
    session.output.confirm("Trust this certificate, and no other?", yes=False)


def _another(config: dict[str, Any], shown: dict[str, Any]) -> Failure:
    return Failure(
        f"{config.get('host')} shows another certificate: its SHA-256 is {shown['sha256']}",
        ExitCode.DENIED,
        hint="somebody may be in between; compare it with what the host's own console shows",
    )
