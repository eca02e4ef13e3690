"""Which request is being answered: for the job that it starts, and for failures."""

import structlog

REQUEST_ID = "request_id"  # as log messages and problem documents call it


def current_request_id() -> str | None:
    """Return the id of the request in whose context this runs, or None outside of any."""
    found = structlog.contextvars.get_contextvars().get(REQUEST_ID)
    return found if isinstance(found, str) else None
