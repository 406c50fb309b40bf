"""Columns of plain text; without what a table of results loads, so that a command may start fast."""

from __future__ import annotations

from collections.abc import Sequence


def align(header: Sequence[str], lines: Sequence[Sequence[str]], labels: int = 1) -> str:
    """Columns two spaces apart, the first `labels` flush left, the others flush right, a rule below the header."""
    widths = [max(len(line[column]) for line in (header, *lines)) for column in range(len(header))]

    def join(cells: Sequence[str]) -> str:
        padded = zip(cells, widths, strict=True)
        joined = "  ".join(c.ljust(w) if column < labels else c.rjust(w) for column, (c, w) in enumerate(padded))
        return joined.rstrip()

    return "\n".join([join(header), "-" * (sum(widths) + 2 * (len(widths) - 1)), *map(join, lines)])
