"""Which kinds of source there are. The API offers exactly these."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sendense.connectors import certificate
from sendense.connectors.base import Source
from sendense.connectors.certificate import SeenCertificate
from sendense.connectors.config import PathPolicy
from sendense.connectors.image import config as image_config
from sendense.connectors.image.source import ImageSource
from sendense.connectors.qemu import config as qemu_config
from sendense.connectors.qemu.source import QemuSource
from sendense.connectors.vsphere import config as vsphere_config
from sendense.connectors.vsphere.source import VsphereSource
from sendense.core.errors import Invalid

IMAGE, QEMU, VSPHERE = "image", "qemu", "vsphere"
FILE_READER = (
    "reader `file` is for development only: it reads files of a folder and no disk of a VM;"
    " use `vddk` in production"
)
TYPES = (IMAGE, QEMU, VSPHERE)
WITHOUT_CREDENTIALS = frozenset({IMAGE, QEMU})  # files and sockets: the system's own rights count
WITH_CREDENTIALS = frozenset({VSPHERE})
RECEIVING = frozenset({VSPHERE})  # types whose sources take disks back


def validate_config(
    kind: str,
    config: Mapping[str, Any],
    *,
    resolve: PathPolicy,
    credentials: Mapping[str, str] | None = None,
) -> None:
    """Raise Invalid naming each wrong field, or Denied for a path; contacts nothing."""
    if credentials is not None and kind in WITHOUT_CREDENTIALS:
        raise Invalid(
            f"credentials: a source of type {kind} takes none",
            kind="source-config-invalid",
            errors=[{"field": "credentials", "reason": f"a source of type {kind} takes none"}],
        )
    if kind == IMAGE:
        image_config.parse(config, resolve)
    elif kind == QEMU:
        qemu_config.parse(config, resolve)
    elif kind == VSPHERE:
        vsphere_config.validate(config, credentials, resolve)
    else:
        raise _unknown(kind)


def open_source(
    kind: str,
    config: Mapping[str, Any],
    *,
    resolve: PathPolicy,
    scratch: Path,
    credentials: Mapping[str, str] | None = None,
    owner: str = "",
) -> Source:
    """Return a source; the caller closes it.

    Args:
        kind: one of `TYPES`.
        config: as `validate_config` accepted it.
        resolve: asked for every path, also for those that files name.
        scratch: a private folder for what a snapshot needs while it lives.
        credentials: `username` and `password` of types that take them.
        owner: the hub's name: what it leaves on the platform carries it.
    """
    if kind == IMAGE:
        return ImageSource(config, resolve)
    if kind == QEMU:
        return QemuSource(config, resolve, scratch)
    if kind == VSPHERE:
        return VsphereSource(vsphere_config.parse(config, credentials, resolve), scratch, owner)
    raise _unknown(kind)


def see_certificate(
    kind: str, config: Mapping[str, Any], *, resolve: PathPolicy
) -> SeenCertificate | None:
    """Return the certificate that a source's host shows, or None for types without one.

    Logs in to nothing. Raises Unavailable, and what `validate_config` does.
    """
    validate_config(kind, config, resolve=resolve)
    if kind != VSPHERE:
        return None
    place = vsphere_config.find_place(config)
    return certificate.see(place.host, place.port, pinned_pem=place.certificate_pem)


def list_warnings(kind: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what of an accepted configuration is not meant for production, in words."""
    if kind == VSPHERE and config.get("reader") == "file":
        return (FILE_READER,)
    return ()


def _unknown(kind: str) -> Invalid:
    known = ", ".join(TYPES)
    return Invalid(
        f"there is no source of type {kind[:100]!r}",
        kind="source-type-unknown",
        hint=f"known types are {known}",
        errors=[{"field": "type", "reason": f"must be one of {known}"}],
    )
