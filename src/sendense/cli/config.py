"""`sendense config`: the settings as server and worker would take them."""

import json
from pathlib import Path
from typing import Any

import typer

from sendense.cli.command import Session, command, group
from sendense.cli.options import Config
from sendense.cli.output import Column

app = group("config", "Show and check the settings of server and worker.")


@command(app, "show", examples=["sendense config show", "sendense config show --json"])
def show(session: Session, config: Config = None) -> None:
    """Show every setting, and whether it is from the environment, the file or the default.

    Passwords are left out.
    """
    rows = _read(config)
    if session.output.as_json:
        document = {
            name: {"value": json.loads(value), "origin": origin} for name, value, origin in rows
        }
        session.output.json(json.dumps(document, ensure_ascii=False, indent=2))
        return
    session.output.table([Column("SETTING"), Column("VALUE"), Column("FROM")], rows)


@command(
    app,
    "check",
    examples=["sendense config check", "sendense config check --config ./sendense.toml"],
)
def check(session: Session, config: Config = None) -> None:
    """Read file and environment as the server would; say what is wrong, change nothing.

    Exits with 2 where a setting is wrong.
    """
    from sendense.cli import config_file  # pydantic: costs every other command 0.1 s

    rows = _read(config)
    path = config_file.find(config)
    if session.output.as_json:
        session.output.json(json.dumps({"file": str(path) if path else None, "valid": True}))
        return
    changed = sum(1 for _, _, origin in rows if origin != "default")
    read = f"read {path}" if path is not None else "there is no configuration file"
    session.output.line(f"all settings are valid: {read}, {changed} of {len(rows)} are set")


@command(
    app,
    "example",
    examples=["sendense config example | sudo tee /etc/sendense/sendense.toml"],
)
def example(session: Session) -> None:
    """Print a configuration file in which every setting is explained and none is set."""
    from sendense.cli import config_file  # pydantic: costs every other command 0.1 s

    if session.output.as_json:
        session.output.json(json.dumps({"toml": config_file.example()}))
        return
    typer.echo(config_file.example(), nl=False)


def _read(config: Path | None) -> list[tuple[str, str, str]]:
    """Return name, value as JSON without passwords, and origin of every setting."""
    from sendense.cli import effective_settings  # pydantic: costs every other command 0.1 s
    from sendense.cli.redact import redact

    settings, origins = effective_settings.read_with_origins(config=config)
    values: dict[str, Any] = settings.model_dump(mode="json")
    return [
        (name, redact(json.dumps(value, ensure_ascii=False)), str(origins[name]))
        for name, value in values.items()
    ]
