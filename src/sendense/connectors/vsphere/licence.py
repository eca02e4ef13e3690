"""Does the host's licence let anybody back it up? Rule 23 of the sources' design.

A free ESXi answers every question and refuses every change, the first of them when a snapshot is
to be taken: in the middle of the night, where nobody asked before.
"""

from typing import Any

from pyVmomi import vim

from sendense.connectors.vsphere import properties
from sendense.connectors.vsphere.session import Login, Session, moref_of
from sendense.core.errors import Denied

_HOST = "HostAgent"  # of `apiType`; the hosts of a vCenter are never free ones
_LICENCES = "licenses"
_FREE = ("esxbasic", "esx.hypervisor")  # how the keys of free editions begin


def require_changes_allowed(session: Session) -> None:
    """Raise Denied, kind `vsphere-licence-read-only`, where a free ESXi answers.

    One that does not tell its licences, to this user or at all, is believed to have a good one.
    """
    moref = session.run("ask for the licence", _find_manager)
    if moref is None:
        return
    found = properties.read(
        session, vim.LicenseManager, [moref], [_LICENCES], doing="ask for the licence"
    )
    licences = found.values.get(moref, {}).get(_LICENCES, ())
    if licences and all(_is_free(one) for one in licences):
        raise Denied(
            f"the host's licence allows no changes: {licences[0].name}",
            kind="vsphere-licence-read-only",
            hint="free ESXi has no API for backups: give the host a licence that has one",
        )


def _find_manager(login: Login) -> str | None:
    content = login.content
    if content.about.apiType != _HOST or content.licenseManager is None:
        return None
    return moref_of(content.licenseManager)


def _is_free(licence: Any) -> bool:
    return str(licence.editionKey).lower().startswith(_FREE)
