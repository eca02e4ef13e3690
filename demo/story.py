"""What the demonstration tells: lines for people, figures for programs."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console


class Story:
    """Tells each step as it happens, and gathers figures.

    Lines go to the terminal, or to standard error where standard output is for JSON.
    """

    def __init__(self, *, as_json: bool) -> None:
        self._console = Console(stderr=as_json, highlight=False, soft_wrap=True)
        self._as_json = as_json
        self._started = time.monotonic()
        self.figures: dict[str, Any] = {"steps_seconds": {}, "checks": {}}

    @contextmanager
    def step(self, name: str, title: str) -> Iterator[list[str]]:
        """Tell a step; the body appends what it found to the list."""
        started = time.monotonic()
        details: list[str] = []
        yield details
        seconds = time.monotonic() - started
        self.figures["steps_seconds"][name] = round(seconds, 2)
        self._console.print(f"[bold]{title}[/bold]  [dim]{seconds:.1f} s[/dim]")
        for detail in details:
            self._console.print(f"    {detail}", markup=False)

    def check(self, name: str, what: str, *, holds: bool) -> None:
        """Note whether something that must hold does."""
        self.figures["checks"][name] = holds
        mark = "[green]✓[/green]" if holds else "[red]✗ does NOT hold:[/red]"
        self._console.print(f"  {mark} {what}")

    def say(self, line: str) -> None:
        """Tell a line."""
        self._console.print(line, markup=False)

    def fail(self, reason: str) -> None:
        """Tell why the story ends early."""
        self.figures["error"] = reason
        self._console.print(f"[red bold]failed:[/red bold] {reason}", markup=True)

    def finish(self) -> bool:
        """Close the story; return whether all that was promised held."""
        checks = self.figures["checks"]
        passed = bool(checks) and all(checks.values()) and "error" not in self.figures
        seconds = time.monotonic() - self._started
        self.figures |= {"passed": passed, "seconds": round(seconds, 1)}
        held = sum(checks.values())
        self._console.print(
            f"\n[bold]{'All' if passed else 'NOT all'} held[/bold]: {held} of {len(checks)} checks "
            f"in {seconds:.0f} s"
        )
        if self._as_json:
            print(json.dumps(self.figures, indent=2))
        return passed
