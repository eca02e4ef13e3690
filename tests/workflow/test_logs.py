import logging
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from tests.workflow.world import World


class Catcher(logging.Handler):
    """Remembers each message with the context that it was logged in."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.found: list[tuple[str, dict[str, object]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append((record.getMessage(), dict(structlog.contextvars.get_contextvars())))


@contextmanager
def _catch(name: str) -> Iterator[Catcher]:
    catcher, logger = Catcher(), logging.getLogger(name)
    level = logger.level
    logger.addHandler(catcher)
    logger.setLevel(logging.INFO)
    try:
        yield catcher
    finally:
        logger.setLevel(level)
        logger.removeHandler(catcher)


def test_what_a_step_logs_names_its_job_and_itself(world: World) -> None:
    with _catch("sendense.workflows.owner") as catcher:
        _, job_id = world.start_backup()
        assert world.wait(job_id).status == "completed"
    steps = {str(context.get("step")) for _, context in catcher.found}
    assert {"plan", "take_snapshot", "commit", "remove_snapshot"} <= steps
    for message, context in catcher.found:
        assert context["job_id"] == job_id, message
        assert f"step {context['step']} of {context.get('workflow_id', job_id)} is done" == message
