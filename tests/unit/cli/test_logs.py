import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from sendense.cli import logs
from sendense.settings import Settings

Start = Callable[..., None]


@pytest.fixture
def start() -> Iterator[Start]:
    """Configure logging as a server does, onto the stream that the test captures."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    named: dict[str, int] = {}

    def configure(*, fields: dict[str, str] | None = None, **settings: Any) -> None:
        chosen = Settings(**settings)
        for name in chosen.log_levels:
            named[name] = logging.getLogger(name).level
        root.handlers.clear()
        logs.configure(chosen, **(fields or {}))
        [handler] = root.handlers
        assert isinstance(handler, logging.StreamHandler)
        handler.setStream(sys.stderr)

    yield configure
    root.handlers[:] = before
    root.setLevel(level)
    for name, old in named.items():
        logging.getLogger(name).setLevel(old)


def test_a_path_cannot_forge_a_line(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    start(log_format="text")
    wanted = "a\n2026 ERROR all lost\x1b[31m é"
    logging.getLogger("sendense.test").error("no %s", wanted, exc_info=OSError(wanted))
    first, *traceback = capsys.readouterr().err.splitlines()
    assert first.endswith(r"sendense.test: no a\n2026 ERROR all lost\x1b[31m é")
    assert traceback == ["  OSError: a", r"  2026 ERROR all lost\x1b[31m é"]


def test_a_message_carries_what_it_was_logged_in(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    start(log_format="text", fields={"worker_id": "worker-1"})
    with structlog.contextvars.bound_contextvars(job_id="job-1"):
        logging.getLogger("sendense.test").info("begins")
    logging.getLogger("sendense.test").info("ended")
    inside, outside = capsys.readouterr().err.splitlines()
    assert inside.endswith("begins worker_id=worker-1 job_id=job-1")
    assert outside.endswith("ended worker_id=worker-1")


def test_outside_a_terminal_each_message_is_an_object(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    start()
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        logging.getLogger("sendense.test").warning("two\nlines", exc_info=ValueError("x"))
    [line] = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert found.pop("time").endswith("Z")
    assert found.pop("pid") > 0
    assert found == {
        "level": "warning",
        "logger": "sendense.test",
        "message": "two\nlines",
        "request_id": "r1",
        "exception": "ValueError: x",
    }


def test_parts_of_the_product_may_have_another_level(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    start(log_format="text", log_level="warning", log_levels="sendense.test=debug")
    logging.getLogger("sendense.test.deeper").debug("seen")
    logging.getLogger("sendense.other").info("not seen")
    assert "not seen" not in (said := capsys.readouterr().err)
    assert "seen" in said


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_secret_is_written_whoever_puts_it_into_a_message(
    start: Start, capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    start(log_format=log_format)
    secret = "hunter2-p@ss"  # noqa: S105 - what must not be found
    logging.getLogger("some.driver").error(
        "cannot reach postgresql://sendense:%s@db/sendense",
        secret,
        exc_info=OSError(f"password={secret}"),
    )
    with structlog.contextvars.bound_contextvars(url=f"mysql://u:{secret}@h/x"):
        logging.getLogger("some.driver").info("Authorization: Bearer abcdefgh12345678")
    said = capsys.readouterr().err
    assert "hunter2" not in said
    assert "p@ss" not in said
    assert "abcdefgh" not in said
    assert "db/sendense" in said
