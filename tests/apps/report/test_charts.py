"""Charts: points lie where their values are, whatever the values."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_diffae.apps.report.charts import Axes, Series, interval_mark, line_chart


def markers(chart: str) -> list[tuple[float, float]]:
    places = re.findall(r'class="marker" transform="translate\(([-\d.]+) ([-\d.]+)\)"', chart)
    return [(float(x), float(y)) for x, y in places]


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.booleans())
def test_higher_values_are_drawn_higher_and_inside(values: list[float], is_log: bool) -> None:
    y = [abs(value) + 1e-3 for value in values] if is_log else values
    chart = line_chart([Series("a", list(range(len(y))), y)], Axes("x", "y", log_y=is_log))
    ElementTree.fromstring(chart)
    places = markers(chart)
    assert len(places) == len(y)
    assert all(0 <= place <= 460 for place, _ in places)
    assert all(0 <= place <= 270 for _, place in places)
    order = sorted(range(len(y)), key=lambda i: y[i])
    heights = [places[i][1] for i in order]
    assert all(low >= high for low, high in zip(heights, heights[1:], strict=False))


def test_missing_values_leave_a_gap_and_empty_series_are_omitted() -> None:
    chart = line_chart([Series("a", [1, 2, 3], [1, math.nan, 3]), Series("b", [1], [math.nan])], Axes("x", "y"))
    assert len(markers(chart)) == 2
    assert "s1" not in chart


def test_a_chart_without_values_is_empty_but_whole() -> None:
    ElementTree.fromstring(line_chart([], Axes("x", "y")))


def test_series_differ_in_more_than_colour() -> None:
    chart = line_chart([Series(name, [1, 2], [1, 2]) for name in "abcd"], Axes("x", "y"))
    dashes = re.findall(r'class="line" stroke-dasharray="([^"]*)" d="M\d', chart)
    shapes = re.findall(r'class="marker" transform="[^"]*" d="([^"]*)"', chart)
    assert len(set(dashes)) == 4
    assert len(set(shapes)) == 4


def test_names_are_text() -> None:
    chart = line_chart([Series("<b>", [1], [1]), Series("c", [1], [1])], Axes("<x>", "y"), "<title>")
    ElementTree.fromstring(chart)
    assert "<b>" not in chart


@pytest.mark.parametrize(("low", "high"), [(None, None), (0.4, 0.9), (math.nan, math.nan)])
def test_an_interval_contains_its_value(low: float | None, high: float | None) -> None:
    mark = interval_mark(0.6, low, high, (0.0, 1.0), 0.5)
    ElementTree.fromstring(mark)
    dot = float(re.search(r'cx="([\d.]+)"', mark)[1])
    bar = re.search(r'class="bar" x1="([\d.]+)" x2="([\d.]+)"', mark)
    assert (bar is None) == (low is None or math.isnan(low))
    if bar:
        assert float(bar[1]) < dot < float(bar[2])
