"""The results: one row for each system, search and test set, compared with the baseline on the same utterances."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kdtrans.artifacts import read_json
from kdtrans.contracts import SCORES, ContractError, ScoreSummary, read_table
from kdtrans.scoring.bootstrap import Comparison, compare

TEACHER = "teacher"
DEV = "dev"

Condition = tuple[str, str]  # (test set, search)


@dataclass(frozen=True)
class Row:
    """One score file, and its comparison with the baseline's of the same test set and search."""

    score: ScoreSummary
    counts: Path  # the per-utterance rows
    comparison: Comparison | None  # None: the baseline itself, or no score of the baseline was given

    @property
    def condition(self) -> Condition:
        return self.score.testset, self.score.search

    @property
    def real_time_factor(self) -> float:
        """Seconds of decoding for a second of audio; nan without audio."""
        return self.score.decode_seconds / self.score.audio_seconds if self.score.audio_seconds else float("nan")

    def to_json(self) -> dict[str, Any]:
        comparison = self.comparison.to_json() if self.comparison else None
        return self.score.to_json() | {"real_time_factor": self.real_time_factor, "against_baseline": comparison}


@dataclass(frozen=True)
class Results:
    """All rows, in the order of the score files."""

    rows: list[Row]
    baseline: str

    @property
    def systems(self) -> list[str]:
        return list(dict.fromkeys(row.score.system for row in self.rows))

    def conditions(self, dev: bool = False) -> list[Condition]:
        """Test sets x searches; those of dev, on which things were chosen, are kept apart."""
        found = dict.fromkeys(row.condition for row in self.rows)
        return [condition for condition in found if (condition[0] == DEV) == dev]

    def row(self, system: str, condition: Condition) -> Row | None:
        """The row of a system in one condition, or None where it was not scored."""
        return next((row for row in self.rows if (row.score.system, row.condition) == (system, condition)), None)

    def best_student(self) -> Row | None:
        """The row, in the first test condition, of the student with the lowest dev WER.

        Chosen on dev, because the best of several test results is an optimistic one; on the test set where dev was not
        scored with the same search. None when no student was scored on a test set.
        """
        for condition in self.conditions():
            students = [row for row in self.rows if row.condition == condition and row.score.system != TEACHER]
            if not students:
                continue
            dev = {row.score.system: self.row(row.score.system, (DEV, condition[1])) for row in students}
            return min(students, key=lambda row: _wer(dev[row.score.system] if all(dev.values()) else row))
        return None

    def headline(self) -> str:
        """The main result in one sentence."""
        best = self.best_student()
        if best is None:
            return "No student was scored on a test set."
        score, teacher = best.score, self.row(TEACHER, best.condition)
        text = f"{score.system}: {score.wer:.1f} % WER on {score.testset}"
        if best.comparison and best.comparison.werr is not None:
            werr, low, high = best.comparison.werr, best.comparison.werr_low or 0.0, best.comparison.werr_high or 0.0
            if werr < 0:
                werr, low, high, word = -werr, -high, -low, "more"
            else:
                word = "fewer"
            text += f", {werr:.0f} % [{low:.0f}, {high:.0f}] {word} errors than {self.baseline}"
            if low <= 0 <= high:
                text += " (not significant)"
        if teacher and score.parameters:
            ratio = teacher.score.parameters / score.parameters
            text += f", at 1/{ratio:.0f} of the teacher's size" if ratio >= 1.5 else ""
        return text + "."


def read_results(scores: list[Path], baseline: str) -> Results:
    """Read score files and the per-utterance counts beside them; compare each with the baseline.

    Args:
        scores: NAME.score.json files; NAME.score.parquet stands beside each.
        baseline: the system that relative reductions are computed against.

    Raises:
        ContractError: naming the file that is no score file, that repeats another, or that was scored on other
            utterances than the baseline's.
    """
    summaries = [(path, _summary(path)) for path in scores]
    tables: dict[tuple[str, Condition], tuple[Path, pa.Table]] = {}
    for path, summary in summaries:
        key = summary.system, (summary.testset, summary.search)
        if key in tables:
            name = f"{summary.system}, {summary.testset}, {summary.search}"
            raise ContractError(f"{path}: {name} is already in {tables[key][0]}: give each score once")
        tables[key] = path, read_table(path.with_suffix(".parquet"), SCORES)
    rows = []
    for path, summary in summaries:
        condition = summary.testset, summary.search
        reference = tables.get((baseline, condition))
        comparison = None
        if reference and summary.system != baseline:
            comparison = _compare(reference, tables[summary.system, condition])
        rows.append(Row(summary, path.with_suffix(".parquet"), comparison))
    return Results(rows, baseline)


def errors_of(table: pa.Table) -> np.ndarray:
    """Errors of each utterance, (N,), of a table of SCORES."""
    return np.stack([table[name].to_numpy() for name in ("sub", "del", "ins")]).astype(np.int64).sum(0)


def _compare(baseline: tuple[Path, pa.Table], system: tuple[Path, pa.Table]) -> Comparison:
    (first_path, first), (second_path, second) = baseline, system
    first, second = first.sort_by("utt_id"), second.sort_by("utt_id")
    for column in ("utt_id", "reference"):
        if not first[column].equals(second[column]):
            raise ContractError(
                f"{second_path} ({len(second)} utterances) and {first_path} ({len(first)}) differ in {column}: "
                "score both on the same manifest"
            )
    return compare(first["words"].to_numpy().astype(np.int64), errors_of(first), errors_of(second))


def _summary(path: Path) -> ScoreSummary:
    try:
        return ScoreSummary.from_json(read_json(path))
    except (KeyError, TypeError) as error:
        raise ContractError(f"{path} is not a score summary ({error!r}): score again") from None


def _wer(row: Row | None) -> float:
    return row.score.wer if row else float("inf")
