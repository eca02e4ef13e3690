"""The options that server and worker share, and settings made of them."""

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from sendense.core.errors import Invalid
from sendense.settings import Settings

UMASK = 0o077  # what server and worker write is for their own user

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="Catalog, engine tables and locks; by default SENDENSE_DATA_DIR or /var/lib/sendense.",
        show_default=False,
    ),
]
AllowDirs = Annotated[
    list[Path] | None,
    typer.Option(
        "--allow-dir",
        help="A folder that requests may name: images, repositories, restores. May be repeated.",
        show_default=False,
    ),
]


def read_settings(**given: Any) -> Settings:
    """Return the settings: options that were given, else the environment, else the defaults.

    Raises Invalid, kind `settings-invalid`, naming each wrong option.
    """
    named = {key: value for key, value in given.items() if value is not None}
    if "allowed_dirs" in named:
        named["allowed_dirs"] = tuple(named["allowed_dirs"])
    try:
        return Settings(**named)
    except ValidationError as error:
        reasons = [
            ": ".join(
                part
                for part in (
                    ".".join(map(str, one["loc"])),
                    one["msg"].removeprefix("Value error, "),
                )
                if part
            )
            for one in error.errors()
        ]
        raise Invalid(
            "; ".join(reasons),
            kind="settings-invalid",
            hint="docs/operations/settings.md lists all options",
        ) from None
