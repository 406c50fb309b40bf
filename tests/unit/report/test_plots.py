"""Ticks, thinning, and figures that stay inside their frame."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrans.report.plots import HEIGHT, WIDTH, bar, decades, legend, line_plot, round_ticks, thin, whisker

numbers = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 3))


@settings(deadline=None, max_examples=100)
@given(numbers, numbers)
def test_round_ticks_enclose_the_range_in_equal_steps(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    ticks = round_ticks(low, high)
    steps = [right - left for left, right in pairwise(ticks)]
    assert 2 <= len(ticks) <= 7
    assert ticks[0] <= low + 1e-6 * steps[0]
    assert ticks[-1] >= high - 1e-6 * steps[0]
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert round(steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9), 6) in (1, 2, 5)


def test_decades() -> None:
    assert decades(0.9, 30) == pytest.approx([1, 2, 5, 10, 20])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 10_000), numbers.map(abs)), min_size=1, max_size=20))
def test_curves_stay_inside(points: list[tuple[int, float]]) -> None:
    figure = line_plot({"a": sorted(points), "b": [(1.0, math.nan)]}, "loss", "update", {"a": 0, "b": 1})
    (line,) = re.findall(r'points="([^"]*)"', figure)
    for pair in line.split():
        x, y = map(float, pair.split(","))
        assert 0 <= x <= WIDTH
        assert 0 <= y <= HEIGHT


def test_nothing_to_plot() -> None:
    assert line_plot({"a": []}, "loss", "update", {"a": 0}) == ""


def test_a_second_round_through_the_colours_is_dashed() -> None:
    figure = line_plot({"a": [(1, 2)], "b": [(1, 3)]}, "loss", "update", {"a": 1, "b": 9})
    assert re.findall(r'style="(stroke[^"]*)"', figure) == [
        "stroke: var(--c1)",
        "stroke: var(--c1); stroke-dasharray: 5 4",
    ]
    assert re.findall(r"border-top: 3px (\w+) var\(--c1\)", legend({"a": 1, "b": 9})) == ["solid", "dashed"]


def test_thin_keeps_the_mean() -> None:
    points = [(float(x), float(x % 7)) for x in range(1200)]
    few = thin(points)
    assert len(few) == 300
    assert sum(y for _, y in few) / 300 == pytest.approx(sum(y for _, y in points) / 1200)
    assert thin(points[:5]) == points[:5]


def test_whisker_and_bar() -> None:
    assert 'cx="50.0"' in whisker(10, 5, 15, 20)
    assert 'x1="26.5" x2="73.5"' in whisker(10, 5, 15, 20)
    assert 'cx="3.0"' in whisker(0, 0, 0, 0)
    assert whisker(10, 5, 15, 20, [8.0]).count('class="run"') == 0, "a single run is the dot"
    assert whisker(10, 5, 15, 20, [8.0, 12.0]).count('class="run"') == 2
    assert 'class="full" width="25.0"' in bar(0.25)
