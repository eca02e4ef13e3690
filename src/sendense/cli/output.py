"""What a command prints: tables for people, the API's body for programs, notes on stderr."""

import contextlib
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from sendense.cli import text
from sendense.cli.failure import ExitCode, Failure, usage

_PIPE_WIDTH = 100_000  # a pipe has no edge; nothing is folded or cut there


class _Console(Console):
    """A console that ends the program as SIGPIPE would when its reader has gone."""

    def on_broken_pipe(self) -> NoReturn:
        """Leave quietly; the reader has what it wanted."""
        raise BrokenPipeError


def _open_console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    terminal = stream.isatty()
    return _Console(
        file=stream,
        markup=False,
        emoji=False,
        highlight=False,
        force_terminal=terminal,
        color_system="auto" if terminal else None,
        width=None if terminal else _PIPE_WIDTH,
        soft_wrap=not terminal,
    )


def discard() -> None:
    """Let stdout lead nowhere: its reader has gone (`| head`), and the exit must not try again."""
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str
    right: bool = False


class Output:
    """Both streams of a command. Everything that is not from us is escaped here."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.out = _open_console(stderr=False)
        self.err = _open_console(stderr=True)

    def json(self, body: str) -> None:
        """Print the API's body exactly; on a terminal with control characters escaped."""
        safe = text.escape_json(body) if self.out.is_terminal else body
        sys.stdout.write(safe.removesuffix("\n") + "\n")
        sys.stdout.flush()

    def line(self, message: str, *, style: str = "") -> None:
        """Print one line of a result."""
        self.out.print(Text(text.escape(message), style=style), soft_wrap=True)

    def note(self, message: str, *, style: str = "dim") -> None:
        """Print one line beside the result, on stderr; nothing with `--json`."""
        if not self.as_json:
            self.err.print(Text(text.escape(message), style=style), soft_wrap=True)

    def warn(self, message: str) -> None:
        """Print a warning on stderr."""
        self.note(f"warning: {message}", style="yellow")

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> None:
        """Print rows under headings, one line each.

        A line that is wider than the terminal is wrapped by the terminal itself: an id is never
        cut or folded, so that it can be copied.
        """
        cells = [[text.escape(cell) for cell in row] for row in rows]
        titles = [column.title for column in columns]
        widths = [
            max(cell_len(line[index]) for line in [titles, *cells]) for index in range(len(columns))
        ]
        bold = "bold" if self.out.is_terminal else ""
        for line, header in [(titles, True), *((line, False) for line in cells)]:
            shown = Text(style=bold if header else "")
            for cell, width, column in zip(line, widths, columns, strict=True):
                padding = " " * (width - cell_len(cell))
                shown.append(padding if column.right else "")
                shown.append(cell, style=_style(cell))
                shown.append("  " if column.right else f"{padding}  ")
            shown.rstrip()
            self.out.print(shown, soft_wrap=True)

    def facts(self, facts: Iterable[tuple[str, object]]) -> None:
        """Print names and values, one a line; a value of None or "" is left out."""
        shown = [(name, text.escape(value)) for name, value in facts if value not in {None, ""}]
        width = max((len(name) for name, _ in shown), default=0)
        for name, value in shown:
            line = Text(f"{name:<{width}}  ", style="bold" if self.out.is_terminal else "")
            line.append(value, style=_style(value) or "not bold")
            self.out.print(line, soft_wrap=True)

    def shown(self, count: int, data: dict[str, Any]) -> None:
        """Note that a list goes on beyond what was printed."""
        total = data.get("total")
        if isinstance(total, int) and total > count:
            self.note(f"{count} of {total} shown; see --limit and --offset")

    def fail(self, problem: Failure) -> None:
        """Report a failure on stderr: one message with its hint and wrong fields, or JSON."""
        if self.as_json:
            body = problem.to_json()
            safe = text.escape_json(body) if self.err.is_terminal else body
            sys.stderr.write(safe.removesuffix("\n") + "\n")
            sys.stderr.flush()
            return
        # Who pressed Ctrl-C made no error.
        label = "" if problem.code is ExitCode.INTERRUPTED else "error: "
        self.err.print(
            Text.assemble((label, "bold red"), text.escape(problem.message)), soft_wrap=True
        )
        # A single wrong field is in the message already.
        for entry in problem.field_errors if len(problem.field_errors) > 1 else ():
            self.note(f"  {entry.name}: {entry.reason}", style="")
        for candidate in problem.candidates:
            self.note(f"  - {candidate}", style="")
        if problem.hint:
            self.err.print(
                Text.assemble(("hint: ", "cyan"), text.escape(problem.hint)), soft_wrap=True
            )

    def confirm(self, question: str, *, yes: bool) -> None:
        """Ask before something is taken away. Raises Failure where nobody can answer."""
        if yes:
            return
        if not sys.stdin.isatty():
            raise usage(f"{question} needs a person to confirm it", hint="add --yes in scripts")
        self.err.print(Text(f"{text.escape(question)} [y/N] "), end="", soft_wrap=True)
        if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
            self.note("nothing was changed")
            raise typer.Exit(ExitCode.FAILED)


_STYLES = {
    "completed": "green",
    "ok": "green",
    "running": "cyan",
    "pending": "yellow",
    "missing": "yellow",
    "failed": "red",
    "cancelled": "magenta",
}


def _style(cell: str) -> str:
    return _STYLES.get(cell, "")
