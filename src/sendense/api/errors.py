"""Failures become problem documents: the one place that maps errors to HTTP."""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from sendense.api import fields
from sendense.core.errors import (
    Cancelled,
    Conflict,
    Corrupt,
    Denied,
    Invalid,
    NoSpace,
    NotFound,
    ProtocolError,
    SendenseError,
    Unavailable,
)
from sendense.hub.problem import MEDIA_TYPE, TYPE_PREFIX
from sendense.hub.tracing import current_request_id

_log = logging.getLogger(__name__)

# From the narrow to the wide; the first that fits counts.
_STATUS: tuple[tuple[type[SendenseError], HTTPStatus], ...] = (
    (Invalid, HTTPStatus.UNPROCESSABLE_ENTITY),
    (NotFound, HTTPStatus.NOT_FOUND),
    (Conflict, HTTPStatus.CONFLICT),
    (Denied, HTTPStatus.FORBIDDEN),
    (NoSpace, HTTPStatus.INSUFFICIENT_STORAGE),
    (Unavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (Corrupt, HTTPStatus.INTERNAL_SERVER_ERROR),
    (ProtocolError, HTTPStatus.SERVICE_UNAVAILABLE),
    (Cancelled, HTTPStatus.CONFLICT),
)
_BY_KIND = {
    "malformed-json": HTTPStatus.BAD_REQUEST,
    "body-too-large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "body-too-slow": HTTPStatus.REQUEST_TIMEOUT,
    "body-not-json": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
}
_KIND_OF_STATUS = {
    HTTPStatus.BAD_REQUEST: "malformed-json",
    HTTPStatus.NOT_FOUND: "path-unknown",
    HTTPStatus.METHOD_NOT_ALLOWED: "method-not-allowed",
}
_RESERVED = {"type", "title", "status", "detail", "hint", "errors"}


def respond(error: SendenseError, *, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the problem document of an error of ours."""
    status = _BY_KIND.get(error.kind) or next(
        (status for kind, status in _STATUS if isinstance(error, kind)),
        HTTPStatus.INTERNAL_SERVER_ERROR,
    )
    errors = error.fields.get("errors")
    more = {name: value for name, value in error.fields.items() if name not in _RESERVED}
    return _document(
        status,
        error.kind,
        error.message,
        hint=error.hint,
        errors=errors if isinstance(errors, list) else [],
        more=more,
        headers=headers,
    )


def _document(  # noqa: PLR0913 - the fields of a problem document
    status: HTTPStatus,
    kind: str,
    detail: str,
    *,
    hint: str = "",
    errors: Sequence[Mapping[str, str]] = (),
    more: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    content: dict[str, Any] = {
        "type": TYPE_PREFIX + kind,
        "title": kind.replace("-", " ").capitalize(),
        "status": int(status),
        "detail": detail,
        "hint": hint,
    }
    if errors:
        content["errors"] = list(errors)
    if (request_id := current_request_id()) is not None:
        content["request_id"] = request_id
    return JSONResponse(
        {**(more or {}), **content},
        status_code=int(status),
        media_type=MEDIA_TYPE,
        headers=dict(headers or {}),
    )


def install(app: FastAPI) -> None:
    """Let the application answer every failure with a problem document."""
    app.add_exception_handler(SendenseError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)


def _on_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SendenseError), "registered for this type"
    if isinstance(error, Corrupt):
        _log.error("%s %s: %s", request.method, request.url.path, error.message)
    return respond(error)


def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    del request
    assert isinstance(error, RequestValidationError), "registered for this type"
    problems = fields.describe(error.errors())
    first = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return _document(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "fields-invalid",
        f"{first['field']}: {first['reason']}{more}",
        hint="each wrong field is listed in errors",
        errors=problems,
    )


def _on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException), "registered for this type"
    status = HTTPStatus(error.status_code)
    details = {
        HTTPStatus.NOT_FOUND: f"there is nothing at {request.url.path}",
        HTTPStatus.METHOD_NOT_ALLOWED: f"{request.method} is not possible here",
    }
    return _document(
        status,
        _KIND_OF_STATUS.get(status, status.phrase.lower().replace(" ", "-")),
        details.get(status, status.phrase.lower()),
        headers=error.headers,
    )


def respond_to_bug(method: str, path: str, error: Exception) -> JSONResponse:
    """Log a defect of ours in full, and return an answer that tells nothing of it."""
    _log.error("%s %s is broken", method, path, exc_info=error)
    return _document(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "internal-error",
        "the server failed on this request",
        hint="the server's log says more; please report it",
    )
