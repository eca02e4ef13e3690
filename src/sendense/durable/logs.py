"""DBOS's log lines: only what an operator can use."""

import logging

_NAME = "dbos"


class _Polite(logging.Filter):
    """Drops the advertisement of a paid service and what repeats at every start."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep warnings and worse."""
        return record.levelno >= logging.WARNING


def quieten() -> None:
    """Send DBOS's warnings through our logging and nothing else. Idempotent.

    A handler of our own keeps DBOS from installing one that writes to standard error by itself.
    """
    logger = logging.getLogger(_NAME)
    if not any(isinstance(handler, logging.NullHandler) for handler in logger.handlers):
        logger.addHandler(logging.NullHandler())
        logger.addFilter(_Polite())
    logger.setLevel(logging.WARNING)
    logger.propagate = True
