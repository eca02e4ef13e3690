"""Logs of server and worker: lines for people on standard error."""

import logging

# Of libraries only what an operator can use; their news at each start is none.
_QUIET = ("alembic", "dbos", "httpx", "httpcore", "uvicorn.access", "uvicorn.error")


class _Lines(logging.Formatter):
    """One line for each message: names and paths that hold others cannot forge a second."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line; a traceback, which is ours, comes after it."""
        line = super().formatMessage(record)
        return "".join(
            one if one.isprintable() else one.encode("unicode_escape").decode() for one in line
        )


def configure(level: str) -> None:
    """Write this process's log to standard error. Idempotent."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines("%(asctime)s %(levelname)-7s %(process)d %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
