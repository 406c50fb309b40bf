"""`kdtrans bench cost` as a picture: how many times the base's time and memory, on logarithmic axes.  No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from kdtrans.bench.table import Measurement

COLOURS = {"B": "#2563eb", "T": "#dc2626", "U": "#059669", "V": "#9333ea", "beam": "#d97706"}
SIDE, GAP, LEFT, TOP = 150, 26, 56, 64
STYLE = (
    "text { font: 12px sans-serif; fill: #333 } .title { font-weight: 600 } .y { text-anchor: end } .x, .title "
    "{ text-anchor: middle } polyline { fill: none; stroke-width: 2 } .grid { stroke: #e5e5e5 } "
    ".linear { stroke: #999; stroke-dasharray: 4 4 }"
)


def draw(rows: Sequence[Measurement]) -> str:
    """A standalone SVG: a column for each work, time above memory, a line for each dimension that grew.

    Args:
        rows: named `work, time` or `work, memory`, with parameters `along` (a dimension) and `factor`.
    """
    works = list(dict.fromkeys(row.name.rpartition(", ")[0] for row in rows))
    factors = sorted({int(row.parameters["factor"]) for row in rows})
    width, height = LEFT + len(works) * (SIDE + GAP), TOP + 2 * (SIDE + GAP) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="time and memory against the size of a batch">',
        f'<style>{STYLE}</style><rect width="{width}" height="{height}" fill="white"/>',
        _legend(),
    ]
    for column, work in enumerate(works):
        left = LEFT + column * (SIDE + GAP)
        parts.append(f'<text class="title" x="{left + SIDE / 2}" y="{TOP - 12}">{escape(work)}</text>')
        for line, quantity in enumerate(("time", "memory")):
            top = TOP + line * (SIDE + GAP)
            chosen = [row for row in rows if row.name == f"{work}, {quantity}"]
            parts.append(f'<g transform="translate({left} {top})">{_panel(chosen, factors, column == 0)}</g>')
    for line, quantity in enumerate(("time", "memory")):
        middle = TOP + line * (SIDE + GAP) + SIDE / 2
        parts.append(f'<text class="x" transform="translate(14 {middle}) rotate(-90)">{quantity}</text>')
    parts.append(f'<text class="x" x="{width / 2}" y="{height - 8}">times the size of the base</text></svg>')
    return "\n".join(parts) + "\n"


def _panel(rows: list[Measurement], factors: list[int], is_first: bool) -> str:
    """One work's time or memory; both axes end at the greatest factor, so that linear is the diagonal."""
    most = math.log(factors[-1])

    def place(share: float) -> float:
        return SIDE * math.log(max(share, 1.0)) / most

    parts = []
    for factor in factors:
        at = place(factor)
        parts.append(f'<line class="grid" x1="0" x2="{SIDE}" y1="{SIDE - at:.1f}" y2="{SIDE - at:.1f}"/>')
        parts.append(f'<text class="x" x="{at:.1f}" y="{SIDE + 15}">{factor}</text>')
        if is_first:
            parts.append(f'<text class="y" x="-6" y="{SIDE - at + 4:.1f}">{factor} x</text>')
    parts.append(f'<line class="linear" x1="0" y1="{SIDE}" x2="{SIDE}" y2="0"/>')
    for dimension, colour in COLOURS.items():
        points = {int(row.parameters["factor"]): row.median for row in rows if row.parameters["along"] == dimension}
        if points:
            base = points[factors[0]]
            line = " ".join(f"{place(f):.1f},{SIDE - place(points[f] / base):.1f}" for f in factors)
            parts.append(f'<polyline points="{line}" stroke="{colour}"><title>{dimension}</title></polyline>')
    return "".join(parts)


def _legend() -> str:
    names = {"B": "B utterances", "T": "T frames", "U": "U labels", "V": "V classes", "beam": "beam", "": "linear"}
    parts = []
    for place, (dimension, name) in enumerate(names.items()):
        x = LEFT + 130 * place
        look = f'stroke="{COLOURS[dimension]}" stroke-width="2"' if dimension else 'class="linear"'
        parts.append(f'<line x1="{x}" x2="{x + 22}" y1="18" y2="18" {look}/><text x="{x + 28}" y="22">{name}</text>')
    return "".join(parts)
