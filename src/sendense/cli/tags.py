"""Tags on the command line: `--tag key=value`."""

from collections.abc import Sequence
from typing import Annotated

import typer

from sendense.cli.failure import usage

TagOption = Annotated[
    list[str] | None, typer.Option("--tag", metavar="KEY=VALUE", help="A tag. Repeatable.")
]


def parse(values: Sequence[str]) -> dict[str, str]:
    """Return `["a=1", "b=2"]` as a mapping. Raises a usage failure for anything else."""
    found: dict[str, str] = {}
    for value in values:
        key, separator, rest = value.partition("=")
        if not key or not separator:
            raise usage(f"--tag {value} is not KEY=VALUE")
        if key in found:
            raise usage(f"--tag {key} is given twice")
        found[key] = rest
    return found
