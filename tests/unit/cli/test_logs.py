import logging
import sys

import pytest

from sendense.cli import logs


def test_a_path_cannot_forge_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    root.handlers.clear()
    try:
        logs.configure("info")
        [handler] = root.handlers
        assert isinstance(handler, logging.StreamHandler)
        handler.setStream(sys.stderr)
        wanted = "a\n2026 ERROR all lost\x1b[31m é"
        logging.getLogger("sendense.test").error("no %s", wanted, exc_info=OSError("broken"))
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    first, *traceback = capsys.readouterr().err.splitlines()
    assert first.endswith(r"sendense.test: no a\n2026 ERROR all lost\x1b[31m é")
    assert traceback == ["OSError: broken"]
