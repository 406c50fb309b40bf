"""Training curves: metrics.jsonl of each run as the points of figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdtrans.report.plots import Curve, legend, line_plot
from kdtrans.report.results import TEACHER

FIGURES = {
    "loss_transducer": "Transducer loss, nats an utterance",
    "dev_wer": "Dev WER, % (greedy)",
    "dev_loss": "Dev transducer loss, nats an utterance",
}

Metrics = dict[str, list[dict[str, Any]]]


def read_metrics(named: list[str]) -> Metrics:
    """Read the rows of metrics.jsonl files.

    Args:
        named: `NAME=path` each; NAME is the run.

    Raises:
        ValueError: naming the argument that is not NAME=path, or the line that is no row of numbers.
    """
    metrics: Metrics = {}
    for entry in named:
        name, equals, path = entry.partition("=")
        if not (name and equals and path):
            raise ValueError(f"--metrics '{entry}': expected NAME=path/metrics.jsonl")
        metrics[name] = []
        for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
                points = [row["step"], *(row[key] for key in FIGURES if row.get(key) is not None)]
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(f"{path}:{number} is not JSON with a step ({error!r})") from None
            if not all(isinstance(point, int | float) for point in points):
                raise ValueError(f"{path}:{number}: {points} are not all numbers")
            metrics[name].append(row)
    return metrics


def curve(rows: list[dict[str, Any]], key: str) -> Curve:
    """The points (update, value) of one key; a resumed run's later row replaces the earlier one of the same update."""
    return sorted({row["step"]: float(row[key]) for row in rows if row.get(key) is not None}.items())


def training_figures(metrics: Metrics, systems: Mapping[str, str]) -> str:
    """HTML: for the students together, then for the teachers, each of FIGURES by update, as far as there are such rows.

    Args:
        metrics: rows by run; further teachers are called as their folders, teachers/NAME.
        systems: run -> its system; the seeds of one system share a colour. A run that is not there stands for itself.
    """
    teachers = [run for run in metrics if run == TEACHER or run.startswith(f"{TEACHER}s/")]
    students = {run: systems.get(run, run) for run in metrics if run not in teachers}
    numbers = {system: number for number, system in enumerate(dict.fromkeys(students.values()))}
    parts = []
    if students:
        parts += [legend(numbers), _figures(metrics, {run: numbers[system] for run, system in students.items()})]
    if teachers:
        colours = {run: number for number, run in enumerate(teachers)}
        heading = ["<h3>Teachers</h3>", legend(colours)] if len(teachers) > 1 else ["<h3>Teacher</h3>"]
        parts += [*heading, _figures(metrics, colours)]
    return "\n".join(parts)


def _figures(metrics: Metrics, colours: dict[str, int]) -> str:
    figures = [
        line_plot({run: curve(metrics[run], key) for run in colours}, title, "update", colours)
        for key, title in FIGURES.items()
    ]
    return f'<div class="figures">{"".join(figures)}</div>'
