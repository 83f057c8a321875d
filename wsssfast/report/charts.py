"""Geometry of line charts; the template draws them as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 480, 320
LEFT, RIGHT, TOP, BOTTOM = 40, 470, 30, 272  # of the plot area
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: in the legend.
        points: (x, y), ascending in x; at least one.
        note: behind the name in the legend, and shown when the pointer rests on the line.
        mark: (x, y) to mark with a dot.
        colour: number of its colour and dashes.
    """

    name: str
    points: Points
    note: str = ""
    mark: tuple[float, float] | None = None
    colour: int = 0


@dataclass(frozen=True)
class Line:
    """A series in the coordinates of the drawing."""

    name: str
    note: str
    path: str
    mark: tuple[str, str] | None
    colour: int


@dataclass(frozen=True)
class Chart:
    """A drawing of `WIDTH` x `HEIGHT`.

    Attributes:
        title: what it shows.
        description: the same in a sentence or two, for those who do not see it.
        x_label: below the axis.
        y_label: above the axis.
        x_ticks: (place, text).
        y_ticks: (place, text).
        lines: of the series.
    """

    title: str
    description: str
    x_label: str
    y_label: str
    x_ticks: list[tuple[str, str]]
    y_ticks: list[tuple[str, str]]
    lines: list[Line]


def line_chart(
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    *,
    whole: bool = False,
    from_zero: bool = True,
) -> Chart:
    """Lay out lines over axes that hold them all.

    Args:
        title: see `Chart`.
        description: see `Chart`.
        x_label: see `Chart`.
        y_label: see `Chart`.
        series: at least one.
        whole: whether only whole numbers are written at the x axis.
        from_zero: whether the y axis starts at 0 (lower for what is negative); else below the
            lowest point.
    """
    xs = [x for line in series for x, _ in line.points]
    x_ticks = ticks(min(xs), max(xs))
    ys = [y for line in series for _, y in line.points]
    y_ticks = ticks(min(0.0, *ys) if from_zero else min(ys), max(ys))
    x_low, x_high = min(xs), max(xs)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def x_place(x: float) -> str:
        return f"{LEFT + (RIGHT - LEFT) * (x - x_low) / ((x_high - x_low) or 1):.1f}"

    def y_place(y: float) -> str:
        return f"{BOTTOM - (BOTTOM - TOP) * (y - y_low) / (y_high - y_low):.1f}"

    def drawn(line: Series) -> Line:
        path = " ".join(f"{x_place(x)},{y_place(y)}" for x, y in line.points)
        mark = line.mark and (x_place(line.mark[0]), y_place(line.mark[1]))
        return Line(line.name, line.note, path, mark, line.colour)

    return Chart(
        title,
        description,
        x_label,
        y_label,
        [
            (x_place(x), f"{x:.10g}")
            for x in x_ticks
            if x_low <= x <= x_high and not (whole and x % 1)
        ],
        [(y_place(y), f"{y:.10g}") for y in y_ticks],
        [drawn(line) for line in series],
    )


def ticks(low: float, high: float) -> list[float]:
    """Round numbers, 4 to 10 steps of 1, 2 or 5 times a power of ten, that span [low, high].

    Where these differ by less than a millionth, the steps are of their size.
    """
    size = max(abs(low), abs(high))
    if size < 1e-6:
        size = 1.0
    span = high - low if high - low > 1e-6 * size else size
    power = 10.0 ** math.floor(math.log10(span))
    step = next(s * power for s in (0.2, 0.5, 1.0, 2.0) if span / (s * power) <= 8)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, max(last, first + 1) + 1)]
