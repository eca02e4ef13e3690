"""Pairs on the command line: tags (`--tag key=value`) and labels (`--require key=value`)."""

from collections.abc import Sequence
from typing import Annotated

import typer

from sendense.cli.failure import usage

TagOption = Annotated[
    list[str] | None, typer.Option("--tag", metavar="KEY=VALUE", help="A tag. Repeatable.")
]

RequireOption = Annotated[
    list[str] | None,
    typer.Option(
        "--require",
        metavar="KEY=VALUE",
        help="A label that a worker must have to run its jobs, as host=nas1. Repeatable.",
    ),
]


def parse(values: Sequence[str], *, option: str = "--tag") -> dict[str, str]:
    """Return `["a=1", "b=2"]` as a mapping. Raises a usage failure for anything else."""
    found: dict[str, str] = {}
    for value in values:
        key, separator, rest = value.partition("=")
        if not key or not separator:
            raise usage(f"{option} {value} is not KEY=VALUE")
        if key in found:
            raise usage(f"{option} {key} is given twice")
        found[key] = rest
    return found


def parse_required(values: Sequence[str] | None) -> dict[str, dict[str, str]]:
    """Return the part of a request that demands labels; nothing where none are demanded."""
    return {"required_labels": parse(values, option="--require")} if values else {}
