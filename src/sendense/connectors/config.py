"""Reads a source's configuration strictly: every problem is named with its field.

The data plane is a library without a web framework, so configurations are checked here and not by
the API's schemas.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sendense.core.errors import Invalid

NAME_LENGTH_MAX = 255  # of a VM's name: the catalog's column
VMS_MAX = 1000  # a source is typed by people; more belong on a platform with discovery
PATH_LENGTH_MAX = 4095

PathPolicy = Callable[[str], Path]
"""Resolves a path with its links, or raises Denied for one outside the allowed places."""


class Problems:
    """Collects what is wrong with a configuration, field by field."""

    def __init__(self) -> None:
        self._errors: list[dict[str, str]] = []

    def add(self, field: str, reason: str) -> None:
        """Note a problem with one field, e.g. `config.vms[0].name`."""
        self._errors.append({"field": field, "reason": reason})

    def raise_if_any(self) -> None:
        """Raise Invalid, kind `source-config-invalid`, that names all fields at once."""
        if self._errors:
            first = self._errors[0]
            raise Invalid(
                f"{first['field']}: {first['reason']}",
                kind="source-config-invalid",
                errors=self._errors,
            )


def check_keys(
    value: Any, field: str, problems: Problems, *, required: set[str], optional: set[str]
) -> Mapping[str, Any]:
    """Return the value as an object with known keys only; {} where it is none."""
    if not isinstance(value, Mapping):
        problems.add(field, "must be an object")
        return {}
    for key in sorted(required - value.keys()):
        problems.add(f"{field}.{key}", "is missing")
    for key in sorted(map(str, value.keys() - required - optional)):
        problems.add(f"{field}.{key[:NAME_LENGTH_MAX]}", "is not known")
    return value


def check_list(value: Any, field: str, problems: Problems, *, most: int) -> list[Any]:
    """Return the value as a list of 1 to `most` items; [] where it is none."""
    if not isinstance(value, list) or not 1 <= len(value) <= most:
        problems.add(field, f"must be a list of 1 to {most} items")
        return []
    return value


def check_text(value: Any, field: str, problems: Problems, *, most: int) -> str:
    """Return the value as printable text of 1 to `most` characters; "" where it is none."""
    if not isinstance(value, str) or not 1 <= len(value) <= most:
        problems.add(field, f"must be a text of 1 to {most} characters")
        return ""
    if not value.isprintable() or value != value.strip():
        problems.add(field, "must not hold control characters or blanks at its ends")
        return ""
    return value


def check_path(value: Any, field: str, problems: Problems) -> str:
    """Return the value as an absolute path; "" where it is none."""
    if not isinstance(value, str) or not 1 <= len(value) <= PATH_LENGTH_MAX:
        problems.add(field, f"must be a path of 1 to {PATH_LENGTH_MAX} characters")
        return ""
    if not value.startswith("/") or "\0" in value:
        problems.add(field, "must be an absolute path")
        return ""
    return value


def check_names_unique(names: list[str], problems: Problems) -> None:
    """Note every VM name that stands twice: a name is what a request picks a VM by."""
    for index, name in enumerate(names):
        if name and name in names[:index]:
            problems.add(f"config.vms[{index}].name", f"stands twice: {name}")
