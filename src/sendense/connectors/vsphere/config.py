"""The configuration of a `vsphere` source: a vCenter or an ESXi host, and who logs in.

    {"host": "vc1.example[:port]", "certificate_pem"?, "reader"?, "vddk_libdir"?, "file_dir"?,
     "disks_per_host"?}

with `impact`'s limit on how fast disks are read, and, kept apart and sealed,
`{"username", "password"}`.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sendense.connectors import certificate, impact
from sendense.connectors.config import PathPolicy, Problems, check_keys, check_path, check_text
from sendense.connectors.vsphere.reader import limits
from sendense.connectors.vsphere.reader.base import PORT
from sendense.core.errors import Invalid

VDDK, FILE = "vddk", "file"
READERS = (VDDK, FILE)
HOST_LENGTH_MAX = 260  # a name in the DNS, a colon and a port
NAME_LENGTH_MAX = 255  # a user with its domain
PASSWORD_LENGTH_MAX = 1024
PEM_LENGTH_MAX = 65_536  # a certificate with its whole chain is a tenth of it
PORT_MAX = 65_535
DISKS_PER_HOST_MAX = 50  # above what ESXi's buffers bear with the smallest requests
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9])?")
# Control characters, half characters and what XML has no way to say: a login is XML.
_NOT_IN_XML = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_OPTIONAL = {"certificate_pem", "reader", "vddk_libdir", "file_dir", "disks_per_host"}
_NO_LATENCY = "cannot be kept: this version does not ask vSphere how long a guest's writes take"


@dataclass(frozen=True, slots=True)
class VsphereConfig:
    """A vCenter, or an ESXi host by itself.

    Attributes:
        host: name or address, without a port.
        certificate_pem: what alone is trusted, or None for this machine's authorities.
        reader: `vddk` or `file`.
        vddk_libdir: the unpacked VDDK, or None for where the plugin looks by itself.
        file_dir: for the reader `file`, with all links resolved.
    """

    host: str
    username: str
    password: str = field(repr=False)
    port: int = PORT
    certificate_pem: str | None = field(default=None, repr=False)
    reader: str = VDDK
    vddk_libdir: Path | None = None
    file_dir: Path | None = None
    disks_per_host: int = limits.DISKS_PER_HOST


@dataclass(frozen=True, slots=True)
class Place:
    """Where a platform is contacted, and what certificate is trusted there."""

    host: str
    port: int
    certificate_pem: str | None


def parse(
    config: Mapping[str, Any], credentials: Mapping[str, str] | None, resolve: PathPolicy
) -> VsphereConfig:
    """Read a configuration; contacts nothing.

    Raises Invalid naming every wrong field, or Denied for a folder outside the allowed places.
    """
    problems = Problems()
    place = _check(config, problems)
    given = check_keys(
        {} if credentials is None else credentials,
        "credentials",
        problems,
        required={"username", "password"},
        optional=set(),
    )
    username, password = given.get("username", ""), given.get("password", "")
    if "username" in given:
        check_text(username, "credentials.username", problems, most=NAME_LENGTH_MAX)
    if "password" in given and not _is_password(password):
        problems.add(
            "credentials.password",
            f"must be 1 to {PASSWORD_LENGTH_MAX} characters, none of them a control character",
        )
    problems.raise_if_any()
    reader = config.get("reader", VDDK)
    file_dir, libdir = config.get("file_dir"), config.get("vddk_libdir")
    return VsphereConfig(
        host=place.host,
        port=place.port,
        certificate_pem=place.certificate_pem,
        username=username,
        password=password,
        reader=reader,
        vddk_libdir=None if libdir is None else resolve(libdir),
        file_dir=None if file_dir is None else resolve(file_dir),
        disks_per_host=config.get("disks_per_host", limits.DISKS_PER_HOST),
    )


def validate(
    config: Mapping[str, Any], credentials: Mapping[str, str] | None, resolve: PathPolicy
) -> None:
    """Raise what `parse` does; without credentials, only for the configuration itself."""
    if credentials is not None:
        parse(config, credentials, resolve)
        return
    problems = Problems()
    _check(config, problems)
    problems.raise_if_any()
    for name in ("vddk_libdir", "file_dir"):
        if config.get(name) is not None:
            resolve(config[name])


def find_place(config: Mapping[str, Any]) -> Place:
    """Return where a configuration leads to. Raises Invalid."""
    problems = Problems()
    place = _check(config, problems)
    problems.raise_if_any()
    return place


def _check(config: Mapping[str, Any], problems: Problems) -> Place:
    given = check_keys(
        config, "config", problems, required={"host"}, optional=_OPTIONAL | impact.FIELDS
    )
    impact.check(given, problems, measures=_NO_LATENCY)
    host, port = _check_host(given, problems)
    pem = given.get("certificate_pem")
    if pem is not None:
        _check_pem(pem, problems)
    reader = given.get("reader", VDDK)
    if reader not in READERS:
        problems.add("config.reader", f"must be one of {', '.join(READERS)}")
    for name in ("vddk_libdir", "file_dir"):
        if given.get(name) is not None:
            check_path(given[name], f"config.{name}", problems)
    if (reader == FILE) != (given.get("file_dir") is not None):
        problems.add("config.file_dir", "belongs to the reader `file`, which needs it")
    most = given.get("disks_per_host", limits.DISKS_PER_HOST)
    if type(most) is not int or not 1 <= most <= DISKS_PER_HOST_MAX:
        problems.add("config.disks_per_host", f"must be a number from 1 to {DISKS_PER_HOST_MAX}")
    return Place(host, port, pem)


def _check_host(given: Mapping[str, Any], problems: Problems) -> tuple[str, int]:
    """Return name and port of `name`, `name:port`, `1.2.3.4`, `[::1]` or `[::1]:port`."""
    if "host" not in given:
        return "", PORT
    text = check_text(given["host"], "config.host", problems, most=HOST_LENGTH_MAX)
    if not text:
        return "", PORT
    if text.startswith("["):
        name, _, rest = text[1:].partition("]")
        is_name = _is_ipv6(name) and (rest == "" or rest.startswith(":"))
        port_text = rest.removeprefix(":") if rest else str(PORT)
    elif _is_ipv6(text):
        name, is_name, port_text = text, True, str(PORT)
    else:
        name, colon, port_text = text.partition(":")
        is_name = _NAME.fullmatch(name) is not None
        port_text = port_text if colon else str(PORT)
    if not is_name or re.fullmatch(r"[0-9]{1,5}", port_text) is None:
        problems.add("config.host", "must be a name or an address, with :PORT where it is not 443")
        return "", PORT
    if not 1 <= int(port_text) <= PORT_MAX:
        problems.add("config.host", "its port must be between 1 and 65535")
    return name, int(port_text)


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _check_pem(pem: Any, problems: Problems) -> None:
    reason = "must be a certificate in PEM"
    if not isinstance(pem, str) or not 1 <= len(pem) <= PEM_LENGTH_MAX:
        problems.add("config.certificate_pem", reason)
        return
    if "PRIVATE KEY" in pem:
        problems.add("config.certificate_pem", f"{reason}, without a private key")
        return
    try:
        certificate.create_context(pem)
    except Invalid:
        problems.add("config.certificate_pem", reason)


def _is_password(value: Any) -> bool:
    return (
        isinstance(value, str)
        and 1 <= len(value) <= PASSWORD_LENGTH_MAX
        and _NOT_IN_XML.search(value) is None
    )
