"""What a file of the workflow holds, for reading: facts and a few rows, as `kdtrans inspect` shows them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kdtrans.artifacts import read_json
from kdtrans.contracts import (
    ALIGNMENTS,
    FRAME_SHIFT_MS,
    HYPOTHESES,
    SCORES,
    read_footer,
    read_table,
    whole_parquet,
)
from kdtrans.report.results import errors_of
from kdtrans.scoring.references import read_references
from kdtrans.scoring.sweep import read_summary

FIRST_ROWS = 5


@dataclass
class Description:
    """Facts of one file and a table of its first rows."""

    kind: str
    line: str  # the file in one line
    facts: dict[str, str]
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    table: str = ""  # what the rows are


def describe_manifest(path: Path) -> Description:
    """Utterances, hours, speakers and durations of a manifest."""
    references = read_references([path])
    seconds = np.array([reference.seconds for reference in references.values()])
    labelled = sum(reference.text is not None for reference in references.values())
    hours = f"{seconds.sum() / 3600:.3f}"
    facts = {
        "utterances": f"{len(references):,} ({labelled:,} labelled, {len(references) - labelled:,} unlabelled)",
        "hours": hours,
        "speakers": f"{len({reference.speaker for reference in references.values()}):,}",
        "duration, s": quantiles(seconds),
    }
    rows = [
        [utt_id, ref.speaker, f"{ref.seconds:.2f}", "(unlabelled)" if ref.text is None else ref.text]
        for utt_id, ref in list(references.items())[:FIRST_ROWS]
    ]
    line = f"{len(references):,} utterances, {hours} hours, {labelled:,} labelled"
    return Description("manifest", line, facts, ["utt_id", "speaker", "seconds", "text"], rows, "first utterances")


def describe_hypotheses(path: Path) -> Description:
    """Size of the n-best lists of a hypothesis file, its footer, and its first rows."""
    scores = ("score", "am_score", "lm_score")
    footer, table = read_footer(path), read_table(path, HYPOTHESES, ("utt_id", "rank", *scores, "text"))
    utterances, per_utterance = np.unique(np.array(table["utt_id"].to_pylist(), dtype=object), return_counts=True)
    facts = {"utterances": f"{len(utterances):,}", "hypotheses an utterance": quantiles(per_utterance), **footer}
    rows = [
        [row["utt_id"], str(row["rank"]), *(f"{row[name]:.2f}" for name in scores), row["text"]]
        for row in table.slice(0, FIRST_ROWS).to_pylist()
    ]
    header = ["utt_id", "rank", *scores, "text"]
    line = f"{len(utterances):,} utterances, {len(table):,} hypotheses"
    return Description("hypotheses", line, facts, header, rows, "first hypotheses")


def describe_counts(path: Path) -> Description:
    """Errors of a file of per-utterance counts, and its worst utterances."""
    table = read_table(path, SCORES)
    errors, words = errors_of(table), int(table["words"].to_numpy().sum())
    line = f"{len(table):,} utterances, {errors.sum():,} errors in {words:,} words"
    rows = []
    for index in np.argsort(-errors, kind="stable")[:FIRST_ROWS].tolist():
        row = table.slice(index, 1).to_pylist()[0]
        rows.append([row["utt_id"], str(errors[index]), str(row["words"]), row["reference"], row["hypothesis"]])
    facts = {"utterances": f"{len(table):,}", "words": f"{words:,}", "errors": f"{errors.sum():,}"}
    header = ["utt_id", "errors", "words", "reference", "hypothesis"]
    return Description("counts", line, facts, header, rows, "worst utterances")


def describe_alignments(path: Path) -> Description:
    """When a model emits the references: size, and the first utterances."""
    table = read_table(path, ALIGNMENTS)
    tokens = int(pc.list_value_length(table["tokens"]).to_numpy().sum())
    line = f"{len(table):,} utterances, {tokens:,} tokens"
    facts = {
        "utterances": f"{len(table):,}",
        "tokens": f"{tokens:,}",
        "frames": quantiles(table["num_frames"].to_numpy()),
    }
    rows = []
    for row in table.slice(0, FIRST_ROWS).to_pylist():
        emitted = zip(row["token_frames"], row["tokens"], strict=True)
        shown = " ".join(f"{frame * FRAME_SHIFT_MS / 1000:.2f}:{token}" for frame, token in emitted)
        rows.append([row["utt_id"], f"{row['path_logp']:.2f}", shown])
    header = ["utt_id", "path_logp", "path: seconds:token"]
    return Description("alignments", line, facts, header, rows, "first alignments")


def describe_score(path: Path) -> Description:
    """A score summary, entry by entry."""
    score = read_summary(path)
    facts = {key: f"{value:.3f}" if isinstance(value, float) else str(value) for key, value in read_json(path).items()}
    wer = f"{score.wer:.2f} % WER [{score.wer_low:.2f}, {score.wer_high:.2f}]"
    return Description("score", f"{score.run}, {score.search}, {score.testset}: {wer}", facts)


def parquet_kind(path: Path) -> str | None:
    """targets, hypotheses, counts or alignments, by the columns; None for another Parquet file."""
    with whole_parquet(path):
        schema = pq.read_schema(path)
    if "topk_logp" in schema.names:  # of any version: ShardReader names one that it does not read
        return "targets"
    known = {"hypotheses": HYPOTHESES, "counts": SCORES, "alignments": ALIGNMENTS}
    return next((kind for kind, columns in known.items() if schema.names == columns.names), None)


def quantiles(values: np.ndarray) -> str:
    """Minimum, quartiles and maximum in one line."""
    if not len(values):
        return "none"
    names = ("min", "25 %", "median", "75 %", "max")
    found = np.percentile(values, [0, 25, 50, 75, 100])
    return ", ".join(f"{name} {value:.4g}" for name, value in zip(names, found, strict=True))
