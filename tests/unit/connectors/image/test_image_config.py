"""Each problem of an image source's configuration is named with its field."""

from pathlib import Path
from typing import Any

import pytest

from sendense.connectors import registry
from sendense.connectors.image import config as configuration
from sendense.core.errors import Denied, Invalid


def vm(**changes: Any) -> dict[str, Any]:
    return {"name": "one", "disks": ["/images/a.raw"]} | changes


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({}, "config.vms"),
        ({"vms": []}, "config.vms"),
        ({"vms": "x"}, "config.vms"),
        ({"vms": [vm()], "host": "x"}, "config.host"),
        ({"vms": ["x"]}, "config.vms[0]"),
        ({"vms": [vm(name="")]}, "config.vms[0].name"),
        ({"vms": [vm(name="x" * 256)]}, "config.vms[0].name"),
        ({"vms": [vm(name="a\nb")]}, "config.vms[0].name"),
        ({"vms": [vm(), vm()]}, "config.vms[1].name"),
        ({"vms": [vm(disks=[])]}, "config.vms[0].disks"),
        ({"vms": [vm(disks=["/a"] * 65)]}, "config.vms[0].disks"),
        ({"vms": [vm(disks=["a.raw"])]}, "config.vms[0].disks[0]"),
        ({"vms": [vm(disks=["/a", "/a\0b"])]}, "config.vms[0].disks[1]"),
        ({"vms": [vm(disks=["/" + "x" * 4095])]}, "config.vms[0].disks[0]"),
        ({"vms": [vm(disks=[{"path": "/a", "format": "vmdk"}])]}, "config.vms[0].disks[0].format"),
        ({"vms": [vm(disks=[{"format": "raw"}])]}, "config.vms[0].disks[0].path"),
    ],
)
def test_each_wrong_field_is_named(config: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as caught:
        registry.validate_config("image", config, resolve=Path)
    assert caught.value.kind == "source-config-invalid"
    assert caught.value.message.startswith(f"{field}: ")


def test_the_format_follows_from_the_name_unless_it_is_stated() -> None:
    disks = ["/a.qcow2", "/b.img", {"path": "/c.qcow2", "format": "raw"}]
    (parsed,) = configuration.parse({"vms": [vm(disks=disks)]}, Path)
    assert [(one.image_format, one.stated) for one in parsed.disks] == [
        ("qcow2", False),
        ("raw", False),
        ("raw", True),
    ]


def test_a_path_that_is_not_allowed_is_denied() -> None:
    def refuse(path: str) -> Path:
        raise Denied(f"{path} is outside", kind="path-not-allowed")

    with pytest.raises(Denied):
        registry.validate_config("image", {"vms": [vm()]}, resolve=refuse)


def test_the_fake_is_never_offered() -> None:
    assert "fake" not in registry.TYPES
    with pytest.raises(Invalid):
        registry.validate_config("fake", {}, resolve=Path)
