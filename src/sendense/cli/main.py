"""The program `sendense`: its groups of commands, and the way out."""

import os
import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Annotated

import typer

import sendense
from sendense.cli import (
    backup,
    config,
    doctor,
    hub,
    job,
    output,
    repository,
    restore,
    source,
    support_bundle,
    vm,
    worker,
)
from sendense.cli.failure import ExitCode, usage

app = typer.Typer(
    name="sendense",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Back up virtual machines without an agent, and get them back.",
    epilog="Exit status: 0 done, 1 failed job, 2 usage, 3 not found, 4 conflict, 5 denied, "
    "6 unavailable, 7 corrupt, 130 interrupted.",
)


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - the signature Typer calls
    if wanted:
        typer.echo(f"sendense {sendense.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Back up virtual machines without an agent, and get them back."""


for _group in (source, vm, repository, backup, restore, job, worker, hub, config):
    app.add_typer(_group.app)
doctor.register(app)
support_bundle.register(app)

_CLIENT_COMMANDS = frozenset(
    {
        "source",
        "vm",
        "repository",
        "backup",
        "restore",
        "job",
        "worker",
        "hub",
        "config",
        "doctor",
        "--version",
    }
)


@cache
def register_servers() -> None:
    """Add the commands that run the server: once, and only where somebody may want them.

    They bring the whole server, which takes a second to load; a request to it takes milliseconds.
    """
    app.command("serve")(import_module("sendense.cli.serve").serve)


def _may_want_servers(arguments: list[str]) -> bool:
    """Return whether the command is not one of the client's: a server's, none, or a wrong one."""
    typed = arguments or os.environ.get("_TYPER_COMPLETE_ARGS", "").split()[1:]  # shell completion
    return not typed or typed[0] not in _CLIENT_COMMANDS


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        # Names of other scripts must not end a command where the terminal cannot show them.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr] # never detached here
    try:
        if _may_want_servers(given):
            register_servers()
        status = _run(given)
        sys.stdout.flush()
    except BrokenPipeError:
        output.discard()
        status = ExitCode.BROKEN_PIPE
    sys.exit(status)


def _run(arguments: list[str]) -> int:
    try:
        status = app(arguments, prog_name="sendense", standalone_mode=False)
    except typer.TyperException as error:
        return _refuse(arguments, error)
    except typer.Abort:
        return ExitCode.INTERRUPTED
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    return status if isinstance(status, int) else ExitCode.DONE


def _refuse(arguments: list[str], error: typer.TyperException) -> int:
    """Report arguments that no command takes."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "sendense"
    message = error.format_message().rstrip(".")
    if not message:  # a group without a command has printed its help
        return ExitCode.USAGE
    problem = usage(message[:1].lower() + message[1:], hint=f"see `{path} --help`")
    output.Output(as_json="--json" in arguments).fail(problem)
    return problem.code


if __name__ == "__main__":
    main()
