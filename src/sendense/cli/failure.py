"""Failures as the command line reports them: one readable message and an exit code by class."""

import json
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import httpx

from sendense.core import errors


class ExitCode(IntEnum):
    """What the exit status says; part of the contract with scripts."""

    DONE = 0
    FAILED = 1  # the job failed, or something broke inside the product
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    DENIED = 5
    UNAVAILABLE = 6
    CORRUPT = 7
    INTERRUPTED = 130
    BROKEN_PIPE = 141  # as a program that SIGPIPE ended


_BY_ERROR: tuple[tuple[type[errors.SendenseError], ExitCode], ...] = (
    (errors.Invalid, ExitCode.USAGE),
    (errors.NotFound, ExitCode.NOT_FOUND),
    (errors.Conflict, ExitCode.CONFLICT),
    (errors.Denied, ExitCode.DENIED),
    (errors.Unavailable, ExitCode.UNAVAILABLE),
    (errors.Corrupt, ExitCode.CORRUPT),
    (errors.ProtocolError, ExitCode.UNAVAILABLE),
    (errors.Cancelled, ExitCode.INTERRUPTED),
)

_BY_STATUS = {
    400: ExitCode.USAGE,
    401: ExitCode.DENIED,
    403: ExitCode.DENIED,
    404: ExitCode.NOT_FOUND,
    405: ExitCode.USAGE,
    409: ExitCode.CONFLICT,
    410: ExitCode.NOT_FOUND,
    413: ExitCode.USAGE,
    415: ExitCode.USAGE,
    422: ExitCode.USAGE,
    429: ExitCode.UNAVAILABLE,
    502: ExitCode.UNAVAILABLE,
    503: ExitCode.UNAVAILABLE,
    504: ExitCode.UNAVAILABLE,
    507: ExitCode.UNAVAILABLE,
}


_BUG = "internal-error"
# What to do is said in the words of requests; here people type options.
_HINTS = {
    "target-exists": "choose another file, or add --overwrite",
    "fields-invalid": "",
}


@dataclass(frozen=True)
class FieldError:
    """One field of a request and what is wrong with it."""

    name: str
    reason: str


@dataclass(eq=False)  # not frozen: contextlib sets __traceback__ on what it lets through
class Failure(Exception):
    """A command that did not do what it was asked for.

    Attributes:
        message: what is wrong; lower case, no full stop.
        code: the exit status.
        hint: what a person can do, or "".
        field_errors: wrong fields of the request, each with its reason.
        candidates: what an ambiguous name may have meant.
        body: what `--json` prints: the API's problem document, or one of the same shape.
    """

    message: str
    code: ExitCode
    hint: str = ""
    field_errors: tuple[FieldError, ...] = ()
    candidates: tuple[str, ...] = ()
    body: str = field(default="", repr=False)

    def to_json(self) -> str:
        """Return the problem document."""
        if self.body:
            return self.body
        document: dict[str, Any] = {
            "title": self.code.name.lower().replace("_", " "),
            "detail": self.message,
            "exit_code": int(self.code),
        }
        if self.hint:
            document["hint"] = self.hint
        if self.candidates:
            document["candidates"] = list(self.candidates)
        return json.dumps(document, ensure_ascii=False)


def usage(message: str, *, hint: str = "") -> Failure:
    """Return the failure for arguments that cannot be meant."""
    return Failure(message, ExitCode.USAGE, hint=hint)


def unavailable(message: str, *, hint: str = "") -> Failure:
    """Return the failure for a server that does not answer."""
    return Failure(message, ExitCode.UNAVAILABLE, hint=hint)


def from_error(error: errors.SendenseError) -> Failure:
    """Return one of our errors as a failure; the class decides the exit code."""
    code = next(
        (code for kind, code in _BY_ERROR if isinstance(error, kind)),
        ExitCode.FAILED,
    )
    document = {
        "type": error.kind,
        "title": type(error).__name__,
        "detail": error.message,
        "exit_code": int(code),
        **({"hint": error.hint} if error.hint else {}),
        **{key: value for key, value in error.fields.items() if key not in {"type", "detail"}},
    }
    body = json.dumps(document, ensure_ascii=False, default=str)
    return Failure(error.message, code, hint=_HINTS.get(error.kind, error.hint), body=body)


def from_response(response: httpx.Response) -> Failure:
    """Return an answer of status 400 and above as a failure."""
    problem = _read_problem(response)
    if problem is None:
        return Failure(
            f"the server answered {response.status_code} without saying why",
            _BY_STATUS.get(response.status_code, ExitCode.FAILED),
            hint="is this address a Sendense server? see --url and SENDENSE_URL",
        )
    kind = str(problem.get("type", "")).rsplit(":", 1)[-1]
    code = _BY_STATUS.get(response.status_code, ExitCode.FAILED)
    if response.status_code == httpx.codes.INTERNAL_SERVER_ERROR and kind != _BUG:
        code = ExitCode.CORRUPT  # the API's 500 is either a bug, which has its type, or damage
    detail = problem.get("detail") or problem.get("title") or f"status {response.status_code}"
    return Failure(
        str(detail),
        code,
        hint=_HINTS.get(kind, str(problem.get("hint") or "")),
        field_errors=_read_field_errors(problem),
        candidates=_read_candidates(problem),
        body=response.text,
    )


def _read_problem(response: httpx.Response) -> dict[str, Any] | None:
    if "json" not in response.headers.get("content-type", ""):
        return None
    try:
        document = response.json()
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _read_field_errors(problem: dict[str, Any]) -> tuple[FieldError, ...]:
    entries = problem.get("errors")
    return tuple(
        FieldError(str(entry.get("field", "")), str(entry.get("reason", "")))
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict)
    )


def _read_candidates(problem: dict[str, Any]) -> tuple[str, ...]:
    entries = problem.get("candidates") or []
    if not isinstance(entries, list):
        return ()
    return tuple(
        ", ".join(f"{key} {value}" for key, value in entry.items() if value is not None)
        if isinstance(entry, dict)
        else str(entry)
        for entry in entries
    )
