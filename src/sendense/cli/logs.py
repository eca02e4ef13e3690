"""Logs of server and worker on standard error: lines for people, or an object of JSON each.

Messages of libraries take the same way. What a request or a job step runs in (`request_id`,
`job_id`, `step`) comes with every message that is logged inside it; see api/requests.py and
durable/flow.py, which set it.
"""

import logging
import os
import sys
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

from sendense.cli import redact
from sendense.settings import LogFormat, Settings

# Of libraries only what an operator can use; their news at each start is none.
_QUIET = ("alembic", "dbos", "httpx", "httpcore", "uvicorn.access", "uvicorn.error")

# The order in which people look for them; whatever else there is comes behind.
_FIRST = ("time", "level", "logger", "message", "pid")


def configure(settings: Settings, **fields: str) -> None:
    """Write this process's log to standard error, as the settings want it. Idempotent.

    `fields` are what every message of this process carries, e.g. `worker_id`.
    """
    handler = logging.StreamHandler()
    as_json = settings.log_format is LogFormat.JSON or (
        settings.log_format is LogFormat.AUTO and not sys.stderr.isatty()
    )
    handler.setFormatter(_formatter(as_json=as_json, fields=fields))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name, chosen in settings.log_levels.items():
        logging.getLogger(name).setLevel(chosen.upper())


def _formatter(*, as_json: bool, fields: dict[str, str]) -> logging.Formatter:
    def add_fields(_logger: Any, _method: str, event: EventDict) -> EventDict:
        return {**fields, **event}

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _add_pid,
        add_fields,
    ]
    ending: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        structlog.processors.EventRenamer("message"),
        _redact,
    ]
    if as_json:
        ending += [_order, structlog.processors.JSONRenderer(ensure_ascii=False)]
    else:
        ending.append(_render_line)
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=ending)


def _add_pid(_logger: Any, _method: str, event: EventDict) -> EventDict:
    event["pid"] = os.getpid()
    return event


def _redact(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Take out passwords and tokens, whoever put them in."""
    return {
        key: redact.redact(value) if isinstance(value, str) else value
        for key, value in event.items()
    }


def _order(_logger: Any, _method: str, event: EventDict) -> EventDict:
    first = {key: event.pop(key) for key in _FIRST if key in event}
    return {**first, **event}


def _render_line(_logger: Any, _method: str, event: EventDict) -> str:
    """Return one line: names and paths that hold others cannot forge a second.

    A traceback comes after it, indented: the message of its error may hold such names too.
    """
    traceback = event.pop("exception", None)
    head = "{time} {level:<7} {pid} {logger}: {message}".format(
        **{key: event.pop(key, "-") for key in _FIRST}
    )
    line = " ".join([head, *(f"{key}={value}" for key, value in event.items())])
    below = [] if traceback is None else str(traceback).split("\n")
    return "\n".join([_escape(line), *(f"  {_escape(one)}" for one in below)])


def _escape(line: str) -> str:
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in line
    )
