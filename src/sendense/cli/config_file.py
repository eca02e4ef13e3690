"""The configuration file: settings by their names in TOML, below the environment in rank."""

import difflib
import os
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sendense.cli.redact import redact
from sendense.core.errors import Denied, Invalid, NotFound
from sendense.settings import ENV_PREFIX, Settings

VARIABLE = "SENDENSE_CONFIG"
DEFAULT = Path("/etc/sendense/sendense.toml")
BYTES_MAX = 1024 * 1024  # a file of settings has a few kilobytes


def find(given: Path | None) -> Path | None:
    """Return the file to read: the one given, else the one SENDENSE_CONFIG names, else the default.

    None where none was named and the default does not exist.
    """
    if given is not None:
        return given
    if named := os.environ.get(VARIABLE):
        return Path(named)
    return DEFAULT if DEFAULT.exists() else None


def read(path: Path) -> dict[str, Any]:
    """Return the settings of a file, not yet checked one by one.

    Raises NotFound (`config-unknown`), Denied (`config-denied`, `config-exposed`) or Invalid
    (`config-invalid`: no TOML, or a name that is no setting).
    """
    try:
        # A FIFO would wait for a writer for ever; it opens at once like this, and is refused.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not (stat.S_ISREG(mode) or str(path) == os.devnull):
                raise _invalid(path, "it is no regular file")
            content = file.read(BYTES_MAX + 1)
    except FileNotFoundError:
        raise NotFound(f"there is no configuration file {path}", kind="config-unknown") from None
    except OSError as error:
        raise Denied(
            f"cannot read the configuration file {path}: {error.strerror}", kind="config-denied"
        ) from error
    if len(content) > BYTES_MAX:
        raise _invalid(path, f"it is larger than {BYTES_MAX} bytes")
    try:
        values = tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _invalid(path, str(error)) from error
    except RecursionError:
        raise _invalid(path, "it is nested too deeply") from None
    for name in values:
        if name not in Settings.model_fields:
            raise _unknown(path, name)
    _check_mode(path, mode, content.decode())
    return values


def _check_mode(path: Path, mode: int, content: str) -> None:
    """Refuse a file that every user may change, and a password that every user may read."""
    if stat.S_ISREG(mode) and mode & stat.S_IWOTH:
        raise Denied(
            f"every user of this machine may change {path}",
            kind="config-exposed",
            hint=f"chown root:sendense {path} && chmod 0640 {path}",
        )
    if mode & stat.S_IROTH and redact(content) != content:
        raise Denied(
            f"{path} holds a password and every user of this machine may read it",
            kind="config-exposed",
            hint=f"chown root:sendense {path} && chmod 0640 {path}",
        )


def _invalid(path: Path, reason: str) -> Invalid:
    return Invalid(
        f"the configuration file {path} is not valid: {reason}",
        kind="config-invalid",
        hint="`sendense config example` prints one with every setting explained",
    )


def _unknown(path: Path, name: str) -> Invalid:
    near = difflib.get_close_matches(name, Settings.model_fields, n=1)
    return _invalid(path, f"{name!r} is no setting" + (f"; {near[0]!r} is one" if near else ""))


def example() -> str:
    """Return a file that says what every setting is and what it is without the file."""
    return "\n".join(_example_lines()) + "\n"


def _example_lines() -> Iterator[str]:
    yield "# Settings of `sendense serve` and `sendense worker`. Options on the command line come"
    yield f"# first, then the environment ({ENV_PREFIX}DATA_DIR …), then this file."
    for name, field in Settings.model_fields.items():
        yield ""
        yield f"# {field.description}"
        yield f"# {name} = {_toml(field.default)}"


def _toml(value: Any) -> str:
    """Return a default as TOML writes it."""
    if value is None:
        return '""'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_toml(one) for one in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + "}"
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
