"""The configuration of a vCenter is checked field by field, and nothing is contacted for it."""

from pathlib import Path
from typing import Any

import pytest

from demo.vcenter.standin import make_certificate
from sendense.connectors import registry
from sendense.connectors.vsphere import config
from sendense.core.errors import Denied, Invalid

PEM, KEY = make_certificate()
WHO = {"username": "backup@vsphere.local", "password": "sécret <&>"}


def parse(**more: Any) -> config.VsphereConfig:
    return config.parse({"host": "vc1.example", **more}, WHO, Path)


def refuse(given: Any, credentials: Any = WHO) -> dict[str, str]:
    with pytest.raises(Invalid) as caught:
        config.parse(given, credentials, Path)
    errors = caught.value.fields["errors"]
    assert isinstance(errors, list)
    return {one["field"]: one["reason"] for one in errors}


@pytest.mark.parametrize(
    ("host", "name", "port"),
    [
        ("vc1.example", "vc1.example", 443),
        ("vc1.example:8443", "vc1.example", 8443),
        ("10.0.0.7", "10.0.0.7", 443),
        ("10.0.0.7:444", "10.0.0.7", 444),
        ("2001:db8::7", "2001:db8::7", 443),
        ("[2001:db8::7]", "2001:db8::7", 443),
        ("[2001:db8::7]:444", "2001:db8::7", 444),
    ],
)
def test_a_host_is_a_name_or_an_address_with_or_without_a_port(
    host: str, name: str, port: int
) -> None:
    found = parse(host=host)
    assert (found.host, found.port) == (name, port)
    assert config.find_place({"host": host}) == config.Place(name, port, None)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "https://vc1.example",
        "vc1.example/sdk",
        "user@vc1",
        "vc1:",
        "vc1:0",
        "vc1:65536",
        "vc1:x",
        "[vc1]",
        "[::1]x",
        "vc 1",
        "-vc1",
        7,
        None,
    ],
)
def test_what_is_no_host_is_refused(host: Any) -> None:
    assert "config.host" in refuse({"host": host})


def test_a_missing_host_is_named_once() -> None:
    assert refuse({}) == {"config.host": "is missing"}


def test_defaults_are_those_of_production() -> None:
    found = parse()
    assert (found.reader, found.vddk_libdir, found.file_dir) == ("vddk", None, None)
    assert found.disks_per_host == 4


def test_everything_that_can_be_given_is_taken() -> None:
    found = parse(vddk_libdir="/opt/vddk", disks_per_host=8, certificate_pem=PEM)
    assert (found.vddk_libdir, found.disks_per_host) == (Path("/opt/vddk"), 8)
    assert found.certificate_pem == PEM
    assert parse(reader="file", file_dir="/srv/disks").file_dir == Path("/srv/disks")


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"reader": "nfs"}, "config.reader"),
        ({"reader": ["vddk"]}, "config.reader"),
        ({"reader": "file"}, "config.file_dir"),
        ({"file_dir": "/srv"}, "config.file_dir"),
        ({"vddk_libdir": "opt"}, "config.vddk_libdir"),
        ({"disks_per_host": 0}, "config.disks_per_host"),
        ({"disks_per_host": 51}, "config.disks_per_host"),
        ({"disks_per_host": True}, "config.disks_per_host"),
        ({"disks_per_host": "4"}, "config.disks_per_host"),
        ({"certificate_pem": "no PEM"}, "config.certificate_pem"),
        ({"certificate_pem": PEM + KEY}, "config.certificate_pem"),
        ({"certificate_pem": 7}, "config.certificate_pem"),
        ({"certificate_pem": "x" * 70_000}, "config.certificate_pem"),
        ({"password": "secret"}, "config.password"),
        ({"insecure": True}, "config.insecure"),
    ],
)
def test_a_wrong_field_is_named(given: dict[str, Any], field: str) -> None:
    assert list(refuse({"host": "vc1", **given})) == [field]


@pytest.mark.parametrize(
    ("credentials", "field"),
    [
        (None, "credentials.username"),
        ({"password": "x"}, "credentials.username"),
        ({"username": "u"}, "credentials.password"),
        ({"username": "u", "password": ""}, "credentials.password"),
        ({"username": "u", "password": "a\nb"}, "credentials.password"),
        ({"username": "u", "password": "a\0b"}, "credentials.password"),
        ({"username": "u", "password": "a\x1bb"}, "credentials.password"),
        ({"username": "u", "password": "a\ud800b"}, "credentials.password"),
        ({"username": "u", "password": "a\uffffb"}, "credentials.password"),
        ({"username": "u", "password": "x" * 1025}, "credentials.password"),
        ({"username": " u", "password": "x"}, "credentials.username"),
        ({"username": "u", "password": "x", "token": "t"}, "credentials.token"),
    ],
)
def test_wrong_credentials_are_named_and_never_repeated(credentials: Any, field: str) -> None:
    assert field in refuse({"host": "vc1"}, credentials)


@pytest.mark.parametrize("password", [" ", "pass word ", "päß€𝄞", "]]><!--", "%2f&amp;"])
def test_whatever_else_can_be_typed_is_a_password(password: str) -> None:
    found = config.parse({"host": "vc1"}, {"username": "u", "password": password}, Path)
    assert found.password == password


def test_the_password_is_in_no_repr() -> None:
    assert WHO["password"] not in repr(parse())


def test_a_configuration_alone_can_be_checked_without_credentials() -> None:
    config.validate({"host": "vc1", "vddk_libdir": "/opt/vddk"}, None, Path)
    config.validate({"host": "vc1"}, WHO, Path)
    with pytest.raises(Invalid):
        config.validate({"host": "vc1", "reader": "nfs"}, None, Path)


def test_folders_outside_the_allowed_places_are_refused() -> None:
    def deny(path: str) -> Path:
        raise Denied(f"{path} is not allowed", kind="path-not-allowed")

    with pytest.raises(Denied):
        config.validate({"host": "vc1", "vddk_libdir": "/opt/vddk"}, None, deny)
    with pytest.raises(Denied):
        config.parse({"host": "vc1", "reader": "file", "file_dir": "/etc"}, WHO, deny)


def test_the_registry_knows_the_type() -> None:
    registry.validate_config("vsphere", {"host": "vc1"}, resolve=Path)
    assert "vsphere" in registry.TYPES
    with pytest.raises(Invalid):
        registry.validate_config("vsphere", {}, resolve=Path)
