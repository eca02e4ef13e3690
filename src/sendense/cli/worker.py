"""`sendense worker`: a process that runs jobs, and the list of those that there are."""

from importlib import import_module
from typing import Annotated, Any

import typer

from sendense.cli import text
from sendense.cli.command import Session, command, reporting
from sendense.cli.options import AllowDirs, Config, DataDir
from sendense.cli.output import Column, Output

_HELP = """Run jobs until stopped. `sendense serve` starts one by itself.

On SIGTERM it takes no more jobs; what still runs after a few seconds is left as it is, and the
next worker goes on with it."""

app = typer.Typer(name="worker", help=_HELP, invoke_without_command=True, rich_markup_mode="rich")


@app.callback()
def worker(
    context: typer.Context,
    config: Config = None,
    data_dir: DataDir = None,
    allow_dir: AllowDirs = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label",
            metavar="KEY=VALUE",
            help="What jobs may demand of their worker. `host` is there by itself. Repeatable.",
            show_default=False,
        ),
    ] = None,
    parent: Annotated[
        int | None,
        typer.Option(hidden=True, help="Process id of the hub that started this worker."),
    ] = None,
) -> None:
    """Run a worker, unless a subcommand was given."""
    if context.invoked_subcommand is not None:
        return
    # Only now: they bring the whole server, which takes a second to load.
    effective_settings: Any = import_module("sendense.cli.effective_settings")
    process: Any = import_module("sendense.cli.worker_process")
    with reporting(Session(Output(as_json=False))):
        settings = effective_settings.read_settings(
            config=config,
            data_dir=data_dir,
            allowed_dirs=allow_dir or None,
            worker_labels=label or None,
        )
        process.run(settings, parent=parent)
    process.leave()


@command(app, "list", examples=["sendense worker list", "sendense worker list --json"])
def list_workers(session: Session) -> None:
    """List the workers, and what each of them runs."""
    answer = session.api.get("workers")
    if session.answered(answer):
        return
    entries = answer.data["workers"]
    if entries:
        session.output.table(
            [
                Column("HOST"),
                Column("STATUS"),
                Column("BEAT", right=True),
                Column("JOBS", right=True),
                Column("LABELS"),
                Column("WORKER"),
            ],
            [
                (
                    entry.get("host"),
                    entry.get("status"),
                    text.duration(entry.get("beat_age_seconds")),
                    str(len(entry.get("jobs") or [])),
                    ", ".join(f"{k}={v}" for k, v in (entry.get("labels") or {}).items())
                    or text.MISSING,
                    entry.get("id"),
                )
                for entry in entries
            ],
        )
    else:
        session.output.note("no workers")
    unplaced = answer.data.get("unplaced_jobs") or []
    if unplaced:
        session.output.warn(
            f"{text.count(len(unplaced), 'job')} that no live worker may run: {', '.join(unplaced)}"
        )
