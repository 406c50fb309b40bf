"""Small inline SVG figures; colours are CSS variables, so that they follow the page's light or dark mode."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

COLOURS = 8  # --c0 ... --c7 of the style sheet
WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 10, 34  # margins that hold the tick labels

Curve = Sequence[tuple[float, float]]


def whisker(value: float, low: float, high: float, largest: float, runs: Sequence[float] = ()) -> str:
    """An interval as a line, a dot at the value, a stroke for each of several runs; the axis: from 0 to `largest`."""
    unit = 100 / largest if largest > 0 else 0.0
    x, left, right, *ticks = (f"{3 + 94 * unit * v / 100:.1f}" for v in (value, low, high, *runs))
    marks = "".join(f'<line class="run" x1="{tick}" x2="{tick}" y1="1.5" y2="8.5"/>' for tick in ticks)
    return (
        '<svg class="whisker" viewBox="0 0 100 10" role="img" '
        f'aria-label="{value:.1f}, interval {low:.1f} to {high:.1f}">'
        f'<line class="axis" x1="3" x2="97" y1="5" y2="5"/><line class="range" x1="{left}" x2="{right}" y1="5" y2="5"/>'
        f'{marks if len(runs) > 1 else ""}<circle cx="{x}" cy="5" r="2.6"/></svg>'
    )


def bar(share: float) -> str:
    """A share between 0 and 1 as a filled part of a thin bar."""
    width = 100 * min(max(share, 0.0), 1.0)
    return (
        '<svg class="bar" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="empty" width="100" height="6"/><rect class="full" width="{width:.1f}" height="6"/></svg>'
    )


def line_plot(curves: Mapping[str, Curve], title: str, x_label: str, colours: Mapping[str, int]) -> str:
    """Curves over a common x axis from 0, with round ticks; the y axis is logarithmic when the values span a decade.

    Args:
        curves: name -> points (x, y) in the order of x; values that are not finite are left out.
        title: what y is, with its unit.
        x_label: what x is.
        colours: name -> number of its colour; from COLOURS on, dashed.
    """
    clean = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in curves.items()}
    clean = {name: points for name, points in clean.items() if points}
    if not clean:
        return ""
    values = [y for points in clean.values() for _, y in points]
    logarithmic = min(values) > 0 and max(values) / min(values) > 10
    y_ticks = decades(min(values), max(values)) if logarithmic else round_ticks(min(values), max(values))
    x_ticks = round_ticks(0, max(x for points in clean.values() for x, _ in points))
    if logarithmic:
        low, high = min(values), max(values)
    else:
        low, high = min(y_ticks[0], *values), max(y_ticks[-1], *values)

    def place_x(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * x / x_ticks[-1]

    def place_y(y: float) -> float:
        share = math.log(y / low) / math.log(high / low) if logarithmic else (y - low) / (high - low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    marks = []
    for tick in y_ticks:
        y = f"{place_y(tick):.1f}"
        marks.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        marks.append(f'<text class="y" x="{LEFT - 6}" y="{y}">{_number(tick)}</text>')
    for tick in x_ticks:
        marks.append(f'<text class="x" x="{place_x(tick):.1f}" y="{HEIGHT - BOTTOM + 16}">{_number(tick)}</text>')
    marks.append(f'<text class="x" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 3}">{escape(x_label)}</text>')
    for name, points in clean.items():
        path = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in thin(points))
        dashes = "; stroke-dasharray: 5 4" if colours[name] >= COLOURS else ""  # a second round through the colours
        style = f'style="stroke: var(--c{colours[name] % COLOURS}){dashes}"'
        marks.append(f'<polyline points="{path}" {style}><title>{escape(name)}</title></polyline>')
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)} by {escape(x_label)}">{"".join(marks)}</svg></figure>'
    )


def legend(colours: Mapping[str, int]) -> str:
    """Names with a dash of their colour, once for all figures that share them."""
    items = "".join(
        f'<span><i style="border-top: 3px {"dashed" if number >= COLOURS else "solid"} var(--c{number % COLOURS})"></i>'
        f"{escape(name)}</span>"
        for name, number in colours.items()
    )
    return f'<p class="legend">{items}</p>'


def round_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, from at most `low` to at least `high`; at least two."""
    span, size = high - low, max(abs(low), abs(high), 1.0)
    if span < 1e-9 * size:  # one value, give or take rounding: an axis around it
        span = size
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * about >= span * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [number * step for number in range(first, last + 1)]


def decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two positive values."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [factor * 10.0**power for power in powers for factor in (1, 2, 5) if low <= factor * 10.0**power <= high]


def thin(points: Curve, most: int = 300) -> Curve:
    """At most `most` points: means of equally long runs, so that a long training does not make a long page."""
    run = math.ceil(len(points) / most)
    groups = [points[start : start + run] for start in range(0, len(points), run)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value / 1000:g}k"
    return f"{value:.3g}"
