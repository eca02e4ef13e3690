"""Which kinds of source there are. The API offers exactly these."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sendense.connectors.base import Source
from sendense.connectors.config import PathPolicy
from sendense.connectors.image import config as image_config
from sendense.connectors.image.source import ImageSource
from sendense.connectors.qemu import config as qemu_config
from sendense.connectors.qemu.source import QemuSource
from sendense.core.errors import Invalid

IMAGE, QEMU = "image", "qemu"
TYPES = (IMAGE, QEMU)


def validate_config(kind: str, config: Mapping[str, Any], *, resolve: PathPolicy) -> None:
    """Raise Invalid naming each wrong field, or Denied for a path; contacts nothing."""
    if kind == IMAGE:
        image_config.parse(config, resolve)
    elif kind == QEMU:
        qemu_config.parse(config, resolve)
    else:
        raise _unknown(kind)


def open_source(
    kind: str, config: Mapping[str, Any], *, resolve: PathPolicy, scratch: Path
) -> Source:
    """Return a source; the caller closes it.

    Args:
        kind: one of `TYPES`.
        config: as `validate_config` accepted it.
        resolve: asked for every path, also for those that files name.
        scratch: a private folder for what a snapshot needs while it lives.
    """
    if kind == IMAGE:
        return ImageSource(config, resolve)
    if kind == QEMU:
        return QemuSource(config, resolve, scratch)
    raise _unknown(kind)


def _unknown(kind: str) -> Invalid:
    known = ", ".join(TYPES)
    return Invalid(
        f"there is no source of type {kind[:100]!r}",
        kind="source-type-unknown",
        hint=f"known types are {known}",
        errors=[{"field": "type", "reason": f"must be one of {known}"}],
    )
