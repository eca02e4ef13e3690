"""How failures look over HTTP (RFC 9457): one shape for every kind."""

from typing import Annotated, Any

from fastapi import status
from pydantic import BaseModel, ConfigDict, Field

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:sendense:problem:"


class FieldProblem(BaseModel):
    """One field of a request and what is wrong with it."""

    field: Annotated[str, Field(examples=["disk_id"])]
    reason: Annotated[
        str,
        Field(examples=["must be at least 0"]),
    ]


class Problem(BaseModel):
    """What went wrong, for people and for programs. More fields name what it is about."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:sendense:problem:backup-running",
                    "title": "Backup running",
                    "status": 409,
                    "detail": "a backup of VM pgtest1 is running",
                    "hint": "wait for job backup-3n5v8r1t6y2u9i4o, or cancel it",
                    "backup_id": "backup-pgtest1-20260102t030405z-x7k2",
                    "job_id": "backup-3n5v8r1t6y2u9i4o",
                }
            ]
        },
    )

    type: Annotated[str, Field(description="A URI of its own for each kind of failure.")]
    title: str
    status: int
    detail: Annotated[str, Field(description="What is wrong.")]
    hint: Annotated[str, Field(description="What a person can do about it.")] = ""
    request_id: Annotated[
        str, Field(description="What the server's log calls this request; also X-Request-ID.")
    ] = ""
    errors: Annotated[
        list[FieldProblem], Field(description="Each wrong field, where the input is invalid.")
    ] = []


_MEANING = {
    status.HTTP_400_BAD_REQUEST: "The body is no JSON.",
    status.HTTP_403_FORBIDDEN: "Outside the allowed places, or not allowed.",
    status.HTTP_404_NOT_FOUND: "Something named in the request is not known.",
    status.HTTP_409_CONFLICT: "Something is in the way: ambiguous, running, disabled, taken.",
    status.HTTP_413_CONTENT_TOO_LARGE: "The body is too large.",
    status.HTTP_415_UNSUPPORTED_MEDIA_TYPE: "The body is not declared as JSON.",
    status.HTTP_422_UNPROCESSABLE_CONTENT: "Fields are missing, unknown or wrong.",
    status.HTTP_500_INTERNAL_SERVER_ERROR: "A bug of ours, or damaged data.",
    status.HTTP_503_SERVICE_UNAVAILABLE: "Something does not answer; try again.",
    status.HTTP_507_INSUFFICIENT_STORAGE: "The repository is full.",
}


def responses(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of the failures that an operation may answer with."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        code: {"description": _MEANING[code], "content": {MEDIA_TYPE: {"schema": schema}}}
        for code in codes
    }


READ = responses(403, 404, 422, 500, 503)
WRITE = responses(400, 403, 404, 409, 413, 415, 422, 500, 503)
START = responses(400, 403, 404, 409, 413, 415, 422, 500, 503, 507)
