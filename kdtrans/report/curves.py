"""Training curves: metrics.jsonl of each system as the points of figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kdtrans.report.plots import Curve, legend, line_plot
from kdtrans.report.results import TEACHER

FIGURES = {"loss_transducer": "Transducer loss, nats an utterance", "dev_wer": "Dev WER, % (greedy)"}

Metrics = dict[str, list[dict[str, Any]]]


def read_metrics(named: list[str]) -> Metrics:
    """Read the rows of metrics.jsonl files.

    Args:
        named: `NAME=path` each; NAME is the system.

    Raises:
        ValueError: naming the argument that is not NAME=path, or the line that is not JSON.
    """
    metrics: Metrics = {}
    for entry in named:
        name, equals, path = entry.partition("=")
        if not (name and equals and path):
            raise ValueError(f"--metrics '{entry}': expected NAME=path/metrics.jsonl")
        metrics[name] = []
        for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
            try:
                metrics[name].append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number} is not JSON ({error})") from None
    return metrics


def curve(rows: list[dict[str, Any]], key: str) -> Curve:
    """The points (update, value) of one key; a resumed run's later row replaces the earlier one of the same update."""
    return sorted({row["step"]: float(row[key]) for row in rows if row.get(key) is not None}.items())


def training_figures(metrics: Metrics) -> str:
    """HTML: for the students together, then for the teacher, the loss and the dev WER by update."""
    students = {name: number for number, name in enumerate(name for name in metrics if name != TEACHER)}
    parts = []
    if students:
        parts += [legend(students), _pair(metrics, students)]
    if TEACHER in metrics:
        parts += ["<h3>Teacher</h3>", _pair(metrics, {TEACHER: 0})]
    return "\n".join(parts)


def _pair(metrics: Metrics, colours: dict[str, int]) -> str:
    figures = [
        line_plot({name: curve(metrics[name], key) for name in colours}, title, "update", colours)
        for key, title in FIGURES.items()
    ]
    return f'<div class="figures">{"".join(figures)}</div>'
