"""What a benchmark says: measurements as a table for the terminal and as JSON for a machine.  No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from kdtrans.artifacts import write_json
from kdtrans.report.columns import align

Conditions = dict[str, str | int | float]  # what a row was measured under


@dataclass(frozen=True)
class Measurement:
    """One quantity, measured once or several times under stated conditions."""

    name: str
    unit: str  # empty for a pure ratio
    values: Sequence[float]  # one a repeat
    parameters: Conditions = field(default_factory=dict)

    @property
    def median(self) -> float:
        return float(median(self.values))

    def to_json(self) -> dict[str, Any]:
        facts = {"name": self.name, "parameters": self.parameters, "unit": self.unit}
        return facts | {"repeats": len(self.values), "median": self.median, "values": list(self.values)}


@dataclass(frozen=True)
class Bench:
    """A benchmark's measurements, and those few numbers among them that it is judged by."""

    name: str
    rows: list[Measurement]
    ratios: dict[str, float]
    limits: dict[str, str]  # ratio -> what is asked of it, in words

    def text(self) -> str:
        """The ratios, if there are any, with what is asked of them, then every measurement with its conditions."""
        judged = [[key, number(value), self.limits.get(key, "")] for key, value in self.ratios.items()]
        rows = [
            [row.name, number(row.median), row.unit, str(len(row.values)), conditions(row.parameters)]
            for row in self.rows
        ]
        measured = _conditions_last(
            align(["measurement", "median", "unit", "repeats"], [row[:4] for row in rows]), rows
        )
        tables = [align(["ratio", "median", "asked"], judged), measured] if judged else [measured]
        return f"{self.name}\n" + "\n\n".join(tables)

    def write(self, path: Path) -> None:
        """The same as JSON: {name, rows, ratios}."""
        write_json(path, {"name": self.name, "rows": [row.to_json() for row in self.rows], "ratios": self.ratios})


def number(value: float) -> str:
    """Three significant figures, without an exponent where there is room."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def conditions(parameters: Conditions) -> str:
    """`key value` pairs, as they are read behind a measurement."""
    return ", ".join(f"{key} {value}" for key, value in parameters.items())


def _conditions_last(table: str, rows: list[list[str]]) -> str:
    """Conditions are sentences: they stand behind the table's columns, each as long as it is."""
    header, rule, *lines = table.splitlines()
    width = max(map(len, (header, rule, *lines)))
    said = [f"{line.ljust(width)}  {row[4]}".rstrip() for line, row in zip(lines, rows, strict=True)]
    return "\n".join([f"{header.ljust(width)}  conditions", rule, *said])
