"""Series: one quantity over another that grows, told as a table and as a plot."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from sendense.core import units


class Quantity(StrEnum):
    """What numbers of a series are."""

    COUNT = "count"
    BYTES = "bytes"
    SECONDS = "seconds"
    MILLISECONDS = "milliseconds"
    PER_SECOND = "per second"
    BYTES_PER_SECOND = "bytes per second"

    def tell(self, value: float) -> str:
        """Return a value for people."""
        match self:
            case Quantity.BYTES:
                return units.format_size(round(value))
            case Quantity.BYTES_PER_SECOND:
                return f"{units.format_size(round(value))}/s"
            case Quantity.COUNT | Quantity.PER_SECOND:
                return f"{value:,.0f}"
            case Quantity.SECONDS:
                return f"{value:.3g} s"
            case Quantity.MILLISECONDS:
                return f"{value:.3g} ms"


@dataclass(frozen=True)
class Curve:
    """Points of a series that belong together, in ascending order of x."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Series:
    """A panel of the plot.

    Attributes:
        grows: what x is.
        x, y: the quantities.
        is_log: whether y is drawn in powers of ten. x always is in multiples.
    """

    key: str
    title: str
    grows: str
    x: Quantity
    y: Quantity
    curves: tuple[Curve, ...]
    is_log: bool = True

    def list_x(self) -> list[float]:
        """Return where there is a point, in ascending order."""
        return sorted({x for curve in self.curves for x, _ in curve.points})

    def to_lines(self) -> list[str]:
        """Return the series as Markdown."""
        rows = [
            [self.x.tell(x), *(self._tell(curve, x) for curve in self.curves)]
            for x in self.list_x()
        ]
        names = [self.grows, *(curve.name for curve in self.curves)]
        cells = [names, ["---"] * len(names), *rows]
        lines = [f"| {' | '.join(row)} |" for row in cells]
        return [f"### {self.title}", "", *lines, ""]

    def to_json(self) -> dict[str, Any]:
        """Return the series for programs."""
        return asdict(self)

    def _tell(self, curve: Curve, x: float) -> str:
        return next((self.y.tell(value) for at, value in curve.points if at == x), "")


def median_seconds(work: Callable[[], object], *, rounds: int) -> float:
    """Return the median of how long something takes."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)
