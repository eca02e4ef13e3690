import json

import httpx
import pytest

from sendense.cli import failure
from sendense.cli.failure import ExitCode
from sendense.core import errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Invalid("x"), ExitCode.USAGE),
        (errors.NotFound("x"), ExitCode.NOT_FOUND),
        (errors.Exists("x"), ExitCode.CONFLICT),
        (errors.Denied("x"), ExitCode.DENIED),
        (errors.NoSpace("x"), ExitCode.UNAVAILABLE),
        (errors.Corrupt("x"), ExitCode.CORRUPT),
        (errors.ProtocolError("x"), ExitCode.UNAVAILABLE),
        (errors.Cancelled("x"), ExitCode.INTERRUPTED),
        (errors.SendenseError("x"), ExitCode.FAILED),
    ],
)
def test_an_errors_class_decides_the_exit_code(error: errors.SendenseError, code: int) -> None:
    assert failure.from_error(error).code == code


def test_an_error_keeps_its_kind_hint_and_fields_in_json() -> None:
    error = errors.Corrupt("pack p is torn", hint="run a check", kind="pack-torn", pack="p", size=3)
    document = json.loads(failure.from_error(error).to_json())
    assert document == {
        "type": "pack-torn",
        "title": "Corrupt",
        "detail": "pack p is torn",
        "exit_code": 7,
        "hint": "run a check",
        "pack": "p",
        "size": 3,
    }


def _problem(status: int, **document: object) -> failure.Failure:
    response = httpx.Response(
        status, headers={"content-type": "application/problem+json"}, json=document
    )
    response.headers["content-type"] = "application/problem+json"
    return failure.from_response(response)


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, 2), (401, 5), (403, 5), (404, 3), (409, 4), (422, 2), (503, 6), (507, 6)],
)
def test_a_status_decides_the_exit_code(status: int, code: int) -> None:
    assert _problem(status, detail="no").code == code


def test_stored_data_that_is_corrupt_is_told_by_the_problems_type() -> None:
    assert _problem(500, type="urn:sendense:problem:pack-torn", detail="no").code == 7
    assert _problem(500, type="urn:sendense:problem:internal-error", detail="no").code == 1


def test_a_proxys_error_page_is_not_shown_as_a_problem() -> None:
    response = httpx.Response(502, text="<html>bad gateway</html>")
    problem = failure.from_response(response)
    assert problem.code == ExitCode.UNAVAILABLE
    assert "html" not in problem.message
