"""Pictures of results, drawn by matplotlib without a display. Nothing else imports it."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator, NullFormatter, NullLocator

from benchmarks.growth.series import Quantity, Series
from benchmarks.report import Table

COLUMN_INCHES = 5.5
ROW_INCHES = 3.2
DOTS_PER_INCH = 80
OURS_COLOUR, LIMIT_COLOUR, OTHER_COLOUR = "#1f6f8b", "#c9a227", "#b0b7bd"
CURVE_COLOURS = (OURS_COLOUR, "#b0413e", LIMIT_COLOUR)
BINARY_BASE = 16  # between two labels of sizes in powers
STEPS_MIN = 4  # labels of an axis that begins at 0


def draw_results(tables: Sequence[Table], path: Path, *, title: str) -> None:
    """Draw the seconds of each contender as bars, a panel for each table."""
    figure, panels = _open(len(tables), title, columns=2)
    for panel, table in zip(panels, tables, strict=True):
        _draw_bars(panel, table)
    figure.savefig(path)


def draw_growth(found: Sequence[Series], path: Path, *, title: str) -> None:
    """Draw each series in a panel of its own; where y is not in powers of ten, it begins at 0."""
    figure, panels = _open(len(found), title, columns=3)
    for panel, series in zip(panels, found, strict=True):
        _draw_series(panel, series)
    figure.savefig(path)


def _open(count: int, title: str, *, columns: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many panels."""
    rows = -(-count // columns)
    size = (columns * COLUMN_INCHES, rows * ROW_INCHES)
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title.replace("; ", "\n"), fontsize=9)
    return figure, [figure.add_subplot(rows, columns, number + 1) for number in range(count)]


def _draw_series(panel: Axes, series: Series) -> None:
    for curve, colour in zip(series.curves, CURVE_COLOURS, strict=False):
        xs, ys = zip(*curve.points, strict=True)
        panel.plot(xs, ys, marker="o", markersize=4, color=colour, label=curve.name)
    panel.set_xscale("log")
    panel.set_xticks(series.list_x(), [series.x.tell(x) for x in series.list_x()])
    panel.xaxis.set_minor_locator(NullLocator())
    _scale_y(panel, series)
    panel.set_title(series.title, fontsize=9)
    panel.set_xlabel(series.grows, fontsize=8)
    panel.grid(visible=True, which="major", alpha=0.3)
    panel.tick_params(labelsize=7)
    if len(series.curves) > 1:
        panel.legend(fontsize=7)
    else:
        panel.set_ylabel(series.curves[0].name, fontsize=8)


def _scale_y(panel: Axes, series: Series) -> None:
    """Let the axis begin and end at a labelled value: a power, or 0 and a multiple."""
    values = [y for curve in series.curves for _, y in curve.points]
    if series.is_log:
        base = BINARY_BASE if series.y is Quantity.BYTES else 10
        low, high = (math.log(limit(values), base) for limit in (min, max))
        panel.set_yscale("log", base=base)
        panel.set_ylim(base ** math.floor(low), base ** (math.floor(high) + 1))
        panel.yaxis.set_minor_formatter(NullFormatter())
    else:
        step = 2.0 ** math.floor(math.log2(max(values) / STEPS_MIN))  # of bytes
        panel.yaxis.set_major_locator(MultipleLocator(step))
        panel.set_ylim(0, (max(values) // step + 1) * step)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: series.y.tell(value)))


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
