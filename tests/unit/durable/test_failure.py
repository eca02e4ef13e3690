import json

import pytest

from sendense.core import errors
from sendense.durable import failure

KINDS = [
    errors.Invalid,
    errors.NotFound,
    errors.Conflict,
    errors.Exists,
    errors.Denied,
    errors.Unavailable,
    errors.NoSpace,
    errors.Corrupt,
    errors.ProtocolError,
    errors.Cancelled,
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_of_ours_comes_back_as_it_was(kind: type[errors.SendenseError]) -> None:
    error = kind("the disk is gone", hint="look for it", kind="disk-gone", disk="disk-2000")

    back = failure.from_portable(failure.to_portable(error))

    assert type(back) is kind
    assert (back.message, back.hint, back.kind) == ("the disk is gone", "look for it", "disk-gone")
    assert back.fields == {"disk": "disk-2000"}


def test_what_is_no_json_becomes_text() -> None:
    error = errors.Invalid("no", path=object)

    portable = failure.to_portable(error)

    assert json.loads(json.dumps(portable.data))["fields"]["path"] == "<class 'object'>"


def test_a_defect_becomes_an_internal_error_that_names_it() -> None:
    back = failure.from_portable(failure.to_portable(KeyError("root")))

    assert type(back) is errors.SendenseError
    assert back.kind == failure.INTERNAL_KIND
    assert "KeyError" in back.message
    assert back.hint


def test_fields_named_like_our_arguments_do_not_get_in_the_way() -> None:
    back = failure.rebuild(
        "Invalid", {"message": "m", "hint": "", "kind": "k", "fields": {"kind": "x", "size": 1}}
    )

    assert back.fields == {"size": 1}
