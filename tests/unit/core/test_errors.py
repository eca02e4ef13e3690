import json
import re

import pytest

from sendense.core import errors


def every_error() -> list[type[errors.SendenseError]]:
    found = [errors.SendenseError]
    for error in found:
        found.extend(error.__subclasses__())
    return [error for error in found if error.__module__ == errors.__name__]


@pytest.mark.parametrize("error", every_error())
def test_each_error_has_a_kind_that_can_stand_in_an_address(
    error: type[errors.SendenseError],
) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", error("something is wrong").kind)


def test_no_two_errors_share_a_default_kind() -> None:
    kinds = [error.default_kind for error in every_error()]
    assert len(kinds) == len(set(kinds))


def test_the_drawn_tree_names_every_error() -> None:
    drawing = errors.__doc__ or ""
    assert [error.__name__ for error in every_error() if error.__name__ not in drawing] == []


def test_an_error_carries_message_hint_kind_and_facts() -> None:
    error = errors.NotFound("no VM named x", hint="run a discovery", kind="vm-unknown", vm_name="x")
    assert str(error) == "no VM named x"
    assert (error.message, error.hint, error.kind) == (
        "no VM named x",
        "run a discovery",
        "vm-unknown",
    )
    assert json.loads(json.dumps(error.fields)) == {"vm_name": "x"}


def test_a_full_storage_may_be_retried_and_a_taken_name_is_a_conflict() -> None:
    assert issubclass(errors.NoSpace, errors.Unavailable)
    assert issubclass(errors.Exists, errors.Conflict)
    assert not issubclass(errors.Corrupt, errors.Unavailable)
