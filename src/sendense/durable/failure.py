"""Errors as they are written beside a step, and back.

Steps run once and are replayed often: the workflow must see the same error both times. So each
error becomes plain data at the step's edge and is rebuilt from that data, in the first run too.
"""

import json
from collections.abc import Mapping
from typing import Any

from dbos import PortableWorkflowError

from sendense.core import errors

INTERNAL_KIND = "internal-error"
_BY_NAME: Mapping[str, type[errors.SendenseError]] = {
    one.__name__: one
    for one in (
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
    )
}


def to_portable(error: Exception) -> PortableWorkflowError:
    """Return what DBOS may write: no class of ours, no traceback, no secret."""
    if isinstance(error, errors.SendenseError):
        data: dict[str, Any] = {
            "message": error.message,
            "hint": error.hint,
            "kind": error.kind,
            "fields": json.loads(json.dumps(error.fields, default=str)),
        }
        known = (one.__name__ for one in type(error).__mro__ if one.__name__ in _BY_NAME)
        name = next(known, "SendenseError")
    else:
        name = "SendenseError"
        data = {
            "message": f"internal error: {type(error).__name__}: {error}",
            "hint": "this is a defect of the product; the worker's log has the details",
            "kind": INTERNAL_KIND,
            "fields": {},
        }
    return PortableWorkflowError(str(data["message"]), name, None, data)


def from_portable(error: PortableWorkflowError) -> errors.SendenseError:
    """Rebuild the error that `to_portable` wrote; an unknown class becomes a SendenseError."""
    data = error.data if isinstance(error.data, dict) else {}
    fields = data.get("fields")
    return rebuild(
        error.name,
        {
            "message": data.get("message", error.message),
            "hint": data.get("hint", ""),
            "kind": data.get("kind", INTERNAL_KIND),
            "fields": fields if isinstance(fields, dict) else {},
        },
    )


def rebuild(name: str, data: Mapping[str, Any]) -> errors.SendenseError:
    """Return an error of the class called `name`, or a SendenseError where that is unknown."""
    chosen = _BY_NAME.get(name, errors.SendenseError)
    reserved = {"message", "hint", "kind"}
    fields = {key: value for key, value in data["fields"].items() if key not in reserved}
    return chosen(str(data["message"]), hint=str(data["hint"]), kind=str(data["kind"]), **fields)
