"""Charts as places in a drawing: lines against a common axis, and points with their intervals.

Comes in: numbers by name. Goes out: a `Chart` that chart.html.jinja draws as SVG. Nothing here knows what is drawn.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Of the drawing, in its own units; it is scaled to the page.
CHART_WIDTH, CHART_HEIGHT = 640, 260
SMALLEST_SPAN = 1e-290
CHART_LEFT, CHART_RIGHT, CHART_TOP, CHART_BOTTOM = 52, 12, 12, 34
MARGIN = 0.06  # of the span, between the frame and the points of a scatter
APART = 6.0  # series whose points share an x stand side by side, so far from one another


@dataclass(frozen=True)
class Chart:
    """A chart ready to be drawn: places in drawing units, labels as text, ticks along x as numbers."""

    title: str
    lines: list[dict[str, str]]  # name, points, last
    x_ticks: list[tuple[float, float]]
    y_ticks: list[tuple[float, str]]
    x_label: str = ""
    marks: list[dict[str, Any]] = field(default_factory=list)  # name, points: x, y, ends, label, name, name_x
    width: int = CHART_WIDTH
    height: int = CHART_HEIGHT
    left: int = CHART_LEFT
    right: int = CHART_WIDTH - CHART_RIGHT
    bottom: int = CHART_HEIGHT - CHART_BOTTOM


@dataclass(frozen=True)
class Point:
    """A point of a scatter. interval: its ends along y, if it has one. label: what it is; name: written beside it."""

    x: float
    y: float
    interval: tuple[float, float] | None = None
    label: str = ""
    name: str = ""


@dataclass(frozen=True)
class _Axes:
    """Where values lie in the drawing, and round ticks that span them."""

    x: Callable[[float], float]
    y: Callable[[float], float]
    x_ticks: list[tuple[float, float]]
    y_ticks: list[tuple[float, str]]


def line_chart(title: str, lines: Mapping[str, Sequence[tuple[float, float]]], *, x_label: str = "") -> Chart:
    """Scale the lines' (x, y) points into one drawing, with round ticks that span them."""
    axes = _axes([x for points in lines.values() for x, _ in points], [y for of in lines.values() for _, y in of])
    drawn = [
        {
            "name": name,
            "points": " ".join(f"{axes.x(a)},{axes.y(b)}" for a, b in points),
            "last": f"{points[-1][1]:.3f}",
        }
        for name, points in lines.items()
        if points
    ]
    return Chart(title, drawn, axes.x_ticks, axes.y_ticks, x_label)


def scatter_chart(title: str, series: Mapping[str, Sequence[Point]], *, x_label: str = "") -> Chart:
    """Scale points and their intervals into one drawing; those of a series look alike, a little beside the others'."""
    points = [point for of in series.values() for point in of]
    heights = [y for point in points for y in (point.y, *(point.interval or ()))]
    axes = _axes([point.x for point in points], heights, margin=MARGIN)

    # From the first to the last of the marks that share an x, and where names stand clear of them.
    spread = APART * (len(series) - 1)
    clear = spread / 2 + 9

    def beside(x: float, number: int) -> float:
        place = axes.x(x) - spread / 2 + APART * number
        return round(min(max(place, CHART_LEFT), CHART_WIDTH - CHART_RIGHT), 1)

    drawn = [
        {
            "name": name,
            "points": [
                {
                    "x": beside(point.x, number),
                    "y": axes.y(point.y),
                    "ends": [*map(axes.y, point.interval or ())],
                    "label": point.label,
                    "name": point.name,
                    "name_x": round(axes.x(point.x) + (clear if axes.x(point.x) < CHART_WIDTH / 2 else -clear), 1),
                }
                for point in of
            ],
        }
        for number, (name, of) in enumerate(series.items())
    ]
    return Chart(title, [], axes.x_ticks, axes.y_ticks, x_label, drawn)


def _axes(x_values: Sequence[float], y_values: Sequence[float], *, margin: float = 0.0) -> _Axes:
    x_ticks, y_ticks = round_ticks(min(x_values), max(x_values), 6), round_ticks(min(y_values), max(y_values), 4)
    room = margin * (max(x_values) - min(x_values))
    x_span = min(x_values) - room, max(x_values) + room
    y_span = min(y_ticks[0], min(y_values)), max(y_ticks[-1], max(y_values))

    def place(value: float, span: tuple[float, float], start: float, end: float) -> float:
        share = (value - span[0]) / (span[1] - span[0]) if span[1] > span[0] else 0.5
        return round(start + share * (end - start), 1)

    def x(value: float) -> float:
        return place(value, x_span, CHART_LEFT, CHART_WIDTH - CHART_RIGHT)

    def y(value: float) -> float:
        return place(value, y_span, CHART_HEIGHT - CHART_BOTTOM, CHART_TOP)

    return _Axes(
        x,
        y,
        [(x(tick), round(tick, 6)) for tick in x_ticks if x_span[0] <= tick <= x_span[1]],
        [(y(tick), f"{tick:g}") for tick in y_ticks],
    )


def round_ticks(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from at most `low` to at least `high`, about `count` of them."""
    span = high - low or abs(high)
    if span < SMALLEST_SPAN:  # nothing to divide: ticks of a drawing are not that fine
        span = 1.0
    power = 10 ** math.floor(math.log10(span / count))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= span / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, max(last, first + 1) + 1)]
