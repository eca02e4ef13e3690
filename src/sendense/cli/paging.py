"""Options that choose a part of a long list."""

from typing import Annotated

import typer

LimitOption = Annotated[
    int | None, typer.Option(min=1, max=1000, help="At most so many; the server's default is 100.")
]
OffsetOption = Annotated[int | None, typer.Option(min=0, help="Skip so many.")]
