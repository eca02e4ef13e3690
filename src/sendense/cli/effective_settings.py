"""The settings in effect: options that were given, else environment, file, defaults."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sendense.cli import config_file
from sendense.core.errors import Invalid
from sendense.settings import ENV_PREFIX, Settings

UMASK = 0o077  # what server and worker write is for their own user


class Origin(StrEnum):
    """Where a setting's value comes from, from the strongest to the weakest."""

    OPTION = "option"
    ENVIRONMENT = "environment"
    FILE = "file"
    DEFAULT = "default"


def read_settings(*, config: Path | None = None, **given: Any) -> Settings:
    """Return the settings: options that were given, else environment, file, defaults.

    Raises Invalid, kind `settings-invalid`, naming each wrong one, and what config_file.read does.
    """
    return read_with_origins(config=config, **given)[0]


def read_with_origins(
    *, config: Path | None = None, **given: Any
) -> tuple[Settings, dict[str, Origin]]:
    """Return the settings, and where each of them comes from."""
    named = {key: value for key, value in given.items() if value is not None}
    if "allowed_dirs" in named:
        named["allowed_dirs"] = tuple(named["allowed_dirs"])
    path = config_file.find(config)
    file = config_file.read(path) if path is not None else {}
    variables = {name.upper() for name in os.environ}  # pydantic-settings takes any case
    origins = {}
    for name in Settings.model_fields:
        if name in named:
            origins[name] = Origin.OPTION
        elif f"{ENV_PREFIX}{name}".upper() in variables:
            origins[name] = Origin.ENVIRONMENT
        elif name in file:
            origins[name] = Origin.FILE
            named[name] = file[name]
        else:
            origins[name] = Origin.DEFAULT
    return _check(named), origins


def _check(named: dict[str, Any]) -> Settings:
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
