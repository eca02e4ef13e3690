"""Options of the commands that take the server's settings. Light: every command loads them."""

from pathlib import Path
from typing import Annotated

import typer

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="Catalog, engine tables and locks; by default SENDENSE_DATA_DIR or /var/lib/sendense.",
        show_default=False,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="The configuration file; by default SENDENSE_CONFIG or /etc/sendense/sendense.toml.",
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
