"""Rule 23: a free ESXi is told from others when it is first talked to."""

from typing import Any

import pytest
from pyVmomi import vim

from demo.vcenter.lab import Vcenter
from sendense.connectors.vsphere import licence
from sendense.connectors.vsphere.session import Login, Session
from sendense.core.errors import Denied
from tests.unit.connectors.vsphere.conftest import OpenSession, OpenSource

FREE = ("esxBasic", "VMware vSphere 7 Hypervisor")
PAID = ("esx.enterprisePlus.cpuPackage", "VMware vSphere 7 Enterprise Plus")


def become_host(login: Login) -> None:
    """Let the vCenter pass for a host by itself; vcsim's own is another program."""
    login.content.about.apiType = "HostAgent"


def give(vcenter: Vcenter, *licences: tuple[str, str]) -> None:
    rows = "".join(
        "<LicenseManagerLicenseInfo><licenseKey>00000</licenseKey>"
        f"<editionKey>{edition}</editionKey><name>{name}</name><total>0</total>"
        "</LicenseManagerLicenseInfo>"
        for edition, name in licences
    )
    value = f'<val xsi:type="ArrayOfLicenseManagerLicenseInfo">{rows}</val>'
    vcenter.override("LicenseManager", "licenses", value)


@pytest.fixture
def host(open_session: OpenSession) -> Session:
    session = open_session()
    session.run("become a host", become_host)
    return session


@pytest.mark.parametrize("edition", ["esxBasic", "esx.hypervisor.cpuPackage"])
def test_a_free_host_is_refused_with_what_to_do(
    vcenter: Vcenter, host: Session, edition: str
) -> None:
    give(vcenter, (edition, "VMware vSphere 8 Hypervisor"))
    with pytest.raises(Denied) as caught:
        licence.require_changes_allowed(host)
    assert caught.value.kind == "vsphere-licence-read-only"
    assert "VMware vSphere 8 Hypervisor" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("licences", [(), (PAID,), (FREE, PAID)])
def test_a_host_with_another_licence_is_not(
    vcenter: Vcenter, host: Session, licences: tuple[tuple[str, str], ...]
) -> None:
    give(vcenter, *licences)
    licence.require_changes_allowed(host)


def test_a_host_that_does_not_tell_its_licences_is_believed(
    vcenter: Vcenter, host: Session
) -> None:
    manager = ("LicenseManager", "LicenseManager")
    vcenter.inject(
        "RetrievePropertiesEx", "NoPermission", object=manager, privilegeId="Global.Licenses"
    )
    licence.require_changes_allowed(host)

    def forget_manager(login: Login) -> None:
        login.content.licenseManager = None

    host.run("forget", forget_manager)
    licence.require_changes_allowed(host)


def test_a_vcenter_is_not_asked(vcenter: Vcenter, open_session: OpenSession) -> None:
    give(vcenter, FREE)
    licence.require_changes_allowed(open_session())


def test_who_tries_a_source_is_told(
    vcenter: Vcenter, open_source: OpenSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(vcenter, FREE)
    source = open_source()
    find: Any = licence._find_manager

    def find_as_host(login: Login) -> Any:
        become_host(login)
        return find(login)

    monkeypatch.setattr(licence, "_find_manager", find_as_host)
    with pytest.raises(Denied):
        source.probe()


def test_the_manager_is_where_a_vcenter_keeps_it(open_session: OpenSession) -> None:
    def ask(login: Login) -> bool:
        return isinstance(login.content.licenseManager, vim.LicenseManager)

    assert open_session().run("look", ask)
