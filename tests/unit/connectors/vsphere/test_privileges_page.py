"""The page's tables and both scripts of the role agree, and allow everything that is asked for."""

import re
from pathlib import Path

import pytest

from demo.vcenter.lab import Vcenter
from sendense.connectors.vsphere import config, privileges
from sendense.connectors.vsphere.session import Session

PAGE = Path(__file__).parents[4] / "docs" / "operations" / "vsphere.md"
NAME = re.compile(r"\b(?:System|Global|Datastore|VirtualMachine)(?:\.[A-Z][A-Za-z]+)+\b")
BACKUP = {*privileges.BACKUP, *privileges.TRACKING, *privileges.VCENTER}
IN_EVERY_ROLE = {"System.Anonymous", "System.Read", "System.View"}  # also where nobody names them


def _find_names(form: str) -> tuple[set[str], set[str]]:
    """Return the privileges of a form of the role: for backup, and for restore in addition."""
    text = PAGE.read_text().partition("## Privileges")[2].partition("## Limits")[0]
    tables, _, scripts = text.partition("```sh")
    govc, _, powercli = scripts.partition("```powershell")
    marks = {
        "tables": "For restore of a disk",
        "govc": "# For restore",
        "PowerCLI": "# For restore",
    }
    part = {"tables": tables, "govc": govc, "PowerCLI": powercli}[form]
    backup, found, restore = part.partition(marks[form])
    assert found, f"{form} names nothing for restore"
    return set(NAME.findall(backup)), set(NAME.findall(restore))


@pytest.mark.parametrize("form", ["tables", "govc", "PowerCLI"])
def test_each_form_of_the_role_holds_every_privilege_that_is_asked_for(form: str) -> None:
    backup, restore = _find_names(form)
    assert privileges.list_missing(sorted(BACKUP), backup | IN_EVERY_ROLE) == ()
    assert restore == set(privileges.RESTORE)


@pytest.mark.parametrize("form", ["govc", "PowerCLI"])
def test_the_scripts_allow_what_the_tables_explain_and_no_more(form: str) -> None:
    backup, _ = _find_names("tables")
    assert _find_names(form)[0] | IN_EVERY_ROLE == backup


def test_the_page_says_what_was_tested_against_what() -> None:
    text = PAGE.read_text()
    assert "tested against vcsim" in " ".join(text.split())
    assert "tested against a VDDK double" in text
    assert "tested on vCenter" not in text


def test_a_vcenter_knows_every_privilege_of_the_page(vcenter: Vcenter) -> None:
    settings = config.parse(vcenter.describe(), vcenter.credentials, Path)
    with Session(settings) as session:
        known = session.run(
            "list the privileges of all roles",
            lambda login: {
                str(one)
                for role in login.content.authorizationManager.roleList
                for one in role.privilege
            },
        )
    assert "VirtualMachine.Interact.PowerOn" in known
    backup, restore = _find_names("tables")
    assert backup | restore <= known
