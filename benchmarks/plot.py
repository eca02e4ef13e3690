"""Pictures of results, drawn by matplotlib without a display. Nothing else imports it."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.report import Table

WIDTH_INCHES = 11.0
ROW_INCHES = 3.2
DOTS_PER_INCH = 90
OURS_COLOUR, LIMIT_COLOUR, OTHER_COLOUR = "#1f6f8b", "#c9a227", "#b0b7bd"


def draw_results(tables: Sequence[Table], path: Path, *, title: str) -> None:
    """Draw the seconds of each contender as bars, a panel for each table."""
    figure, panels = _open(len(tables), title)
    for panel, table in zip(panels, tables, strict=True):
        _draw_bars(panel, table)
    figure.savefig(path)


def _open(count: int, title: str) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many panels, two in a row."""
    rows = -(-count // 2)
    figure = Figure(
        figsize=(WIDTH_INCHES, rows * ROW_INCHES), dpi=DOTS_PER_INCH, layout="constrained"
    )
    FigureCanvasAgg(figure)
    figure.suptitle(title.replace("; ", "\n"), fontsize=9)
    return figure, [figure.add_subplot(rows, 2, number + 1) for number in range(count)]


def _draw_bars(panel: Axes, table: Table) -> None:
    names = [row.name for row in table.rows]
    seconds = [row.seconds for row in table.rows]
    bars = panel.barh(names, seconds, color=[_colour(name, table.ours) for name in names])
    panel.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    panel.invert_yaxis()
    panel.margins(x=0.12)
    panel.set_title(table.title, fontsize=9)
    panel.set_xlabel("seconds, median; less is better", fontsize=8)
    panel.tick_params(labelsize=8)


def _colour(name: str, ours: str) -> str:
    if name == ours:
        return OURS_COLOUR
    return LIMIT_COLOUR if name.startswith("limit: ") else OTHER_COLOUR
