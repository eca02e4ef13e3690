"""What every command has: `--json`, the server's address, and one place where failures end."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from rich.markup import escape

from sendense.cli import failure, output
from sendense.cli.client import URL_DEFAULT, Answer, Api, is_loopback
from sendense.cli.failure import ExitCode, Failure
from sendense.core.errors import SendenseError

_PANEL = "Common options"


@dataclass
class Session:
    """One run of a command: where it prints, and the server once somebody asks for it."""

    output: output.Output
    url: str = URL_DEFAULT
    token: str | None = None
    _api: Api | None = field(default=None, repr=False)

    @property
    def api(self) -> Api:
        """Return the server's client; commands that never ask for it need no server."""
        if self._api is None:
            self._api = Api(self.url, token=self.token)
            if self.token and self.url.startswith("http:") and not is_loopback(self._api.url):
                self.output.warn("the token travels unencrypted; use an https address")
        return self._api

    def answered(self, answer: Answer) -> bool:
        """Print the answer's body where that is wanted, and return whether it was."""
        if self.output.as_json and answer.text:
            self.output.json(answer.text)
        return self.output.as_json

    def tell(self, answer: Answer, line: str) -> None:
        """Print the answer's body where that is wanted, else one line that says what was done."""
        if not self.answered(answer):
            self.output.line(line)

    def close(self) -> None:
        """Close the connection, if there was one."""
        if self._api is not None:
            self._api.close()


_JSON = inspect.Parameter(
    "as_json",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[
        bool,
        typer.Option("--json", help="Print the API's answer as JSON.", rich_help_panel=_PANEL),
    ],
)
_URL = inspect.Parameter(
    "url",
    inspect.Parameter.KEYWORD_ONLY,
    default=URL_DEFAULT,
    annotation=Annotated[
        str,
        typer.Option(
            "--url", envvar="SENDENSE_URL", help="The server's address.", rich_help_panel=_PANEL
        ),
    ],
)
_TOKEN = inspect.Parameter(
    "token",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        str | None,
        typer.Option(
            "--token",
            envvar="SENDENSE_TOKEN",
            show_default=False,
            help="API token; better given in the environment, where others cannot read it.",
            rich_help_panel=_PANEL,
        ),
    ],
)


def command(
    app: typer.Typer, name: str, *, examples: Sequence[str]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function `f(session, …)` as a command with the options that all share.

    The function's docstring is the command's help. Failures raised in it are reported and become
    the exit status.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function, eval_str=True)
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in list(signature.parameters.values())[1:]
        ]

        def run(*, as_json: bool, url: str, token: str | None, **arguments: Any) -> None:
            session = Session(output.Output(as_json=as_json), url=url, token=token)
            with reporting(session):
                function(session, **arguments)

        run.__name__ = function.__name__
        run.__doc__ = function.__doc__
        run.__signature__ = signature.replace(  # type: ignore[attr-defined] # PEP 362, read by Typer
            parameters=[*own, _JSON, _URL, _TOKEN], return_annotation=None
        )
        run.__annotations__ = {}
        epilog = "\n\n".join(["[bold]Examples[/bold]", *(f"  {escape(line)}" for line in examples)])
        app.command(name, epilog=epilog)(run)
        return function

    return register


@contextmanager
def reporting(session: Session) -> Iterator[None]:
    """Report what goes wrong inside, and leave with the exit status of its class."""
    try:
        try:
            yield
        except SendenseError as error:
            raise failure.from_error(error) from error
    except Failure as problem:
        session.output.fail(problem)
        raise typer.Exit(problem.code) from problem
    except BrokenPipeError as error:
        output.discard()
        raise typer.Exit(ExitCode.BROKEN_PIPE) from error
    except KeyboardInterrupt as interrupt:
        session.output.note("interrupted")
        raise typer.Exit(ExitCode.INTERRUPTED) from interrupt
    finally:
        session.close()


def group(name: str, summary: str) -> typer.Typer:
    """Return an empty group of commands."""
    return typer.Typer(name=name, help=summary, no_args_is_help=True, rich_markup_mode="rich")
