"""The results: a row for each system, search and test set, its seeds pooled, compared on the same utterances.

Shapes: N utterances.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kdtrans.contracts import ALIGNMENTS, SCORES, ContractError, ScoreSummary, read_table
from kdtrans.scoring.bootstrap import Comparison, compare, mean_errors, wer_interval
from kdtrans.scoring.delay import Delay, label_delays, pooled
from kdtrans.scoring.sweep import DEV, read_summary

TEACHER = "teacher"
STREAMING = "streaming_"  # + the name of the baseline or control: its streaming twin

Condition = tuple[str, str]  # (test set, search)


@dataclass(frozen=True)
class Against:
    """A comparison with a named system."""

    system: str
    comparison: Comparison

    def to_json(self) -> dict[str, Any]:
        return {"system": self.system, **self.comparison.to_json()}


@dataclass(frozen=True)
class Row:
    """A system in one condition: its runs (one, or one a seed) pooled, and what it is compared with."""

    runs: list[ScoreSummary]
    counts: list[Path]  # the per-utterance rows of each run
    wer: float  # mean over the runs, %
    wer_low: float  # 95 % bootstrap interval of that mean over utterances
    wer_high: float
    baseline: Against | None  # None: it is the baseline itself, or the baseline was not scored in this condition
    control: Against | None
    teacher: Against | None

    @property
    def system(self) -> str:
        return self.runs[0].system

    @property
    def condition(self) -> Condition:
        return self.runs[0].testset, self.runs[0].search

    @property
    def latency_ms(self) -> int | None:
        """Algorithmic latency of a streaming system; None: it waits for the end of the utterance."""
        return self.runs[0].latency_ms

    @property
    def parameters(self) -> int:
        return self.runs[0].parameters

    @property
    def spread(self) -> tuple[float, float]:
        """Lowest and highest WER of the runs, %."""
        return min(run.wer for run in self.runs), max(run.wer for run in self.runs)

    @property
    def seeds(self) -> list[int] | None:
        """The seeds that the runs are named after; None for a single run, whose seed is its configuration's."""
        matches = [re.search(r"-seed(-?\d+)$", run.run) for run in self.runs]
        return [int(match[1]) for match in matches if match] or None

    @property
    def cer(self) -> float:
        """Mean over the runs, %."""
        return sum(run.cer for run in self.runs) / len(self.runs)

    @property
    def real_time_factor(self) -> float:
        """Seconds of decoding for a second of audio, over all runs; nan without audio."""
        audio = sum(run.audio_seconds for run in self.runs)
        return sum(run.decode_seconds for run in self.runs) / audio if audio else float("nan")

    def total(self, count: str) -> int:
        """A count (sub, dele, ins, words) over all runs."""
        return sum(getattr(run, count) for run in self.runs)

    def to_json(self, delay: Delay | None) -> dict[str, Any]:
        """What summary.json says of the row; counts are sums over the runs."""
        low, high = self.spread
        return {
            "system": self.system,
            "search": self.condition[1],
            "testset": self.condition[0],
            "streaming": self.latency_ms is not None,
            "latency_ms": self.latency_ms,
            "parameters": self.parameters,
            "seeds": self.seeds,
            "wer": self.wer,
            "wer_low": self.wer_low,
            "wer_high": self.wer_high,
            "wer_least": low,
            "wer_most": high,
            "cer": self.cer,
            **{count: self.total(count) for count in ("sub", "dele", "ins", "words")},
            "utterances": self.runs[0].utterances,
            "real_time_factor": self.real_time_factor,
            "against_baseline": self.baseline.to_json() if self.baseline else None,
            "against_control": self.control.to_json() if self.control else None,
            "against_teacher": self.teacher.to_json() if self.teacher else None,
            "delay_ms": delay.to_json() if delay else None,
            "runs": [{"run": run.run, "wer": run.wer, "lm_weight": run.lm_weight} for run in self.runs],
        }


@dataclass(frozen=True)
class Results:
    """All rows, in the order of the score files, and the emission delays by (system, test set)."""

    rows: list[Row]
    baseline: str
    control: str | None  # None: there is no such system
    delays: Mapping[tuple[str, str], Delay]

    @property
    def systems(self) -> list[str]:
        return list(dict.fromkeys(row.system for row in self.rows))

    @property
    def runs(self) -> dict[str, str]:
        """Run -> its system."""
        return {run.run: row.system for row in self.rows for run in row.runs}

    def conditions(self, dev: bool = False) -> list[Condition]:
        """Test sets x searches; those of dev, on which things were chosen, are kept apart."""
        found = dict.fromkeys(row.condition for row in self.rows)
        return [condition for condition in found if (condition[0] == DEV) == dev]

    def row(self, system: str, condition: Condition) -> Row | None:
        """The row of a system in one condition, or None where it was not scored."""
        return next((row for row in self.rows if (row.system, row.condition) == (system, condition)), None)

    def best_student(self) -> Row | None:
        """The row, in the first test condition, of the student with the lowest dev WER.

        Chosen on dev, because the best of several test results is an optimistic one; on the test set where dev was not
        scored with the same search. None when no student was scored on a test set.
        """
        for condition in self.conditions():
            students = [row for row in self.rows if row.condition == condition and row.system != TEACHER]
            if not students:
                continue
            dev = {row.system: self.row(row.system, (DEV, condition[1])) for row in students}
            return min(students, key=lambda row: _wer(dev[row.system] if all(dev.values()) else row))
        return None

    def headline(self) -> str:
        """The main result in one sentence."""
        best = self.best_student()
        if not best:
            return "No student was scored on a test set."
        text = f"{best.system}: {best.wer:.1f} % WER on {best.condition[0]}"
        for against in (best.baseline, best.control):
            text += f", {_change(against)}" if against and against.comparison.werr is not None else ""
        teacher = self.row(TEACHER, best.condition)
        if teacher and teacher.wer:
            text += f", {best.wer / teacher.wer:.1f} times the teacher's errors"
        if teacher and best.parameters:
            ratio = teacher.parameters / best.parameters
            text += f", at 1/{ratio:.0f} of the teacher's size" if ratio >= 1.5 else ""
        return text + "."

    def to_json(self) -> list[dict[str, Any]]:
        """The rows of summary.json."""
        return [row.to_json(self.delays.get((row.system, row.condition[0]))) for row in self.rows]


@dataclass(frozen=True)
class _Pooled:
    """The runs of one system in one condition, and their utterances in the order of their ids."""

    runs: list[ScoreSummary]
    counts: list[Path]
    utterances: pa.Table  # SCORES of the first run
    errors_N: np.ndarray  # mean over the runs


def read_results(
    scores: list[Path], baseline: str, control: str | None = None, alignments: Iterable[Path] = ()
) -> Results:
    """Read score files and the per-utterance counts beside them; pool seeds, compare systems, measure delays.

    A streaming system is compared with the streaming twins of baseline and control, `streaming_NAME`, where one of them
    was scored, and else with the plain ones: against those its gain is mixed with the price of streaming.

    Args:
        scores: NAME.score.json files; NAME.score.parquet stands beside each.
        baseline: the system that relative reductions are computed against.
        control: a second such system, where it was scored; None: none.
        alignments: RUN/TESTSET.parquet files, the teacher's among them.

    Raises:
        ContractError: naming the file that is no score file, that repeats another, or that was scored or aligned on
            other utterances than what it is pooled or compared with.
    """
    summaries = {path: read_summary(path) for path in scores}
    grouped: dict[tuple[str, Condition], dict[str, Path]] = {}
    for path in scores:
        score = summaries[path]
        runs = grouped.setdefault((score.system, (score.testset, score.search)), {})
        if score.run in runs:
            name = f"{score.run}, {score.testset}, {score.search}"
            raise ContractError(f"{path}: {name} is already in {runs[score.run]}: give each score once")
        runs[score.run] = path
    groups = {key: _pool(list(paths.values()), summaries) for key, paths in grouped.items()}
    if control and not {control, STREAMING + control} & {score.system for score in summaries.values()}:
        control = None
    names = [baseline, control] if control else [baseline]
    rows = [
        Row(
            group.runs,
            group.counts,
            float(np.mean([score.wer for score in group.runs])),
            *wer_interval(_words(group), group.errors_N),
            baseline=_against(groups, key, baseline, names),
            control=_against(groups, key, control, names) if control else None,
            teacher=_against(groups, key, TEACHER, []),
        )
        for key, group in groups.items()
    ]
    systems = {score.run: score.system for score in summaries.values()}
    return Results(rows, baseline, control, read_delays(list(alignments), systems))


def read_delays(alignments: list[Path], systems: Mapping[str, str]) -> dict[tuple[str, str], Delay]:
    """Emission delays by (system, test set) from RUN/TESTSET.parquet files; empty where the teacher has none.

    Args:
        alignments: the files, those of the run `teacher` among them.
        systems: run -> its system, of all runs that were scored.

    Raises:
        ContractError: naming a file of an unknown run, or one that does not fit the teacher's.
    """
    tables = {path: read_table(path, ALIGNMENTS) for path in alignments}
    teachers = {path.stem: path for path in alignments if path.parent.name == TEACHER}
    delays: dict[tuple[str, str], list[np.ndarray]] = {}
    for path, table in tables.items():
        run, testset = path.parent.name, path.stem
        if run not in systems:
            raise ContractError(f"{path}: the run '{run}' was not scored: give its scores, or leave it out")
        if run != TEACHER and testset in teachers:
            teacher = teachers[testset]
            found = label_delays(table, tables[teacher], path, teacher)
            delays.setdefault((systems[run], testset), []).append(found)
    return {key: delay for key, runs in delays.items() if (delay := pooled(runs))}


def errors_of(table: pa.Table) -> np.ndarray:
    """Errors of each utterance, (N,), of a table of SCORES."""
    return np.stack([table[name].to_numpy() for name in ("sub", "del", "ins")]).astype(np.int64).sum(0)


def _pool(paths: list[Path], summaries: Mapping[Path, ScoreSummary]) -> _Pooled:
    counts = [path.with_suffix(".parquet") for path in paths]
    tables = [read_table(path, SCORES).sort_by("utt_id") for path in counts]
    for path, table in zip(counts, tables, strict=True):
        _check_same(counts[0], tables[0], path, table)
    return _Pooled([summaries[path] for path in paths], counts, tables[0], mean_errors([*map(errors_of, tables)]))


def _against(
    groups: Mapping[tuple[str, Condition], _Pooled], key: tuple[str, Condition], name: str, names: list[str]
) -> Against | None:
    """The comparison of one group with another; of a streaming one with the twin, where one of `names` has a twin."""
    system, condition = key
    group = groups[key]
    streams = group.runs[0].latency_ms is not None
    if streams and any((STREAMING + one, condition) in groups for one in names):
        name = STREAMING + name
    other = groups.get((name, condition))
    if other is None or name == system:
        return None
    _check_same(other.counts[0], other.utterances, group.counts[0], group.utterances)
    return Against(name, compare(_words(group), other.errors_N, group.errors_N))


def _words(group: _Pooled) -> np.ndarray:
    words: np.ndarray = group.utterances["words"].to_numpy().astype(np.int64)
    return words


def _check_same(first_path: Path, first: pa.Table, path: Path, table: pa.Table) -> None:
    for column in ("utt_id", "reference"):
        if not first[column].equals(table[column]):
            raise ContractError(
                f"{path} ({len(table)} utterances) and {first_path} ({len(first)}) differ in {column}: "
                "score both on the same manifest"
            )


def _change(against: Against) -> str:
    """A comparison in words, fewer or more errors."""
    found = against.comparison
    werr, low, high, word = found.werr or 0.0, found.werr_low or 0.0, found.werr_high or 0.0, "fewer"
    if werr < 0:
        werr, low, high, word = -werr, -high, -low, "more"
    text = f"{werr:.0f} % [{low:.0f}, {high:.0f}] {word} errors than {against.system}"
    return text if found.significant else f"{text} (not significant)"


def _wer(row: Row | None) -> float:
    return row.wer if row else float("inf")
