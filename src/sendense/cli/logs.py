"""Logs of server and worker: lines for people on standard error."""

import logging

# Of libraries only what an operator can use; their news at each start is none.
_QUIET = ("alembic", "dbos", "httpx", "httpcore", "uvicorn.access", "uvicorn.error")


def configure(level: str) -> None:
    """Write this process's log to standard error. Idempotent."""
    logging.basicConfig(
        level=level.upper(),
        format="%(asctime)s %(levelname)-7s %(process)d %(name)s: %(message)s",
        force=True,
    )
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
