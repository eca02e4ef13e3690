from pathlib import Path
from typing import Any

import pytest

from sendense.connectors.qemu import config, source
from sendense.core.errors import Denied, Invalid

VM = {"name": "web", "qmp": "/run/web.qmp", "agent": None}


def test_a_vm_needs_a_name_and_a_socket() -> None:
    parsed = config.parse({"vms": [{"name": "web", "qmp": "/run/web.qmp"}]}, Path)
    assert parsed == [config.VmAddress("web", "/run/web.qmp", None)]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({}, "config.vms"),
        ({"vms": []}, "config.vms"),
        ({"vms": [VM], "more": 1}, "config.more"),
        ({"vms": ["web"]}, "config.vms[0]"),
        ({"vms": [{"qmp": "/q"}]}, "config.vms[0].name"),
        ({"vms": [{"name": "web"}]}, "config.vms[0].qmp"),
        ({"vms": [VM | {"name": ""}]}, "config.vms[0].name"),
        ({"vms": [VM | {"qmp": "relative"}]}, "config.vms[0].qmp"),
        ({"vms": [VM | {"qmp": "/q\0"}]}, "config.vms[0].qmp"),
        ({"vms": [VM | {"agent": 5}]}, "config.vms[0].agent"),
        ({"vms": [VM | {"extra": 5}]}, "config.vms[0].extra"),
        ({"vms": [VM, VM | {"qmp": "/other"}]}, "config.vms[1].name"),
        ({"vms": [VM, VM | {"name": "other"}]}, "config.vms[1].qmp"),
    ],
)
def test_each_wrong_field_is_named(given: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as caught:
        config.parse(given, Path)
    errors = caught.value.fields["errors"]
    assert isinstance(errors, list)
    assert field in [error["field"] for error in errors]


@pytest.mark.parametrize("denied", ["/run/web.qmp", "/run/web.agent"])
def test_both_sockets_pass_the_path_policy_at_registration(denied: str, tmp_path: Path) -> None:
    def resolve(path: str) -> Path:
        if path == denied:
            raise Denied(f"{path} is outside", kind="path-not-allowed")
        return Path(path)

    given = {"vms": [VM | {"agent": "/run/web.agent"}]}
    with pytest.raises(Denied):
        source.validate_config(given, resolve)
    with pytest.raises(Denied):
        source.open_source(given, resolve, tmp_path)


def test_both_sockets_pass_the_path_policy_again_at_use(tmp_path: Path) -> None:
    allowed = True

    def resolve(path: str) -> Path:
        if not allowed:
            raise Denied(f"{path} is outside", kind="path-not-allowed")
        return Path(path)

    opened = source.open_source({"vms": [VM]}, resolve, tmp_path)
    allowed = False
    with pytest.raises(Denied):
        opened.list_vms()
