"""The last results, kept in the tree: figures for programs, tables and plots for people."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
FIGURES = FOLDER / "results.json"
PAGE = FOLDER / "RESULTS.md"
PLOT = FOLDER / "results.png"
GROWTH_FIGURES = FOLDER / "growth.json"
GROWTH_PLOT = FOLDER / "growth.png"


def load(path: Path, name: str) -> dict[str, Any] | None:
    """Return what was saved last under a name, the scale of the run; None where nothing was."""
    if not path.exists():
        return None
    found: dict[str, Any] | None = json.loads(path.read_text()).get(name)
    return found


def save(path: Path, name: str, figures: Mapping[str, Any]) -> None:
    """Replace what is saved under a name, and leave the rest."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**kept, name: figures}, indent=1, sort_keys=True) + "\n")


def save_page(path: Path, command: str, lines: Sequence[str]) -> None:
    """Replace what a command printed into a page before, and leave what people wrote around it."""
    text = path.read_text() if path.exists() else ""
    path.write_text(replace(text, command, lines))


def replace(text: str, command: str, lines: Sequence[str]) -> str:
    """Return a page with other lines between a command's two marks, which it gets at its end."""
    begin, end = f"<!-- begin: {command} -->", f"<!-- end: {command} -->"
    block = "\n".join([begin, "", *lines, end])
    before, found, rest = text.partition(begin)
    if not found:
        return f"{text.rstrip()}\n\n{block}\n".lstrip()
    _, ended, after = rest.partition(end)
    assert ended, f"{begin} is not ended by {end}"
    return before + block + after
