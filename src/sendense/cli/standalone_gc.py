"""Garbage collection of a repository given by its path."""

import json
from dataclasses import asdict, dataclass, replace

from sendense.cli import progress, repository_gc, standalone, text
from sendense.cli.command import Session
from sendense.cli.unlocking import Given
from sendense.core.clock import SystemClock
from sendense.core.errors import Conflict
from sendense.repository.gc import run
from sendense.repository.gc.protocol import GRACE_SECONDS, Options
from sendense.repository.gc.verdict import Limits

LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast to go: see the options of `sendense repository gc`."""

    now: bool
    is_confirmed: bool
    deletes_per_second: float | None


def preview(session: Session, place: str, given: Given) -> None:
    """Say what a run would delete."""
    with standalone.open_repository(place, given) as repository:
        found = asdict(run.preview(repository, Options()))
    if session.output.as_json:
        session.output.json(json.dumps(found))
        return
    repository_gc.print_preview(session, found)


def collect(session: Session, place: str, given: Given, pace: Pace) -> None:
    """Run until all is deleted, or until what is condemned has to stay so for longer."""
    options = Options(
        grace_seconds=0.0 if pace.now else GRACE_SECONDS,
        is_confirmed=pace.is_confirmed,
        deletes_per_second=pace.deletes_per_second,
        limits=LIMITS,
    )
    try:
        report = _run(session, place, given, options)
    except Conflict as error:
        if error.kind != "gc-share-exceeded":
            raise
        session.output.confirm(f"{error.message}. Go on?", yes=False)
        report = _run(session, place, given, replace(options, is_confirmed=True))
    if session.output.as_json:
        session.output.json(json.dumps(asdict(report)))
        return
    repository_gc.print_report(session, asdict(report))


def _run(session: Session, place: str, given: Given, options: Options) -> run.Report:
    display = progress.open_display(
        session.output.err, SystemClock(), silent=session.output.as_json
    )
    with standalone.open_repository(place, given) as repository, display:
        return run.run(
            repository,
            options,
            progress=lambda what, done, total: display.show(
                progress.Status(what, 100 * done / total if total else 0)
            ),
            on_wait=lambda sessions: display.show(
                progress.Status(f"waiting for {text.count(len(sessions), 'session')}", 0)
            ),
        )
