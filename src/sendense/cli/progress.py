"""How far a job is: a live bar on a terminal, a line now and then elsewhere."""

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from sendense.cli import text
from sendense.core.clock import Clock

LINE_SECONDS = 10.0  # often enough to see life in a log, seldom enough not to fill it
_PERCENT_DONE = 100.0


@dataclass(frozen=True)
class Status:
    """A moment in the life of a job.

    Attributes:
        bytes_done, bytes_total: None where the job does not count bytes.
        bytes_per_second, seconds_left: None where unknown.
    """

    phase: str
    percent: float
    bytes_done: int | None = None
    bytes_total: int | None = None
    bytes_per_second: float | None = None
    seconds_left: float | None = None

    def describe(self) -> str:
        """Return one line for a log."""
        parts = [self.phase, text.percent(self.percent)]
        if self.bytes_done is not None and self.bytes_total:
            parts.append(f"{text.size(self.bytes_done)} of {text.size(self.bytes_total)}")
        if self.bytes_per_second:
            parts.append(text.rate(self.bytes_per_second))
        if self.seconds_left is not None:
            parts.append(text.remaining(self.seconds_left))
        return ", ".join(parts)


def read_status(job: dict[str, Any]) -> Status:
    """Return the progress in a job as the API shows it."""
    total = job.get("bytes_total")
    return Status(
        phase=str(
            job.get("waiting_reason")
            or str(job.get("current_phase") or job.get("status")).replace("-", " ")
        ),
        percent=min(float(job.get("progress_percent") or 0.0), _PERCENT_DONE),
        bytes_done=job.get("bytes_done"),
        bytes_total=total or None,
        bytes_per_second=job.get("transfer_speed_bps") or None,
        seconds_left=job.get("seconds_left"),
    )


class Display(Protocol):
    """Where progress is shown; a context, so that the terminal is left in order."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def show(self, status: Status) -> None:
        """Show this status, if it is time to."""
        ...

    def note(self, message: str) -> None:
        """Say something beside the progress."""
        ...


class SilentDisplay:
    """Shows nothing: for `--json` away from a terminal."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        return None

    def show(self, status: Status) -> None:
        """Show nothing."""

    def note(self, message: str) -> None:
        """Say nothing."""


class LineDisplay:
    """Plain lines: at each new phase and every `LINE_SECONDS` in between."""

    def __init__(self, console: Console, clock: Clock) -> None:
        self._console = console
        self._clock = clock
        self._phase = ""
        self._shown_at = float("-inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        return None

    def show(self, status: Status) -> None:
        """Print a line, if it is time to."""
        now = self._clock.monotonic()
        if status.phase == self._phase and now - self._shown_at < LINE_SECONDS:
            return
        self._phase, self._shown_at = status.phase, now
        self.note(status.describe())

    def note(self, message: str) -> None:
        """Print a line."""
        self._console.print(Text(text.escape(message)), soft_wrap=True)


class _Numbers(ProgressColumn):
    """Bytes, rate and time left of the newest status."""

    def render(self, task: Task) -> Text:
        """Return the numbers that are known."""
        status: Status | None = task.fields.get("status")
        if status is None:
            return Text()
        parts = []
        if status.bytes_done is not None and status.bytes_total:
            parts.append(f"{text.size(status.bytes_done)} / {text.size(status.bytes_total)}")
        if status.bytes_per_second:
            parts.append(text.rate(status.bytes_per_second))
        if status.seconds_left is not None:
            parts.append(text.remaining(status.seconds_left))
        return Text("  ".join(parts), style="cyan")


class BarDisplay:
    """A live bar on a terminal; it vanishes at the end, the result is printed instead."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %", markup=False),
            _Numbers(),
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task("waiting", total=_PERCENT_DONE)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._progress.stop()

    def show(self, status: Status) -> None:
        """Move the bar."""
        self._progress.update(
            self._task,
            description=text.escape(status.phase),
            completed=status.percent,
            status=status,
        )

    def note(self, message: str) -> None:
        """Print a line above the bar."""
        self._console.print(Text(text.escape(message), style="yellow"), soft_wrap=True)


def open_display(console: Console, clock: Clock, *, silent: bool) -> Display:
    """Return the display that fits where the text goes."""
    if console.is_terminal:
        return BarDisplay(console)
    return SilentDisplay() if silent else LineDisplay(console, clock)
