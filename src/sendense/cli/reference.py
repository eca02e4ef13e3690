"""docs/cli.md, made from the program itself: `python -m sendense.cli.reference > docs/cli.md`."""

import sys
from collections.abc import Iterator
from typing import Any

import typer

from sendense.cli import main

_INTRODUCTION = """\
# The command line

Made from the program's own help by `python -m sendense.cli.reference > docs/cli.md`; a test holds
this page to it.

`sendense` is a client of the server's API: the groups are named like the API's collections.
`sendense repository check|create|gc|key|list|restore|stats|verify` given a path (something with a
`/`, or an existing directory) works on that repository alone, with no server.

- Every command takes `--json`: it prints the API's answer exactly as it came; errors are JSON too,
  on stderr. Without it people get tables and sentences.
- `--url` or `SENDENSE_URL` names the server, `--token` or `SENDENSE_TOKEN` the API token.
- VMs, sources and repositories are given by name or by id. An ambiguous name is refused with the
  candidates.
- Waiting commands show progress on stderr: a bar on a terminal, a line now and then elsewhere.
  Ctrl-C stops the waiting, never the job. A server that restarts meanwhile is waited for.
- What is printed for people never contains control characters of a name: they are shown as
  `\\x1b`.

| exit status | meaning |
| --- | --- |
| 0 | done |
| 1 | the job failed, or something broke inside |
| 2 | usage: arguments that cannot be meant, or refused as invalid |
| 3 | not found |
| 4 | conflict: exists, running, ambiguous |
| 5 | denied |
| 6 | unavailable: no server, no source, repository full |
| 7 | corrupt: stored data is not what was written |
| 130 | interrupted |
"""


def render() -> str:
    """Return the whole page."""
    main.register_servers()
    root = typer.main.get_command(main.app)
    return "\n".join([_INTRODUCTION, *_render_group(root, "sendense")]).rstrip() + "\n"


def _render_group(node: Any, path: str) -> Iterator[str]:
    for name, child in node.commands.items():
        if hasattr(child, "commands"):
            yield f"## {path} {name}\n\n{_plain(child.help)}\n"
            yield from _render_options(child)
            yield from _render_group(child, f"{path} {name}")
        else:
            yield from _render_command(child, f"{path} {name}", level=path.count(" ") + 2)


def _render_command(node: Any, path: str, *, level: int) -> Iterator[str]:
    yield f"{'#' * level} {path}\n\n{_plain(node.help)}\n"
    yield from _render_options(node)
    examples = [line.strip() for line in (node.epilog or "").split("\n\n")[1:]]
    if examples:
        block = "\n".join(line.replace("\\[", "[") for line in examples)
        yield f"```\n{block}\n```\n"


def _render_options(node: Any) -> Iterator[str]:
    shown = [parameter for parameter in node.params if not _is_common(parameter)]
    if shown:
        yield "| | |\n| --- | --- |"
        for parameter in shown:
            yield f"| {_signature(parameter)} | {_describe(parameter)} |"
        yield ""


def _is_common(parameter: Any) -> bool:
    return parameter.name in {"as_json", "url", "token", "help"}


def _signature(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    if parameter.is_flag:
        return names
    descriptor = parameter.type_descriptor
    choices = descriptor.choices if descriptor.is_choice else None
    value = parameter.metavar or ("\\|".join(str(c) for c in choices) if choices else "VALUE")
    return f"{names} {value}"


def _describe(parameter: Any) -> str:
    said = [_plain(parameter.help)]
    if parameter.required:
        said.append("Required.")
    elif parameter.param_type_name == "option" and parameter.default not in {None, False}:
        said.append(f"Default: `{parameter.default}`.")
    if parameter.envvar:
        said.append(f"Or `{parameter.envvar}`.")
    return " ".join(said).replace("|", "\\|")


def _plain(text: str | None) -> str:
    paragraphs = (text or "").strip().split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


if __name__ == "__main__":
    sys.stdout.write(render())
