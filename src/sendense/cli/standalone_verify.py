"""Verification of a repository given by its path."""

import json
from dataclasses import dataclass

from sendense.cli import progress, repository_verify, standalone
from sendense.cli.command import Session
from sendense.cli.unlocking import Given
from sendense.core.clock import SystemClock
from sendense.repository.verify import run
from sendense.repository.verify.run import Budget, Level


@dataclass(frozen=True, slots=True)
class Wanted:
    """How deep and how much: see the options of `sendense repository verify`."""

    level: int
    bytes_max: int | None
    seconds_max: float | None


def verify(session: Session, place: str, given: Given, wanted: Wanted) -> None:
    """Verify packs within the budget, and print what was found."""
    display = progress.open_display(
        session.output.err, SystemClock(), silent=session.output.as_json
    )
    with standalone.open_repository(place, given) as repository, display:
        report = run.verify(
            repository,
            Level(wanted.level),
            Budget(wanted.bytes_max, wanted.seconds_max),
            progress=lambda what, done, total: display.show(
                progress.Status(f"verifying {what}", 100 * done / total if total else 0)
            ),
        )
    document = report.to_json()
    if session.output.as_json:
        session.output.json(json.dumps(document, ensure_ascii=False))
    repository_verify.print_report(session, place, document)
