"""Charts stay inside their frame, and their ticks span what is drawn."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from lep.charts import Point, line_chart, round_ticks, scatter_chart


@settings(max_examples=60, deadline=None)
@given(a=st.floats(-1e6, 1e6), b=st.floats(-1e6, 1e6), count=st.integers(2, 8))
def test_ticks_span_the_values_evenly(a: float, b: float, count: int) -> None:
    low, high = min(a, b), max(a, b)
    ticks = round_ticks(low, high, count)
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= count + 3


def test_a_chart_stays_inside_its_frame_even_for_one_constant_line() -> None:
    for lines in ({"loss": [(1.0, 2.0), (2.0, 2.0)]}, {"a": [(0, 1.5), (100, 0.25)], "b": [(50, 3)]}):
        chart = line_chart("title", lines)
        for line in chart.lines:
            for point in line["points"].split():
                x, y = map(float, point.split(","))
                assert chart.left <= x <= chart.right and 0 <= y <= chart.bottom


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(0, 1e3) | st.just(math.nan)), min_size=1)
)
def test_a_scatter_holds_every_point_and_interval_and_keeps_their_order(
    found: list[tuple[float, float, float]],
) -> None:
    points = [Point(x, y, None if math.isnan(half) else (y - half, y + half)) for x, y, half in found]
    chart = scatter_chart("title", {"one": points[::2], "other": points[1::2]})
    drawn = [mark for series in chart.marks for mark in series["points"]]
    assert len(drawn) == len(points)
    for mark, point in zip(drawn, [*points[::2], *points[1::2]], strict=True):
        assert chart.left <= mark["x"] <= chart.right
        assert all(0 <= y <= chart.bottom for y in (mark["y"], *mark["ends"]))
        assert len(mark["ends"]) == (2 if point.interval else 0)
    by_height = sorted(zip((p.y for p in [*points[::2], *points[1::2]]), (m["y"] for m in drawn), strict=True))
    assert all(low[1] >= high[1] for low, high in zip(by_height, by_height[1:], strict=False) if low[0] < high[0])
